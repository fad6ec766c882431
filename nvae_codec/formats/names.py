"""Names of image files: the suffixes by which they are known, and those that are found in folders.

It knows no library, so that a command line can ask at no cost.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from nvae_codec.errors import ImageError

# What each suffix stands for where a file is written. The first of a format is its usual one.
WRITTEN = {
    ".png": "png",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".bmp": "bmp",
    ".ppm": "pnm",
    ".pgm": "pnm",
    ".pnm": "pnm",
    ".pbm": "pnm",
    ".pam": "pnm",
    ".gif": "gif",
}
_SUFFIX_OF = {"jpeg": ".jpg", "tiff": ".tif"}  # of other formats it is the name
_JPEG = ".jpg .jpeg .jpe .jif .jfif .mpo"
_JPEG_2000 = ".jp2 .j2k .jpc .jpf .jpx .j2c"
_OTHERS = """
    .apng .avif .avifs .blp .cur .dcx .dds .dib .fit .fits .ftc .ftu .gbr .icns .ico .iim .im .msp .pcd .pcx .pfm .psd
    .pxr .qoi .bw .rgb .rgba .sgi .ras .tga .icb .vda .vst .xbm .xpm
"""
# All that Pillow reads, but for what is no still image of samples: films (.mpg, .fli), pages of drawing instructions
# (.ps, .eps, which would start another program; .pdf, .wmf, .emf), and boxes whose content Pillow cannot decode (.bufr,
# .grib, .h5, .hdf). A list and not Pillow's own, which takes a moment to gather; a test compares the two.
SUFFIXES = frozenset({*WRITTEN, *_JPEG.split(), *_JPEG_2000.split(), *_OTHERS.split()})


def suffix_kind(suffix: str) -> str:
    """The name of the format in which a file with this suffix is written. ImageError if there is none."""
    name = WRITTEN.get(suffix.lower())
    if name is None:
        known = ", ".join(WRITTEN)
        raise ImageError(f"{suffix or 'a name without suffix'} stands for no lossless image format; known are {known}")
    return name


def suffix_of_format(name: str) -> str:
    """The usual suffix of the files of a format."""
    return _SUFFIX_OF.get(name, f".{name}")


def is_image_file(path: Path) -> bool:
    """Whether a name is that of an image file, which is known by its suffix, and not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _fail(error: OSError) -> None:
    raise error


def visible_files(
    folder: Path, *, recursive: bool = True, unreadable: Callable[[OSError], None] = _fail
) -> Iterator[Path]:
    """The files in a folder by their names and, with `recursive`, then those in its sub-folders likewise.

    Hidden files and folders are passed over, links to folders are not followed. `unreadable` is given the errors of
    folders that cannot be read; by default it raises them.
    """
    for place, folders, names in os.walk(folder, onerror=unreadable):
        # The walk goes on to these.
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def find_images(folder: Path, *, recursive: bool = True) -> list[Path]:
    """The image files among `visible_files`, sorted by their paths.

    Raises ImageError if there is none, and OSError if a folder cannot be read.
    """
    found = sorted(filter(is_image_file, visible_files(folder, recursive=recursive)), key=Path.as_posix)
    if not found:
        raise ImageError(f"{folder}: there is no image file in this folder")
    return found

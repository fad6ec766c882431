"""Names of image files: the suffixes by which they are known, and those that are found in folders.

It knows no library, so that a command line can ask at no cost.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

from nvae_codec.errors import ImageError

# The suffixes of each format that pixels can be written in without loss; the first is its usual one.
LOSSLESS = {
    "png": ".png",
    "webp": ".webp",
    "tiff": ".tif .tiff",
    "bmp": ".bmp",
    "pnm": ".ppm .pgm .pnm .pbm .pam",
    "gif": ".gif",
}
# Those of the others, by Pillow's name in lower case, whose files are kept as they are. All that Pillow reads, but for
# what is no still image of samples: films (.mpg, .fli), pages of drawing instructions (.ps, .eps, which would start
# another program; .pdf, .wmf, .emf), and boxes whose content Pillow cannot decode (.bufr, .grib, .h5, .hdf). It is a
# list and not Pillow's own, which takes a moment to gather; a test compares the two.
KEPT = {
    "jpeg": ".jpg .jpeg .jpe .jif .jfif .mpo",
    "jpeg2000": ".jp2 .j2k .jpc .jpf .jpx .j2c",
    "png": ".apng",
    "pnm": ".pfm",
    "avif": ".avif .avifs",
    "blp": ".blp",
    "cur": ".cur",
    "dcx": ".dcx",
    "dds": ".dds",
    "dib": ".dib",
    "fits": ".fits .fit",
    "ftex": ".ftc .ftu",
    "gbr": ".gbr",
    "icns": ".icns",
    "ico": ".ico",
    "im": ".im",
    "iptc": ".iim",
    "msp": ".msp",
    "pcd": ".pcd",
    "pcx": ".pcx",
    "psd": ".psd",
    "pixar": ".pxr",
    "qoi": ".qoi",
    "sgi": ".sgi .rgb .rgba .bw",
    "sun": ".ras",
    "tga": ".tga .icb .vda .vst",
    "xbm": ".xbm",
    "xpm": ".xpm",
}
# Formats whose files have no suffix of their own, or that of films; this is what one given back is called.
UNNAMED = {"fli": ".fli", "imt": ".imt", "mcidas": ".area", "spider": ".spi", "xvthumb": ".p7"}
WRITTEN = {suffix: name for name, suffixes in LOSSLESS.items() for suffix in suffixes.split()}
_KINDS = {suffix: name for name, suffixes in KEPT.items() for suffix in suffixes.split()} | WRITTEN
SUFFIXES = frozenset(_KINDS)


def kind_of_suffix(suffix: str) -> str:
    """The name of the format whose files have this suffix; empty if it is not that of an image."""
    return _KINDS.get(suffix.lower(), "")


def suffix_kind(suffix: str) -> str:
    """The name of the format that a suffix stands for. ImageError if there is none.

    Pixels can be written in the formats of LOSSLESS; of the others, only files that came in can be given back.
    """
    unnamed = {each: name for name, each in UNNAMED.items()}
    name = _KINDS.get(suffix.lower()) or unnamed.get(suffix.lower())
    if name is None:
        raise not_lossless(suffix)
    return name


def not_lossless(suffix: str) -> ImageError:
    """The error where a suffix stands for no format that pixels can be written in."""
    known = ", ".join(WRITTEN)
    return ImageError(f"{suffix or 'a name without suffix'} stands for no lossless image format; known are {known}")


def usual_suffix(name: str) -> str:
    """The usual suffix of a format; none of one that has none."""
    return (LOSSLESS.get(name) or KEPT.get(name) or UNNAMED.get(name, "")).partition(" ")[0]


def is_image_file(path: PurePath) -> bool:
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

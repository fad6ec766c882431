"""TIFF files, parsed by ourselves: Pillow makes 8 bits of 16, and its library passes over damage.

Read whole are grey of 1, 2, 4, 8 and 16 bits, palettes of up to 8, RGB and CMYK of 8 and 16, grey and RGB with alpha
that is not multiplied into the colours; in strips or tiles, not compressed or by LZW, deflate, PackBits, LZMA or Zstd.
Everything else is kept as it is, as are BigTIFF, files with reduced images and those with a camera maker's note, which
may point anywhere into the file.

The wrapping is described in `nvae_codec.formats.tiff_tags`. What a file does not get back: its order of bytes, how its
samples were cut and compressed, and what no tag points to. EXIF is among its tags, so that `Image.exif` is empty; other
formats get a block of `tiff_tags.exif_of`.

Source: TIFF 6.0.
"""

from dataclasses import replace
from typing import BinaryIO, Literal

import numpy as np

from nvae_codec.errors import ImageError
from nvae_codec.formats.definition import Format, Reading, Written, cannot_hold
from nvae_codec.formats.others import kept
from nvae_codec.formats.pillow_images import decoded, opened, translated
from nvae_codec.formats.tiff_samples import DEFLATE, Layout, layout_of, read_samples, write_strips
from nvae_codec.formats.tiff_tags import (
    BYTE,
    EXIF,
    ICC,
    LAYOUT,
    MAKER_NOTE,
    PHOTOMETRIC,
    SUB_FOLDERS,
    UNDEFINED,
    XMP,
    Entry,
    Folder,
    Reader,
    Unrepresented,
    folder_of_exif,
    longs,
    numbers_of,
    pack_folder,
    pack_structure,
    shorts,
    unpack_structure,
    words_of,
)
from nvae_codec.image import CMYK, GREY, PALETTE, RGB, Image

WHITE_IS_ZERO, BLACK_IS_ZERO, OF_RGB, OF_PALETTE, OF_CMYK = 0, 1, 2, 3, 5
PHOTOMETRICS = {GREY: BLACK_IS_ZERO, RGB: OF_RGB, PALETTE: OF_PALETTE, CMYK: OF_CMYK}
COLOURS = {WHITE_IS_ZERO: GREY, **{number: colours for colours, number in PHOTOMETRICS.items()}}
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), CMYK: (8, 16)}
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, CMYK: 4}
UNASSOCIATED = 2  # alpha that is not multiplied into the colours
ORIENTATION, REDUCED = 274, 1
BIG = (b"II+\0", b"MM\0+")
MAX_FILE = 2**32 - 1


def recognises(data: bytes) -> bool:
    return data[:4] in (b"II*\0", b"MM\0*", *BIG)


def read(data: bytes, reading: Reading) -> Image:
    """The image in a TIFF file's bytes. Raises ImageError for what is damaged, cut short or of several pages."""
    if data[:4] in BIG:
        return _kept(data, data, reading, {}, several=False)
    reader = Reader(data)
    offsets = reader.offsets()
    if not offsets:
        raise ImageError("the TIFF has no image")
    reduced = _reduced(reader, offsets[1:])
    pages = len(offsets) - len(reduced)
    reading.check_frames(pages)
    folder: Folder = {}
    try:
        folder = reader.folder(offsets[0])
        reading.check_size((numbers_of(folder, 256) or [0])[0], (numbers_of(folder, 257) or [0])[0])
        if (reduced and pages == 1 and not reading.pixels) or SUB_FOLDERS in folder and not reading.pixels:
            raise Unrepresented("it has reduced images")
        exif = folder.get(EXIF)
        if isinstance(exif, dict) and MAKER_NOTE in exif and not reading.pixels and pages == 1:
            raise Unrepresented("it has a maker's note, which may point into the file")
        image = _image(data, layout_of(folder, reader.order), folder)
    except Unrepresented:
        upright = _upright(reader, offsets[0])
        return _kept(data, upright, reading, folder, several=pages > 1)
    return replace(image, wrapping=_wrapping(folder), file=b"" if pages > 1 else data)


def _reduced(reader: Reader, offsets: list[int]) -> list[int]:
    """The folders of smaller versions of the first page's image."""
    found = []
    for offset in offsets:
        for place in range(offset + 2, offset + 2 + 12 * reader.uint(offset, 2), 12):
            if reader.uint(place, 2) == 254 and reader.uint(place + 8, 4) & REDUCED:
                found.append(offset)
    return found


def checked_pages(file: BinaryIO, reading: Reading) -> Reading:
    """How Pillow is to read a file, for which smaller versions of an image are pages.

    The whole file is read only if it has several folders. Raises ImageError if it has several images.
    """
    start = file.read(8)
    if start[:4] not in BIG:
        order: Literal["little", "big"] = "little" if start[:2] == b"II" else "big"
        offset = int.from_bytes(start[4:], order)
        file.seek(offset)
        file.seek(offset + 2 + 12 * int.from_bytes(file.read(2), order))
        if any(file.read(4)):
            file.seek(0)
            reader = Reader(file.read())
            offsets = reader.offsets()
            reading.check_frames(len(offsets) - len(_reduced(reader, offsets[1:])))
        reading = reading._replace(first_frame=True)
    file.seek(0)
    return reading


def _image(data: bytes, layout: Layout, folder: Folder) -> Image:
    photometric = (numbers_of(folder, PHOTOMETRIC) or [-1])[0]
    colours = COLOURS.get(photometric, "")
    extra = numbers_of(folder, 338)
    if not colours or layout.depth not in DEPTHS[colours] or set(numbers_of(folder, 339)) - {1}:
        raise Unrepresented("its samples are of another kind")
    alpha = extra == [UNASSOCIATED] and colours in (GREY, RGB) and layout.depth >= 8 and photometric != WHITE_IS_ZERO
    if layout.channels != CHANNELS[colours] + alpha or extra and not alpha:
        raise Unrepresented("it has channels of another kind")
    if (numbers_of(folder, 254) or [0])[0] or (numbers_of(folder, 332) or [1])[0] != 1:
        raise Unrepresented("it is part of an image, or of other inks")
    palette = _palette(numbers_of(folder, 320), layout.depth) if colours == PALETTE else b""
    samples = read_samples(data, layout)
    if photometric == WHITE_IS_ZERO:
        samples = samples.dtype.type((1 << layout.depth) - 1) - samples
    icc, xmp = (entry.value if isinstance(entry := folder.get(tag), Entry) else b"" for tag in (ICC, XMP))
    if any(isinstance(entry := folder.get(tag), Entry) and entry.kind != kind for tag, kind in KINDS.items()):
        raise Unrepresented("its ICC profile or XMP has an unusual type")
    return Image(samples, b"", icc, xmp, colours, layout.depth, palette, format="tiff")


KINDS = {ICC: UNDEFINED, XMP: BYTE}


def _palette(values: list[int], depth: int) -> bytes:
    if len(values) != 3 << depth:
        raise ImageError(f"the TIFF is damaged: its palette has {len(values)} numbers, not {3 << depth}")
    if any(value % 257 for value in values):
        raise Unrepresented("its palette has 16 bits")
    return (np.array(values) // 257).astype(np.uint8).reshape(3, -1).T.tobytes()


def _wrapping(folder: Folder) -> bytes:
    """All tags that do not say how samples lie, and that white is 0."""
    kept_tags = {tag: entry for tag, entry in folder.items() if tag not in (LAYOUT | {ICC, XMP})}
    if numbers_of(folder, PHOTOMETRIC) == [WHITE_IS_ZERO]:
        kept_tags[PHOTOMETRIC] = shorts(WHITE_IS_ZERO)
    return pack_structure(kept_tags)


def _upright(reader: Reader, offset: int) -> bytes:
    """The file with the orientation 1, as Pillow turns images by it."""
    data = reader.data
    for place in range(offset + 2, offset + 2 + 12 * reader.uint(offset, 2), 12):
        if reader.uint(place, 2) == ORIENTATION:
            one = (1).to_bytes(2, "little" if reader.order == "<" else "big")
            data = data[: place + 8] + one + data[place + 10 :]
    return data


def _kept(data: bytes, upright: bytes, reading: Reading, folder: Folder, *, several: bool) -> Image:
    """The file as it is, with the samples that Pillow decodes; with `pixels`, these and the tags."""
    with translated("the TIFF is damaged or cut short"):
        image = opened(upright, reading._replace(first_frame=reading.first_frame or bool(folder)), ["TIFF"])
        image.load()
        found = replace(kept(decoded(image), data, reading, "tiff", several=several), exif=b"")
    if not (found.is_whole and folder):
        return found
    without = {tag: entry for tag, entry in folder.items() if tag != SUB_FOLDERS}
    return replace(found, wrapping=_wrapping(without))


def write(image: Image, suffix: str) -> Written:
    """A TIFF file with the pixels of an image, and with all that is said besides if it comes from TIFF."""
    if image.depth not in DEPTHS[image.colours] or image.transparency or image.has_alpha and image.depth < 8:
        raise cannot_hold(suffix, image)
    tags = unpack_structure(image.wrapping) if image.format == "tiff" else {}
    left_out: tuple[str, ...] = ()
    if image.exif:
        of_exif, left_out = folder_of_exif(image.exif)
        tags = {**tags, **of_exif}
    if image.palette and len(image.palette) < 3 << image.depth:
        left_out = (*left_out, "the number of colours in the palette")
    samples, photometric = image.samples, PHOTOMETRICS[image.colours]
    if image.colours == GREY and not image.has_alpha and numbers_of(tags, PHOTOMETRIC) == [WHITE_IS_ZERO]:
        samples, photometric = samples.dtype.type((1 << image.depth) - 1) - samples, WHITE_IS_ZERO
    return Written(_file(image, samples, {**tags, PHOTOMETRIC: shorts(photometric)}), left_out)


def _file(image: Image, samples: np.ndarray, tags: Folder) -> bytes:
    predict = image.depth >= 8 and not image.palette
    rows, strips = write_strips(samples, image.depth, predict=predict)
    body, offsets, lengths = bytearray(), [], []
    for strip in strips:
        offsets.append(8 + len(body))
        lengths.append(len(strip))
        body += strip
    body += bytes(len(body) % 2)
    height, width = samples.shape[:2]
    tags |= {256: longs(width), 257: longs(height), 258: shorts(*[image.depth] * image.channels), 259: shorts(DEFLATE)}
    tags |= {273: longs(*offsets), 277: shorts(image.channels), 278: longs(rows), 279: longs(*lengths)}
    if predict:
        tags[317] = shorts(2)
    if image.has_alpha:
        tags[338] = shorts(UNASSOCIATED)
    if image.palette:
        colours = np.zeros((1 << image.depth, 3), np.uint8)
        colours[: len(image.palette) // 3] = np.frombuffer(image.palette, np.uint8).reshape(-1, 3)
        tags[320] = shorts(*(colours.T.reshape(-1).astype(int) * 257).tolist())
    if image.icc:
        tags[ICC] = Entry(UNDEFINED, len(image.icc), image.icc)
    if image.xmp:
        tags[XMP] = Entry(BYTE, len(image.xmp), image.xmp)
    if 8 + len(body) > MAX_FILE - 2**20:
        raise ImageError("TIFF cannot hold this image: the file would have more than 4 GB; .png can")
    start = 8 + len(body)
    return b"II*\0" + start.to_bytes(4, "little") + bytes(body) + pack_folder(tags, start)


FORMAT = Format("tiff", "TIFF", recognises, read, (".tif", ".tiff"), write, lambda image: ".tif", words_of)

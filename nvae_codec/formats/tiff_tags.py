"""The tags of TIFF files and of EXIF blocks, which are TIFF structures without image data.

A folder (IFD) here is a dict of tags to entries; the folders of EXIF, GPS and interoperability are folders within.

The wrapping of a TIFF file is such a structure too, little-endian and laid out in one way only: the header `II*\\0`,
offset 8, then the folder; behind each folder the values of more than 4 bytes in the order of their tags, each at an
even offset, and then the folders within, likewise. It has all tags of the file but those that say how samples lie in it
(LAYOUT), the ICC profile and XMP; tag 262 (PhotometricInterpretation) with value 0 says that the file's samples are 0
for white. Values are byte for byte those of the file, numbers with their low byte first.

Sources: TIFF 6.0 with its technical notes, sections 2 and 8; CIPA DC-008 (EXIF), clause 4.6.
"""

from typing import NamedTuple, Union

import numpy as np

from nvae_codec.errors import ImageError
from nvae_codec.image import Image

# Bytes of a number, of each type. A RATIONAL is two numbers.
UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 1, 7: 1, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4}
SIZES = UNITS | {5: 8, 10: 8}
BYTE, ASCII, SHORT, LONG, UNDEFINED, FOLDER_POINTER = 1, 2, 3, 4, 7, 13
EXIF, GPS, INTEROPERABILITY, MAKER_NOTE = 34665, 34853, 40965, 37500
WITHIN = {EXIF, GPS, INTEROPERABILITY}
SUB_FOLDERS, ICC, XMP, PHOTOMETRIC = 330, 34675, 700, 262
# Tags that say how samples lie in the file; its reader and writer see to these.
LAYOUT = {254, 256, 257, 258, 259, PHOTOMETRIC, 266, 273, 277, 278, 279, 284, 288, 289, 292, 293, 317, 320, 322, 323}
LAYOUT |= {324, 325, 338, 339, 347, 530, 531, 532}
# Tags of the main folder that EXIF blocks have too; of the others, other formats cannot hold a thing.
EXIF_TAGS = {270, 271, 272, 274, 282, 283, 296, 305, 306, 315, 316, 33432, EXIF, GPS}
NAMED = {
    33550: "ModelPixelScale",
    33922: "ModelTiepoint",
    34264: "ModelTransformation",
    34735: "GeoKeyDirectory",
    34736: "GeoDoubleParams",
    34737: "GeoAsciiParams",
    42112: "GDAL_METADATA",
    42113: "GDAL_NODATA",
    50838: "IJMetadataByteCounts",
    50839: "IJMetadata",
    34377: "Photoshop",
    269: "DocumentName",
    285: "PageName",
    297: "PageNumber",
}
IPTC = 33723


class Entry(NamedTuple):
    """A tag's value, its bytes in little-endian order."""

    kind: int
    length: int  # how many numbers or bytes
    value: bytes

    def numbers(self) -> list[int]:
        """The value as whole numbers, of the types that have such."""
        return np.frombuffer(self.value, f"<u{UNITS[self.kind]}").tolist() if self.kind in (1, 3, 4, 13) else []


Folder = dict[int, Union[Entry, "Folder"]]


class Unrepresented(Exception):
    """What is no damage, but cannot be taken apart and put together again: such a file is kept as it is."""


def numbers_of(folder: Folder, tag: int) -> list[int]:
    """The whole numbers of a tag; none if it is not there."""
    entry = folder.get(tag)
    return entry.numbers() if isinstance(entry, Entry) else []


def shorts(*values: int) -> Entry:
    return Entry(SHORT, len(values), np.array(values, "<u2").tobytes())


def longs(*values: int) -> Entry:
    return Entry(LONG, len(values), np.array(values, "<u4").tobytes())


class Reader:
    """Folders of a TIFF structure."""

    def __init__(self, data: bytes, what: str = "TIFF"):
        orders = {b"II*\0": "<", b"MM\0*": ">"}
        self.data, self.what = data, what
        self.order = orders.get(data[:4], "")
        if not self.order or len(data) < 8:
            raise ImageError(f"the {what} is damaged: it does not begin as one")

    def uint(self, position: int, length: int) -> int:
        if position + length > len(self.data):
            raise ImageError(f"the {self.what} is cut short, or an offset in it is wrong")
        return int.from_bytes(self.data[position : position + length], "little" if self.order == "<" else "big")

    def offsets(self) -> list[int]:
        """Where the main folders are, one for each page. Some files lead back to a folder at their end."""
        found, position = [], self.uint(4, 4)
        seen = set()
        while position and position not in seen:
            seen.add(position)
            found.append(position)
            position = self.uint(position + 2 + 12 * self.uint(position, 2), 4)
        return found

    def folder(self, position: int, within: set[int] = WITHIN, *, last: bool = False) -> Folder:
        """The folder at a position. `last`: none must follow, as of those within others."""
        count, found = self.uint(position, 2), Folder()
        for number in range(count):
            place = position + 2 + 12 * number
            tag, kind, length = self.uint(place, 2), self.uint(place + 2, 2), self.uint(place + 4, 4)
            if kind not in SIZES:
                raise Unrepresented(f"tag {tag} has the unknown type {kind}")
            size = SIZES[kind] * length
            start = place + 8 if size <= 4 else self.uint(place + 8, 4)
            if start + size > len(self.data):
                raise ImageError(f"the {self.what} is cut short, or the offset of its tag {tag} is wrong")
            if tag in found or not length:
                raise Unrepresented(f"tag {tag} is there twice, or without a value")
            value = self.data[start : start + size]
            if self.order == ">" and UNITS[kind] > 1:
                value = np.frombuffer(value, f">u{UNITS[kind]}").astype(f"<u{UNITS[kind]}").tobytes()
            entry = Entry(kind, length, value)
            if tag in within:
                if entry.kind not in (LONG, FOLDER_POINTER) or length != 1:
                    raise Unrepresented(f"tag {tag} is no pointer to a folder")
                found[tag] = self.folder(entry.numbers()[0], {INTEROPERABILITY} if tag == EXIF else set(), last=True)
            elif kind == FOLDER_POINTER:
                raise Unrepresented(f"tag {tag} points to a folder of unknown kind")
            else:
                found[tag] = entry
        if last and self.uint(position + 2 + 12 * count, 4):
            raise Unrepresented("a folder within another is followed by one")
        return found


def pack_folder(folder: Folder, start: int = 8) -> bytes:
    """The bytes of a folder that begins at offset `start`, with its values and the folders within behind it."""
    entries, behind = [], b""
    position = start + 2 + 12 * len(folder) + 4
    for tag, entry in sorted(folder.items()):
        if isinstance(entry, Entry) and len(entry.value) > 4:
            behind += bytes((position + len(behind)) % 2)
            entries.append((tag, entry.kind, entry.length, (position + len(behind)).to_bytes(4, "little")))
            behind += entry.value
        elif isinstance(entry, Entry):
            entries.append((tag, entry.kind, entry.length, entry.value.ljust(4, b"\0")))
    for tag, entry in sorted(folder.items()):
        if not isinstance(entry, Entry):
            behind += bytes((position + len(behind)) % 2)
            place = position + len(behind)
            entries.append((tag, LONG, 1, place.to_bytes(4, "little")))
            behind += pack_folder(entry, place)
    numbers = (
        (tag.to_bytes(2, "little"), kind.to_bytes(2, "little"), count.to_bytes(4, "little"), value)
        for tag, kind, count, value in sorted(entries)
    )
    return len(folder).to_bytes(2, "little") + b"".join(map(b"".join, numbers)) + bytes(4) + behind


def pack_structure(folder: Folder) -> bytes:
    """A TIFF structure of one folder; nothing of one without tags."""
    return b"II*\0\x08\0\0\0" + pack_folder(folder) if folder else b""


def unpack_structure(structure: bytes, what: str = "wrapping of a TIFF") -> Folder:
    """The only folder of a TIFF structure. Raises ImageError for what is none."""
    if not structure:
        return {}
    reader = Reader(structure, what)
    offsets = reader.offsets()
    if len(offsets) != 1:
        raise ImageError(f"the {what} has {len(offsets)} folders, where one can be represented")
    try:
        return reader.folder(offsets[0])
    except Unrepresented as error:
        raise ImageError(f"the {what} cannot be represented: {error}") from error


def exif_of(image: Image) -> bytes:
    """The EXIF block of an image; of one from TIFF, made of its tags, as TIFF keeps EXIF among them."""
    if image.exif or image.format != "tiff" or not image.wrapping:
        return image.exif
    return pack_structure({tag: entry for tag, entry in unpack_structure(image.wrapping).items() if tag in EXIF_TAGS})


def folder_of_exif(exif: bytes) -> tuple[Folder, tuple[str, ...]]:
    """The tags that a TIFF file has for an EXIF block, and in words those that it cannot have.

    Raises ImageError for what is no EXIF, and for a thumbnail, which would become a second image.
    """
    try:
        folder = unpack_structure(exif, "EXIF")
    except ImageError as error:
        raise ImageError(f"TIFF cannot hold all of this image's EXIF ({error}); .png and .webp can") from error
    taken = LAYOUT | {ICC, XMP, SUB_FOLDERS}
    left_out = tuple(f"EXIF tag {tag}" for tag in folder if tag in taken)
    return {tag: entry for tag, entry in folder.items() if tag not in taken}, left_out


def words_of(wrapping: bytes) -> tuple[str, ...]:
    """The tags of a wrapping that EXIF blocks cannot have, in words."""
    return tuple(_word_of(tag) for tag in unpack_structure(wrapping) if tag not in EXIF_TAGS and tag != PHOTOMETRIC)


def _word_of(tag: int) -> str:
    return "IPTC" if tag == IPTC else f"TIFF tag {tag} {NAMED.get(tag, '')}".strip()

"""What PNG's chunks iCCP, iTXt, tEXt and zTXt hold: ICC profiles, XMP, EXIF, and the keywords of texts.

Sources: ISO/IEC 15948 (PNG), clause 11.3; the XMP specification, part 3; ImageMagick for "Raw profile type", texts in
which programs kept EXIF before PNG had a chunk for it.
"""

import zlib
from binascii import unhexlify

from nvae_codec.formats.definition import EXIF_PREFIX, without_prefix

MAX_INFLATED = 2**26  # of a profile or a text; what inflates to more stays as it is
XMP_HEADER = b"XML:com.adobe.xmp\0\0\0\0\0"  # keyword, not compressed, without language and translated keyword
XMP_KEYWORD = b"XML:com.adobe.xmp\0"
RAW_EXIF = (b"Raw profile type exif\0", b"Raw profile type APP1\0")
BYTE_ORDERS = (b"II", b"MM")
LEVELS = (6, 9)  # of compression, as most writers of profiles choose it


def inflated(stream: bytes) -> bytes:
    """What a zlib stream holds; nothing if it is damaged or holds too much."""
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(stream, MAX_INFLATED)
    except zlib.error:
        return b""
    return data if inflater.eof and not inflater.unused_data else b""


def profile_of(body: bytes) -> tuple[bytes, bytes]:
    """Name and profile of an iCCP chunk; an empty profile if it is damaged."""
    name, _, rest = body.partition(b"\0")
    return name, inflated(rest[1:]) if rest[:1] == b"\0" else b""


def profile_chunk(name: bytes, profile: bytes, level: int) -> bytes:
    """The body of an iCCP chunk."""
    return name + b"\0\0" + zlib.compress(profile, level)


def level_of(body: bytes, name: bytes, profile: bytes) -> int | None:
    """The level of compression at which `profile_chunk` gives this body, if there is one."""
    return next((level for level in LEVELS if profile_chunk(name, profile, level) == body), None)


def xmp_of(body: bytes) -> bytes:
    """The XMP packet in an iTXt chunk; nothing if it holds another text."""
    if not body.startswith(XMP_KEYWORD):
        return b""
    compressed, rest = body[len(XMP_KEYWORD) : len(XMP_KEYWORD) + 2], body[len(XMP_KEYWORD) + 2 :]
    text = rest.split(b"\0", 2)[2] if rest.count(b"\0") >= 2 else b""
    return inflated(text) if compressed[:1] == b"\1" else text


def exif_of_text(name: bytes, body: bytes) -> bytes:
    """The EXIF block in a text chunk as ImageMagick writes it: its length and its bytes in hexadecimal digits."""
    keyword = next((each for each in RAW_EXIF if body.startswith(each)), b"")
    if not keyword or name not in (b"tEXt", b"zTXt"):
        return b""
    text = body[len(keyword) :]
    lines = (inflated(text[1:]) if name == b"zTXt" else text).strip().split(b"\n", 2)
    try:
        block = unhexlify(b"".join(lines[2].split())) if len(lines) == 3 else b""
    except ValueError:
        return b""
    found = without_prefix(block)
    return found if found[:2] in BYTE_ORDERS and (block.startswith(EXIF_PREFIX) or block == found) else b""


def keyword_of(body: bytes) -> str:
    """The keyword of a text chunk."""
    return body.partition(b"\0")[0].decode("latin-1")

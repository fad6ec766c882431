"""Colour profiles before the frames of a JPEG XL codestream: passed over to the bit, whatever stands in them."""

import io

import imagecodecs
import numpy as np
import pytest
from codestreams import REFERENCE, Writer, frame, header
from helpers import noise
from PIL import Image as pillow
from PIL import ImageCms

from nvae_codec.errors import BitstreamError
from nvae_codec.payloads import jpeg_xl
from nvae_codec.payloads.jpeg_xl_frames import check_frames
from nvae_codec.payloads.jpeg_xl_header import after_header, codestream_of, read_header
from nvae_codec.payloads.jpeg_xl_profile import MAX_PROFILE, pass_profile

RANDOM = np.random.default_rng(3)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
TAILS = {
    "none": b"",
    "text": b"Adobe RGB (1998), 2.19921875 " * 9 + RANDOM.integers(97, 123, 500, np.uint8).tobytes(),
    "noise": RANDOM.integers(0, 256, 2000, np.uint8).tobytes(),
    "curve": (np.arange(2048) ** 2 // 64).astype(">u2").tobytes(),
    "zeros": bytes(4000),
    "few values": RANDOM.choice([3, 3, 3, 3, 7, 200], 3000).astype(np.uint8).tobytes(),
    "copies": RANDOM.integers(240, 256, 700, np.uint8).tobytes() * 3,
}


def profile(tail: bytes) -> bytes:
    """sRGB with bytes that no tag mentions."""
    longer = SRGB + tail
    return len(longer).to_bytes(4) + longer[4:]


def coded(icc: bytes) -> tuple[bytes, bytes]:
    """A JPEG file with a profile, and the codestream that libjxl makes of it."""
    file = io.BytesIO()
    pillow.fromarray(noise(16, 16, 3)).save(file, "JPEG", icc_profile=icc)
    return file.getvalue(), codestream_of(bytes(imagecodecs.jpegxl_encode_jpeg(file.getvalue(), numthreads=1)))


def with_frames(stream: bytes) -> bytes:
    """A codestream up to the end of its profile, then a frame that takes much memory."""
    bits, has_profile, _ = after_header(stream)
    assert has_profile
    pass_profile(bits)
    return stream[: bits.next_byte()] + frame(REFERENCE, 10_000)


@pytest.mark.parametrize("tail", TAILS)
def test_frames_after_a_profile_are_looked_at(tail):
    file, stream = coded(profile(TAILS[tail]))
    check_frames(stream, read_header(stream))
    payload = jpeg_xl.encode_jpeg(file, 16, 16)
    assert payload is not None and jpeg_xl.decode_jpeg(payload, 16, 16) == file
    with pytest.raises(BitstreamError, match="source of patches"):
        check_frames(with_frames(stream), read_header(stream))


def test_every_damaged_bit_of_a_profile_is_refused_or_passed():
    """Most are refused; a prefix for another one of its length, and bits of numbers, are not noticed."""
    _, stream = coded(SRGB)
    bits, *_ = after_header(stream)
    first = bits.position // 8
    pass_profile(bits)
    refused = 0
    places = range(first, bits.next_byte())
    for place in places:
        for flip in range(8):
            damaged = bytearray(stream)
            damaged[place] ^= 1 << flip
            try:
                check_frames(bytes(damaged), read_header(stream))
            except BitstreamError as error:
                assert str(error).startswith("invalid: ")
                refused += 1
    assert refused > 2 * len(places)


def test_a_profile_cut_short_is_refused():
    _, stream = coded(SRGB)
    bits, *_ = after_header(stream)
    first = bits.position // 8
    pass_profile(bits)
    for end in range(first, bits.position // 8):
        with pytest.raises(BitstreamError, match="^invalid: "):
            check_frames(stream[:end], read_header(stream))


def test_samples_have_no_profile():
    _, stream = coded(SRGB)
    with pytest.raises(BitstreamError, match="has a colour profile"):
        check_frames(stream, read_header(stream), colours=3)


class Profile(Writer):
    """The beginning of a profile's numbers, by hand."""

    def length(self, value: int) -> "Profile":
        self.put(3, 2).put(value & 4095, 12)
        for place in range(12, 36, 8):
            more = value >> place > 0
            self.put(more, 1)
            if not more:
                break
            self.put(value >> place & 255, 8)
        return self

    def tokens(self, *values: int, alphabet: int) -> "Profile":
        """A code of up to three tokens, after its form: 15, every token a number."""
        self.put(1, 2).put(len(values) - 1, 2)
        for value in values:
            self.put(value, (alphabet - 1).bit_length())
        return self

    def form(self) -> "Profile":
        return self.put(15, 4)

    def alphabet(self, size: int) -> "Profile":
        """Below 2 or of 2 to 257 tokens."""
        if size == 1:
            return self.put(0, 1)
        length = (size - 1).bit_length() - 1
        return self.put(1, 1).put(length, 4).put(size - 1 - (1 << length), length)


def stream_of(numbers: Profile) -> bytes:
    """A codestream of one pixel with these numbers as its profile, and a frame that takes much memory."""
    beginning = header(profile=1)
    bits, *_ = after_header(beginning)
    start = Writer()
    start.bits = [beginning[place // 8] >> place % 8 & 1 for place in range(bits.position)] + numbers.bits
    return start.whole() + frame(REFERENCE, 10_000)


def clustered(*, moved: int) -> Profile:
    """200 numbers in three clusters, of which libjxl writes no map: contexts after 1 have tokens of their own."""
    numbers = Profile().length(200).put(0, 1)  # no copies
    numbers.put(0, 1).put(moved, 1)  # a map that is coded, by a code of its own
    numbers.put(0, 1).put(1, 1).form().alphabet(3).tokens(0, 1, 2, alphabet=3)
    for context in range(41):  # of these tokens 0 has the prefix 0, 1 has 10, and 2 has 11
        place = {0: 0, 1: 1, 2: 2}.get(context, 0)
        numbers.put((0, 1, 3)[place], (1, 2, 2)[place])
    numbers.put(1, 1).form().form().form().alphabet(256).alphabet(1).alphabet(2)
    numbers.tokens(65, 200, alphabet=256).tokens(0, 1, alphabet=2)
    return numbers


@pytest.mark.parametrize("moved", [0, 1])
def test_a_map_of_clusters_that_is_coded_is_read(moved):
    numbers = clustered(moved=moved)
    numbers.bits += [0] * 129  # of the first context: 65, a letter
    if moved:  # contexts 3 and above are of cluster 2: after a zero without bits, 70 that have one
        numbers.bits += [0] * 70
    else:  # they are of cluster 0: after each zero without bits, two letters
        numbers.bits += [0] * 47
    with pytest.raises(BitstreamError, match="source of patches"):
        check_frames(stream_of(numbers), read_header(header(profile=1)))


def plain() -> Profile:
    """Nine numbers without copies, in one cluster."""
    return Profile().length(9).put(0, 1).put(1, 1).put(0, 2)


INVALID = {
    "no number": (Profile().put(0, 2), "too long"),
    "too many": (Profile().length(MAX_PROFILE + 1), "too long"),
    "2^63": (Profile().put(3, 2).put(0, 12).put(-1, 9 * 6).put(1, 1).put(8, 4), "too long"),
    "numeral systems": (plain().put(0, 1), "not coded by prefixes"),
    "equal tokens": (plain().put(1, 1).form().alphabet(9).tokens(5, 5, alphabet=9), "damaged"),
    "a token that is none": (plain().put(1, 1).form().alphabet(9).tokens(5, 9, alphabet=9), "damaged"),
    "a token for each of 2^15 numbers": (plain().put(1, 1).form().put(1, 1).put(14, 4).put(-1, 14), "damaged"),
    "a cluster without context": (Profile().length(9).put(0, 1).put(1, 1).put(1, 2).put(-1, 41).put(1, 1), "damaged"),
    "a form that is none": (plain().put(1, 1).put(3, 4).put(3, 2).put(1, 1), "damaged"),
}


@pytest.mark.parametrize("case", INVALID)
def test_profiles_that_no_encoder_writes_are_refused(case):
    numbers, words = INVALID[case]
    with pytest.raises(BitstreamError, match=words):
        check_frames(stream_of(numbers) + bytes(99), read_header(header(profile=1)))

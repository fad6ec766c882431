"""The stored payloads: all samples and files come back, and what is damaged is refused."""

import numpy as np
import pytest
from helpers import noise
from hypothesis import given
from hypothesis import strategies as st

from nvae_codec.errors import BitstreamError
from nvae_codec.payloads import stored

WAYS = [(stored.encode_raw, stored.decode_raw), (stored.encode_deflated, stored.decode_deflated)]


@given(
    st.integers(1, 20), st.integers(1, 20), st.integers(1, 4), st.integers(1, 16), st.sampled_from(WAYS), st.integers(0)
)
def test_samples_come_back(height, width, channels, depth, way, seed):
    encode, decode = way
    shape = (height, width) if channels == 1 else (height, width, channels)
    samples = np.random.default_rng(seed).integers(0, 1 << depth, shape).astype(np.uint8 if depth <= 8 else np.uint16)
    payload = encode(samples, depth)
    back = decode(payload, height, width, channels, depth)
    assert back.dtype == samples.dtype and np.array_equal(back, samples)
    for other in (payload[:-1], payload + b"\0"):
        with pytest.raises(BitstreamError):
            decode(other, height, width, channels, depth)


def test_raw_bytes_are_packed():
    assert stored.encode_raw(np.array([[1, 0, 1, 1, 0, 0, 0, 0, 1]], np.uint8), 1) == b"\xb0\x80"
    assert stored.encode_raw(np.array([[1, 7]], np.uint8), 3) == b"\x17"
    assert stored.encode_raw(np.array([[[1, 2], [3, 4]]], np.uint8), 3) == b"\1\2\3\4"
    assert stored.encode_raw(np.array([[258]], np.uint16), 9) == b"\1\2"
    for depth in range(1, 17):
        assert len(
            stored.encode_raw(np.zeros((3, 5), np.uint8 if depth <= 8 else np.uint16), depth)
        ) == stored.raw_bytes(3, 5, 1, depth)


def test_files_come_back():
    for file in (b"", b"a", noise(30, 30).tobytes(), bytes(10_000)):
        deflated = stored.encode_deflated_file(file)
        if file:
            assert stored.decode_deflated_file(deflated, 1) == file
            for other in (deflated[:-1], deflated + b"\0", b"\0" + deflated[1:]):
                with pytest.raises(BitstreamError):
                    stored.decode_deflated_file(other, 1)


def test_a_short_payload_claims_no_long_file():
    claim = stored.write_varint(stored.MAX_INFLATED_BYTES + 32 * 100 + 1)
    with pytest.raises(BitstreamError, match="too large: a file of 100 pixels claims to inflate to 134,220,929 bytes"):
        stored.decode_deflated_file(claim + b"x", 100)

"""Fields: streams that do not inflate as promised, and files that claim far more than they hold."""

import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from bitstream_files import START, WIDE, craft, craft_chunk, item, refusal, sealed, varint
from second_decoder import Refused, second_decoder

import nvae_codec


def with_dictionary(data: bytes) -> bytes:
    deflater = zlib.compressobj(zdict=b"nvae")
    return deflater.compress(data) + deflater.flush()


PLAIN = b"profile " * 50


@pytest.mark.parametrize(
    "stored, length",
    [
        (zlib.compress(PLAIN), len(PLAIN) - 1),
        (zlib.compress(PLAIN), len(PLAIN) + 1),
        (zlib.compress(PLAIN) + b"\0", len(PLAIN)),
        (zlib.compress(PLAIN) + zlib.compress(PLAIN), 2 * len(PLAIN)),
        (zlib.compress(PLAIN)[:-1], len(PLAIN)),
        (zlib.compress(PLAIN)[:-4], len(PLAIN)),
        (zlib.compress(PLAIN)[:-1] + b"\0", len(PLAIN)),
        (zlib.compress(PLAIN)[2:], len(PLAIN)),
        (with_dictionary(PLAIN), len(PLAIN)),
        (zlib.compress(b""), len(PLAIN)),
        (b"\0", len(PLAIN)),
    ],
)
def test_streams_must_inflate_to_their_length(stored, length):
    files = [
        (craft(references=[[0]], items=[item(stored, encoding=1, length=length)]), "invalid: a metadata item "),
        (START + sealed(b"\x0c" + varint(length) + stored), "invalid: the header "),
    ]
    for file, cause in files:
        assert re.match(cause + "(does not inflate to the length|cannot be inflated)", refusal(file))
        with pytest.raises(Refused):
            second_decoder(file)


# Each of these runs in a process that may use a second and 64 MiB more than it has at its start, unless more is said.

SANDBOX = """
import resource, sys, time, zlib
from nvae_codec.bitstreams.container import unpack
from nvae_codec.bitstreams.recovery import recover
from nvae_codec.errors import BitstreamError
data = sys.stdin.buffer.read()
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {memory}, used + {memory}))
start = time.process_time()
try:
    {call}
except (BitstreamError, MemoryError) as error:
    print(type(error).__name__, str(error))
assert time.process_time() - start < {seconds}
"""


def in_a_sandbox(data: bytes, call: str = "unpack(data)", memory: int = 2**26, seconds: int = 1) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(nvae_codec.__file__).parent.parent)}
    command = [sys.executable, "-c", SANDBOX.format(call=call, memory=memory, seconds=seconds)]
    return subprocess.run(command, input=data, env=environment, capture_output=True, check=True).stdout.decode().strip()


def zeros_deflated(mebibytes: int) -> bytes:
    deflater = zlib.compressobj(1)
    return b"".join([deflater.compress(bytes(2**20)) for _ in range(mebibytes)] + [deflater.flush()])


only_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to limit memory")


@only_linux
@pytest.mark.parametrize(
    "fields, cause",
    [
        (dict(widths=[65_535], heights=[65_535]), "too large: a chunk has 4,294,836,225 pixels"),
        (dict(word_count=WIDE), "truncated: the file ends inside the coded words"),
        (dict(item_count=WIDE, references=[[0]], items=[item(b"x")]), "invalid: the metadata count"),
        (dict(images=WIDE), "too large: the file has more than 1,048,576 images"),
        (dict(images=2**20), "invalid: "),
        (dict(rows=[(WIDE, 1, 0)]), "too large: the file has more than 4,194,304 tile batches"),
        (dict(rows=[(2**22, 1, 0)], row_count=WIDE), "too large: the file has more than 4,194,304 tile batches"),
        (dict(row_count=WIDE), "invalid: "),
        (dict(left=WIDE), "truncated: the file ends where a chunk should begin"),
        (dict(deflated=True, inflated_length=2**24), "invalid: the header does not inflate"),
        (
            dict(references=[[0]], items=[item(b"x", encoding=1, length=2**24)]),
            "invalid: a metadata item does not inflate",
        ),
    ],
)
def test_a_file_of_few_bytes_cannot_claim_much_memory(fields, cause):
    file = craft(**fields)
    assert len(file) < 72
    assert in_a_sandbox(file).startswith(f"BitstreamError {cause}")


@only_linux
def test_a_zlib_bomb_stops_at_the_promised_length():
    bomb = zeros_deflated(128)
    assert in_a_sandbox(bomb, "zlib.decompress(data)").startswith("MemoryError"), "the sandbox does not hold"
    for file, what in (
        (craft(references=[[0]], items=[item(bomb, encoding=1, length=2**21)]), "a metadata item"),
        (START + sealed(b"\x0c" + varint(2**21) + bomb), "the header"),
    ):
        assert in_a_sandbox(file).startswith(f"BitstreamError invalid: {what} does not inflate to the length")


@pytest.mark.thorough
@only_linux
def test_names_that_deflate_well_cannot_claim_much_memory():
    chunks = []
    for left in reversed(range(24)):
        names = [b"%d/%d/" % (left, number) + b"long" * 1000 for number in range(4000)]
        sizes = dict(images=4000, widths=[1] * 4000, heights=[1] * 4000, modes=bytes(4000), checksums=bytes(8000))
        chunks.append(craft_chunk(left=left, first=left == 23, names=names, deflated=True, **sizes))
    file = START + b"".join(chunks)
    assert len(file) < 2**20
    assert in_a_sandbox(START + chunks[0]).startswith("BitstreamError truncated"), "the names of a chunk are allowed"
    refused = in_a_sandbox(file, memory=2**28, seconds=6)
    assert refused == "BitstreamError too large: the file has more than 134,217,728 bytes of inflated headers"


@only_linux
def test_recovering_needs_little_memory_too():
    claims = (
        craft_chunk(left=WIDE, rows=[(WIDE, 1, 0)])
        + craft_chunk(left=3, first=False, images=WIDE)
        + craft_chunk(first=False, words=b"")
    )
    call = "recovery = recover(data); print([loss.chunks for loss in recovery.losses], len(recovery.container.chunks))"
    assert in_a_sandbox(START + claims, call) == f"[1, {WIDE - 4}, 1, 2] 1"


def test_the_container_needs_the_standard_library_only():
    call = "print(*sorted({'numpy', 'torch', 'PIL', 'constriction', 'click'} & set(sys.modules)))"
    probe = f"import sys, nvae_codec.bitstreams.container; {call}"
    environment = os.environ | {"PYTHONPATH": str(Path(nvae_codec.__file__).parent.parent)}
    result = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, check=True)
    assert result.stdout.strip() == b""

"""Ray's actors as workers: the same archives, actors that are killed, a driver that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nvae_codec.collection import Decoding, Encoding, decode_collection, encode_collection
from nvae_codec.crew import Crew, Done
from nvae_codec.errors import ImageError, NvaeCodecError
from nvae_codec.formats.open import write_all
from nvae_codec.image import Image
from nvae_codec.manifest import DONE, KEPT
from nvae_codec.shards import find_archives, find_shards

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'nvae-codec[ray]'")
from nvae_codec.ray_workers import Actor, ray_crew  # noqa: E402

pytestmark = pytest.mark.slow
SHARDS = 4


@pytest.fixture(scope="session", autouse=True)
def cluster():
    """Ray on this machine, as if it had two processors."""
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    from helpers import smooth_tiles  # which actors, who import this file, do not find

    folder = tmp_path_factory.mktemp("shards")
    for number, tiles in enumerate(smooth_tiles(SHARDS * 6, 32).numpy().reshape(SHARDS, 6, 3, 32, 32)):
        (folder / str(number)).mkdir()
        for place, tile in enumerate(tiles):
            image = Image(np.ascontiguousarray(tile.transpose(1, 2, 0)))
            (folder / str(number) / f"{place}.png").write_bytes(write_all(image, ".png"))
    return [str(folder / str(number)) for number in range(SHARDS)]


@pytest.fixture
def encoding(toy_model_path) -> Encoding:
    return Encoding(model=str(toy_model_path), threads=1, payload="neural")


def archives(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.nvb")}


def fails(error: Exception) -> None:
    raise error


def killed_at_first(mark: Path, times: int) -> str:
    done = len(list(mark.iterdir()))
    if done < times:
        (mark / str(done)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def test_actors_make_the_archives_and_images_that_processes_make(shards, encoding, toy_model_path, tmp_path):
    found = find_shards(shards)
    alone = list(encode_collection(found, str(tmp_path / "alone"), encoding, workers=2))
    with ray_crew() as crew:
        assert crew.size == 2
        shared = list(encode_collection(found, str(tmp_path / "shared"), encoding, crew, workers=2))
        coded = find_archives([str(tmp_path / "shared")])
        back = list(decode_collection(coded, str(tmp_path / "back"), Decoding(str(toy_model_path)), crew, workers=2))
    assert {record.status for record in [*alone, *shared, *back]} == {DONE}
    assert len(archives(tmp_path / "alone")) == SHARDS
    assert archives(tmp_path / "shared") == archives(tmp_path / "alone")
    for shard in shards:
        for path in Path(shard).iterdir():
            assert (tmp_path / "back" / Path(shard).name / path.name).read_bytes() == path.read_bytes()


def test_errors_of_actors_are_those_of_processes(tmp_path):
    with ray_crew() as crew:
        with pytest.raises(ImageError, match="^no image$"):
            crew.submit(fails, ImageError("no image")).result()
        assert crew.submit(killed_at_first, tmp_path, 2).result() == "done"
        (tmp_path / "2").touch()
        with pytest.raises(NvaeCodecError, match="killed, 3 times"):
            crew.submit(killed_at_first, tmp_path, 9).result()
        assert crew.done() == Done(0, 0)


def test_an_actor_that_is_killed_in_the_middle_loses_nothing(shards, encoding, tmp_path):
    hired: list[Actor] = []

    def hire() -> Actor:
        hired.append(Actor(1))
        return hired[-1]

    list(encode_collection(find_shards(shards), str(tmp_path / "alone"), encoding, workers=2))
    out = tmp_path / "out"
    with Crew(hire, 2) as crew:
        records = encode_collection(find_shards(shards), str(out), encoding, crew, workers=2)
        first = next(records)
        os.kill(hired[0].process(), signal.SIGKILL)
        rest = list(records)
    assert [record.status for record in (first, *rest)] == [DONE] * SHARDS and len(hired) >= 3
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert sorted(line["shard"] for line in lines) == sorted(shards)
    assert sorted(archives(out)) == [f"{number}.nvb" for number in range(SHARDS)]
    assert {record.status for record in encode_collection(find_shards(shards), str(out), encoding)} == {KEPT}


def test_a_cluster_that_is_not_there_is_named_at_once():
    ray.shutdown()  # so that there is no connection before
    try:
        for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "no-such-host.invalid:6379", "auto"):
            start = time.monotonic()
            with pytest.raises(NvaeCodecError, match=f"^no Ray cluster at {address}: [^\n]+$"):
                with ray_crew(address):
                    pass
            assert time.monotonic() - start < 30
    finally:
        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)


DRIVER = """
import sys
from nvae_codec.collection import Encoding, encode_collection
from nvae_codec.ray_workers import ray_crew
from nvae_codec.shards import find_shards
if __name__ == "__main__":
    model, out, *shards = sys.argv[1:]
    with ray_crew() as crew:
        for record in encode_collection(find_shards(shards), out, Encoding(model, threads=1, payload="neural"), crew):
            print(record.status, flush=True)
"""


def test_a_driver_that_is_killed_goes_on_where_it_was(shards, encoding, tmp_path):
    """Only what it had not finished is coded again; one shard at a time, so it is not more than one."""
    out, script = tmp_path / "out", tmp_path / "driver.py"
    script.write_text(DRIVER)
    command = [sys.executable, str(script), str(encoding.model), str(out), *shards]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None and driver.stdout.readline() == "done\n"
        driver.kill()
    time.sleep(3)  # its actors end by themselves
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.nvb")}
    assert 1 <= len(before) < SHARDS
    again = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert sorted(again) == sorted(["kept"] * len(before) + ["done"] * (SHARDS - len(before)))
    assert all((out / name).stat().st_mtime_ns == time for name, time in before.items())
    list(encode_collection(find_shards(shards), str(tmp_path / "alone"), encoding, workers=2))
    assert archives(out) == archives(tmp_path / "alone")

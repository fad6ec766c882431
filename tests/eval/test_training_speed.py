"""`eval training-speed`: every way in a process of its own."""

import json

import pytest
from terminal import failure, invoke

from nvae_codec.eval import training_speed
from nvae_codec.eval.training_speed import WAYS

pytestmark = pytest.mark.thorough


@pytest.mark.slow
def test_ways_are_measured_and_failures_are_rows(tmp_path):
    first, other, *rest = WAYS
    skipped = [word for way in rest for word in ("--skip", way)]
    options = ["--preset", "toy", "--steps", 3, "--batch-size", 2, "--device", "cpu", "--json", tmp_path / "speed.json"]
    result = invoke("eval", "training-speed", *options, "--set", "num_channels_enc=4", *skipped)
    assert result.exit_code == 0, result.output
    assert f"| {first} | " in result.stdout and "preset toy, batch of 2, " in result.stdout
    document = json.loads((tmp_path / "speed.json").read_text())
    assert list(document["ways"]) == [first, other]
    assert all(each["images_per_second"] > 0 and each["peak_bytes"] > 1e6 for each in document["ways"].values())
    ((way, reason),) = training_speed.measure_ways("toy", [first], device="tpu")
    assert way == first and "there is no device 'tpu'" in reason


def test_mistakes_are_found_before_any_work():
    for arguments, status, reason in (
        (["--preset", "huge"], 2, "There is no preset huge"),
        (["--skip", "fast"], 2, "'fast' is not one of 'float32"),
        (["--set", "width"], 2, "is not NAME=VALUE"),
        (["--set", "width=4"], 1, "a network has no field width; it has image_size"),
        (["--set", "num_channels_enc=x"], 1, "num_channels_enc must be an integer, got 'x'"),
    ):
        assert reason in failure(invoke("eval", "training-speed", *arguments), status)

"""Ledgers: parts that add up to the file, each of them where its cause is; at the terminal and over many images."""

import copy
import dataclasses
import io
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import randomise_batch_norm, smooth_tiles
from PIL import Image as pillow
from terminal import REPOSITORY, documented_keys, failure, invoke

from nvae_codec.bitstreams import container
from nvae_codec.bitstreams.content import RGB
from nvae_codec.codec import Codec
from nvae_codec.coding.ans import Stack
from nvae_codec.coding.chains import Search
from nvae_codec.errors import DriftError, ImageError, ModelError
from nvae_codec.eval.tables import ledger_table
from nvae_codec.formats.open import write_all
from nvae_codec.image import Image
from nvae_codec.integer import model_file
from nvae_codec.integer.convert import convert
from nvae_codec.integer.latent_model import IntegerModel
from nvae_codec.integer.network import IntegerNetwork
from nvae_codec.model.nvae import NVAE
from nvae_codec.model.presets import PRESETS
from nvae_codec.payloads import cutting
from nvae_codec.payloads.neural import EFFORTS
from nvae_codec.rate import ledger as ledger_module
from nvae_codec.rate.ledger import Ledger, ledger
from nvae_codec.training.checkpoint import CONVERTED, FILE_NAME, save_checkpoint
from nvae_codec.training.export import load_float_network

pytestmark = pytest.mark.thorough

QUICK = dict(effort=1, verify=False, learn=False)


def network(**changes) -> NVAE:
    """The preset `toy`, random, but with latents that say something: posteriors are narrower than priors."""
    torch.manual_seed(1)
    model = NVAE(dataclasses.replace(PRESETS["toy"], **changes))
    randomise_batch_norm(model)
    with torch.no_grad():
        for head in model.posterior_heads:
            head.bias[model.config.num_latent_per_group :] -= 2
        for cells in model.flows:
            for cell in cells:
                cell.last.bias.normal_(0, 0.5)
    return model.eval()


def codec_of(exact: IntegerNetwork, name: str = "toy") -> Codec:
    return Codec(IntegerModel(exact), model_file.fingerprint(exact.config, exact.state_dict()), name)


def smooth_image(height: int, width: int, seed: int = 5) -> np.ndarray:
    """Smooth colours, uint8 [H, W, 3]."""
    return smooth_tiles(1, max(height, width), seed)[0].permute(1, 2, 0).numpy()[:height, :width].copy()


@pytest.fixture(scope="module")
def floats() -> NVAE:
    return network()


@pytest.fixture(scope="module")
def exact(floats) -> IntegerNetwork:
    return convert(floats, smooth_tiles(16, 16))


@pytest.fixture(scope="module")
def codec(exact) -> Codec:
    return codec_of(exact)


@pytest.fixture(scope="module")
def file(codec) -> bytes:
    """36 tiles, of which the first takes REC."""
    return codec.compress(smooth_image(96, 96), **QUICK)


@pytest.fixture(scope="module")
def entry(codec, file, floats) -> Ledger:
    return ledger(codec, file, floats)


def differences(first: Ledger, second: Ledger) -> dict[str, float]:
    """The parts that are not the same in both, and by how much."""
    changes = {name: second.parts[name] - bits for name, bits in first.parts.items()}
    return {name: change for name, change in changes.items() if abs(change) > 1e-6}


# The parts

ALBUM = {
    "a/one.png": Image(smooth_image(20, 33), icc=bytes(range(256)) * 2),
    "a/dot.png": Image(smooth_image(1, 1)),
    "grey.png": Image(smooth_image(17, 40)[:, :, 1].copy(), exif=b"II*\0\x08\0\0\0"),
    "b.png": Image(smooth_image(40, 30)),
}


def check_sum(entry: Ledger, data: bytes) -> None:
    assert entry.file_bits == 8 * len(data)
    assert sum(entry.parts.values()) == pytest.approx(entry.file_bits, rel=1e-12)
    assert all(map(math.isfinite, entry.parts.values()))
    assert entry.overhead == pytest.approx(entry.file_bits / entry.negative_elbo_bits - 1)


@pytest.mark.parametrize("changes", [{}, dict(num_nf=1, num_x_bits=5)], ids=["toy", "flows, 5 bits"])
def test_parts_add_up_to_the_file(changes):
    """Of colours and greys, of tiles cut short, of several chunks, with inactive channels."""
    floats = network(**changes)
    exact = convert(floats, smooth_tiles(16, 16))
    exact.latent_inactive[1, 0] = 1
    codec = codec_of(exact)
    for samples in (smooth_image(1, 1), smooth_image(50, 37), smooth_image(50, 37)[:, :, 0].copy()):
        data = codec.compress(samples, **QUICK)
        entry = ledger(codec, data)
        check_sum(entry, data)
        assert entry.integer_network_bits is None and entry.subpixels == samples.size
        assert 0 < entry.coder_bits < 100 and abs(entry.overhead) < (0.2 if samples.size > 3 else 20)
    data = codec.compress_archive(ALBUM.items(), chunk_pixels=8 * 256, **QUICK)
    chunks = len(container.unpack(data).chunks)
    entry = ledger(codec, data)
    check_sum(entry, data)
    assert chunks > 1 and entry.subpixels == sum(each.samples.size for each in ALBUM.values())
    assert 0 < entry.coder_bits < 100 * chunks and abs(entry.overhead) < 0.2
    colours = [(name, each) for name, each in ALBUM.items() if each.samples.ndim == 3]
    data = codec.compress_archive(colours, **QUICK)
    entry = ledger(codec, data, floats)
    check_sum(entry, data)
    assert 0 < abs(entry.integer_network_bits) < 2e-3 * entry.negative_elbo_bits


def test_what_colour_spaces_save_is_beside_the_parts(codec, floats, monkeypatch):
    """The negative ELBO is that of the possible colours; with the same draws, of all it is what the ledger says."""
    file = io.BytesIO()
    pillow.fromarray(smooth_image(40, 50)).save(file, "JPEG", quality=85)
    samples = np.asarray(pillow.open(file))
    data = codec.compress(samples, **QUICK)
    entry, without_floats = ledger(codec, data, floats), ledger(codec, data)
    check_sum(entry, data)
    check_sum(without_floats, data)
    monkeypatch.setattr(cutting, "find_space", lambda samples: RGB)
    as_rgb = codec.compress(samples, **QUICK)
    of_rgb = ledger(codec, as_rgb, floats)
    assert of_rgb.colour_spaces_saved_bits == 0 and entry.colour_spaces_saved_bits > samples.size / 3
    saved = entry.colour_spaces_saved_bits
    assert of_rgb.negative_elbo_bits == pytest.approx(entry.negative_elbo_bits + saved, rel=1e-9)
    assert of_rgb.integer_network_bits == pytest.approx(entry.integer_network_bits, abs=1e-3)
    assert without_floats.colour_spaces_saved_bits == pytest.approx(saved, rel=1e-9)
    assert 8 * (len(as_rgb) - len(data)) == pytest.approx(saved, rel=0.1)
    assert "if all RGB colours were possible" in ledger_table(entry)
    assert "if all RGB colours were possible" not in ledger_table(of_rgb)


def test_the_float_network_is_the_first_part_if_it_is_known(codec, file, floats, entry):
    without = ledger(codec, file)
    check_sum(entry, file)
    assert 0 < abs(entry.integer_network_bits) < 1e-3 * entry.negative_elbo_bits
    assert without.negative_elbo_bits == pytest.approx(entry.negative_elbo_bits + entry.integer_network_bits)
    assert without.parts == {"negative_elbo_bits": without.negative_elbo_bits} | {
        name: bits for name, bits in entry.parts.items() if name not in ("negative_elbo_bits", "integer_network_bits")
    }


def test_what_learning_saves(codec):
    """It is a part below zero, beside the others as they are without."""
    image = smooth_image(96, 96)
    plain, learnt = (codec.compress(image, effort=1, verify=False, learn=learn) for learn in (False, True))
    without, entry = ledger(codec, plain), ledger(codec, learnt)
    check_sum(entry, learnt)
    assert without.learning_bits == 0 > entry.learning_bits
    changes = differences(without, entry)
    assert changes.pop("learning_bits") == pytest.approx(8 * (len(learnt) - len(plain)), rel=0.02)
    assert max(map(abs, changes.values())) < 0.02 * abs(entry.learning_bits), "latents are drawn with other bits"


def test_metadata_and_names_are_told_apart_from_headers(codec):
    samples, icc = smooth_image(20, 33), np.random.default_rng(0).bytes(300)
    plain, described = (ledger(codec, codec.compress(Image(samples, icc=profile), **QUICK)) for profile in (b"", icc))
    changes = differences(plain, described)
    assert changes.pop("metadata_bits") == 8 * len(icc)
    assert list(changes) == ["headers_and_checksums_bits"] and 0 < changes.pop("headers_and_checksums_bits") < 8 * 16
    short, long = (
        ledger(codec, codec.compress_archive([(name, Image(samples))], **QUICK))
        for name in ("a.png", "abcdefghijklm.png")
    )
    assert differences(short, long) == {"headers_and_checksums_bits": 8 * 12}
    assert short.metadata_bits == 0


def test_inactive_channels(exact, file, entry, floats):
    quiet = copy.deepcopy(exact)
    quiet.latent_inactive[1] = 1
    codec = codec_of(quiet)
    data = codec.compress(smooth_image(96, 96), **QUICK)
    inactive = ledger(codec, data, floats)
    assert entry.inactive_channels_bits == 0
    assert not {"negative_elbo_bits", "integer_network_bits"} & set(differences(entry, inactive))
    assert inactive.inactive_channels_bits < -20 * entry.standard_error_bits  # their information is not coded
    saved = 8 * len(data) - entry.file_bits
    assert inactive.inactive_channels_bits == pytest.approx(saved, abs=4 * entry.standard_error_bits)


def test_the_grid(exact, entry, floats):
    """A coarse grid does not resolve what a posterior says, so less is coded: seen where grids are drawn from alone."""
    coarse = copy.deepcopy(exact)
    coarse.latent_steps.fill_(0)
    codec = codec_of(coarse)
    data = codec.compress(smooth_image(96, 96), **QUICK)
    changes = differences(entry, ledger(codec, data, floats))
    assert abs(changes.pop("coder_bits", 0)) < 64
    assert set(changes) == {"grid_bits"} and changes["grid_bits"] < -20 * entry.standard_error_bits
    assert abs(entry.grid_bits) < 4 * entry.standard_error_bits


def test_rec(codec, entry, monkeypatch):
    """A tile alone takes REC. Index bits that it does not need add to that part."""
    monkeypatch.setitem(EFFORTS, 2, Search(EFFORTS[1].trellis_bits, (1.6,)))
    frugal, lavish = (
        ledger(codec, codec.compress(smooth_image(16, 16), effort=effort, verify=False, learn=False))
        for effort in (1, 2)
    )
    assert frugal.grid_bits == lavish.grid_bits == 0 and frugal.standard_error_bits is None
    changes = differences(frugal, lavish)
    assert abs(changes.pop("coder_bits", 0)) < 64
    assert set(changes) == {"rec_bits"} and changes["rec_bits"] > 50
    assert entry.rec_bits != 0 != entry.grid_bits


def test_draws_follow_from_the_images(codec, floats, monkeypatch):
    """Whichever chunk and whichever file they are in, so that files of the same images can be compared."""
    seeds, noise = [], ledger_module.same_noise
    monkeypatch.setattr(ledger_module, "same_noise", lambda drawn: seeds.append(drawn.initial_seed()) or noise(drawn))
    images = [Image(smooth_image(16, 48, seed)) for seed in (5, 6)]
    apart = Ledger.total([ledger(codec, codec.compress(each, **QUICK), floats) for each in images])
    together = ledger(codec, codec.compress_archive(zip("ab", images, strict=True), chunk_pixels=1, **QUICK), floats)
    assert not {"negative_elbo_bits", "integer_network_bits"} & set(differences(apart, together))
    assert len(seeds) == 4 and len(set(seeds)) == 2 and seeds[:2] == seeds[2:]


# What the parts are made of


def test_information_is_what_the_coder_spends():
    """Also at the ends of the grid, to which all beyond them belongs, and where a mean lies there."""
    count, width = 20_000, 8
    means = np.tile([0.0, 0.3, width, -width, 5.0], count // 5)
    for sigma in (0.2, 2.0, 30.0):
        sigmas = np.full(count, sigma)
        stack = Stack.seeded(count)
        before = stack.bits
        points = stack.pop_normals(means, sigmas, width)
        spent = before - stack.bits
        assert ledger_module._normal_information(points, means, sigmas, width) == pytest.approx(spent, rel=1e-3)
    stack = ledger_module._MeteredStack(Stack.seeded(count).words())
    points = stack.pop_standard_normals(count, 4.0, 32)
    assert stack.information == pytest.approx(before - stack.bits, rel=1e-3)
    stack.push_normals(points, np.zeros(count), np.full(count, 4.0), 32)
    assert stack.information == pytest.approx(0, abs=1e-6)
    stack.pop_uniform_bits(100)
    assert stack.information == pytest.approx(100)


def test_impossible_points_have_the_information_that_the_coder_gives_them():
    far = ledger_module._normal_information(np.array([8, 0]), np.array([-8.0, 0.0]), np.full(2, 2.0**-10), 8)
    assert far == pytest.approx(24)


def test_the_standard_error_is_that_of_tile_batches():
    """Its square is right in the mean, for tile batches of any sizes."""
    random, tiles = np.random.default_rng(0), np.array([1, 1, 2, 5, 8])
    squares = [
        ledger_module._standard_error(7.0 * tiles + 3.0 * np.sqrt(tiles) * random.normal(size=5), tiles, 20) ** 2
        for _ in range(4000)
    ]
    assert np.mean(squares) == pytest.approx(3.0**2 * 20, rel=0.05)
    assert ledger_module._standard_error(np.ones(1), np.ones(1), 5) is None


def test_draws_are_independent_and_more_of_them_more_certain(codec):
    data = codec.compress(smooth_image(32, 32), **QUICK)
    once, often = (
        [ledger(codec, data, draws=draws, seed=seed).negative_elbo_bits for seed in range(8)] for draws in (1, 9)
    )
    assert np.std(often) < 0.7 * np.std(once)
    assert ledger(codec, data, seed=3) == ledger(codec, data, seed=3)


def test_totals(entry):
    total = Ledger.total([entry, entry, dataclasses.replace(entry, file_bits=entry.file_bits + 8)])
    assert total.file_bits == 3 * entry.file_bits + 8 and total.subpixels == 3 * entry.subpixels
    assert total.integer_network_bits == pytest.approx(3 * entry.integer_network_bits)
    assert total.standard_error_bits == pytest.approx(3**0.5 * entry.standard_error_bits)
    assert list(total.to_dict()) == [field.name for field in dataclasses.fields(Ledger)] + ["overhead"]
    unknown = dataclasses.replace(entry, integer_network_bits=None, standard_error_bits=None)
    both = Ledger.total([unknown, dataclasses.replace(unknown, standard_error_bits=1.0)])
    assert both.integer_network_bits is both.standard_error_bits is None
    assert "integer_network_bits" not in both.parts
    for mixed in ([entry, unknown], []):
        with pytest.raises(ValueError, match="float network"):
            Ledger.total(mixed)


def test_progress_counts_tiles_and_draws(codec, file):
    calls = []
    ledger(codec, file, draws=2, progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls) and calls[-1] == (3 * 36, 3 * 36) and len(calls) > 10


# What is refused


def test_networks_that_do_not_fit_are_refused(codec, file, floats):
    other = network(num_channels_dec=8)
    with pytest.raises(ModelError, match="the model toy was made of: it has another configuration"):
        ledger(codec, file, other)
    with pytest.raises(ModelError, match=codec.fingerprint):
        ledger(Codec(codec.model, "0123456789abcdef"), file)
    with pytest.raises(ModelError, match="no likelihood for grey"):
        ledger(codec, codec.compress(smooth_image(4, 4)[:, :, 0].copy(), **QUICK), floats)
    broken = copy.deepcopy(floats)
    broken.image_head[1].bias.data.fill_(math.nan)
    with pytest.raises(ModelError, match="negative ELBO of these images is nan bits"):
        ledger(codec, file, broken)
    with pytest.raises(ValueError, match="at least one draw"):
        ledger(codec, file, draws=0)


def test_drift_is_noticed(codec, file):
    content = container.unpack(file)
    (chunk,) = content.chunks
    longer = dataclasses.replace(chunk, words=b"\1\0\0\0" + chunk.words)
    with pytest.raises(DriftError, match="not in the state in which it began"):
        ledger(codec, container.pack(dataclasses.replace(content, chunks=(longer,))))
    image = dataclasses.replace(chunk.images[0], samples_crc32=chunk.images[0].samples_crc32 ^ 1)
    other = dataclasses.replace(chunk, images=(image, *chunk.images[1:]))
    with pytest.raises(DriftError, match="does not have the checksum"):
        ledger(codec, container.pack(dataclasses.replace(content, chunks=(other,))))


def test_drift_of_small_images_is_noticed(codec):
    samples = np.arange(3 * 100, dtype=np.uint8).reshape(3, 10, 10)
    images = [(f"{number}.png", Image(each)) for number, each in enumerate(samples)]
    content = container.unpack(codec.compress_archive(images))
    (chunk,) = content.chunks
    ledger(codec, container.pack(content))
    other = dataclasses.replace(chunk, shared_crc32=chunk.shared_crc32 ^ 1)
    with pytest.raises(DriftError, match="3 decoded small images"):
        ledger(codec, container.pack(dataclasses.replace(content, chunks=(other,))))


def test_the_network_of_a_run_is_the_one_that_was_exported(codec, floats, tmp_path):
    """Export may give batch norms other statistics than the run's checkpoint has."""
    later = copy.deepcopy(floats)
    later.image_head[1].bias.data += 1
    save_checkpoint(tmp_path / FILE_NAME, later)
    bias = later.image_head[1].bias
    for path in (tmp_path, tmp_path / FILE_NAME):
        assert torch.equal(load_float_network(path, codec).image_head[1].bias, bias)
    save_checkpoint(tmp_path / CONVERTED, floats)
    assert torch.equal(load_float_network(tmp_path, codec).image_head[1].bias, floats.image_head[1].bias)
    assert torch.equal(load_float_network(tmp_path / FILE_NAME, codec).image_head[1].bias, bias)
    other = tmp_path / "other.pt"
    save_checkpoint(other, network(num_channels_dec=8))
    with pytest.raises(ModelError, match=f"{re.escape(str(other))}: this is not the float network"):
        load_float_network(other, codec)


def test_a_model_knows_the_network_that_it_was_made_of(exact, floats, tmp_path):
    model, run = tmp_path / "mine.safetensors", tmp_path / "run"
    run.mkdir()
    model.write_bytes(model_file.serialise(exact, origin=floats))
    save_checkpoint(run / CONVERTED, floats)
    codec = Codec.load(model)
    load_float_network(run, codec)
    later = copy.deepcopy(floats)
    next(module for module in later.modules() if isinstance(module, torch.nn.BatchNorm2d)).running_mean += 1e-3
    save_checkpoint(run / FILE_NAME, later)
    with pytest.raises(ModelError, match="run/checkpoint.pt: this is not the float network .* other weights or stat"):
        load_float_network(run / FILE_NAME, codec)
    with pytest.raises(ModelError, match="the model mine was made of: it has other weights"):
        ledger(codec, codec.compress(smooth_image(16, 16), **QUICK), later)


# At the terminal


@pytest.fixture(scope="module")
def model_path(exact, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "mine.safetensors"
    path.write_bytes(model_file.serialise(exact))
    return path


@pytest.fixture(scope="module")
def run_path(floats, tmp_path_factory) -> Path:
    """The folder of a run, as far as its network is asked for."""
    path = tmp_path_factory.mktemp("run")
    save_checkpoint(path / FILE_NAME, floats)
    return path


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name, samples in (("a", smooth_image(20, 33)), ("b", smooth_image(16, 16, seed=6))):
        Path("photos", f"{name}.png").write_bytes(write_all(Image(samples)))
    Path("grey.png").write_bytes(write_all(Image(smooth_image(9, 9)[:, :, 0].copy())))
    return tmp_path


def options(model_path: Path, *more: object) -> list:
    return ["--ledger", "--effort", 1, "--no-verify", "--model", model_path, *more]


def table_rows(lines: list[str]) -> dict[str, float]:
    """Name and bits of every row of a ledger's table."""
    head, rule, *rows = lines
    assert head.split() == ["part", "bits", "bits/sub-pixel", "%", "of", "negative", "ELBO"]
    cells = [re.split(r"\s{2,}", row.strip()) for row in rows if not row.strip().startswith("of which")]
    return {cell[0]: int(cell[1].replace(",", "")) for cell in cells}


def test_a_table_lies_under_the_line_of_its_file(photos, model_path, run_path):
    result = invoke("compress", "photos/a.png", "photos/b.png", *options(model_path, "--float-network", run_path))
    assert result.exit_code == 0 and result.stdout == ""
    lines = result.stderr.splitlines()
    starts = [number for number, line in enumerate(lines) if not line.startswith("  ")]
    assert [lines[start].partition(":")[0] for start in starts] == ["photos/a.nvb", "photos/b.nvb"]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        rows = table_rows(lines[start + 1 : end])
        size = 8 * os.path.getsize(lines[start].partition(":")[0])
        assert list(rows) == [
            "negative ELBO of the float network",
            "integer network",
            "inactive channels",
            "grid",
            "relative entropy coding",
            "learning while coding",
            "coder",
            "other payloads",
            "headers and checksums",
            "metadata",
            "file",
        ]
        assert rows.pop("file") == size == pytest.approx(sum(rows.values()), abs=len(rows))


def test_json_has_the_documented_keys(photos, model_path, run_path):
    command = ["compress", "photos/a.png", "-f", "--json"]
    result = invoke(*command, *options(model_path, "-q"))
    assert result.exit_code == 0 and result.stderr == ""
    report = json.loads(result.stdout)
    single, archive, _, _, keys = documented_keys("compress")
    assert list(report) == [*single, "ledger"] and list(report["ledger"]) == keys
    assert report["ledger"]["file_bits"] == 8 * report["output_bytes"]
    assert report["ledger"]["integer_network_bits"] is None
    codec = Codec.load(model_path)
    data = Path("photos/a.nvb").read_bytes()
    assert report["ledger"] == ledger(codec, data).to_dict()
    more = json.loads(invoke(*command, *options(model_path, "--draws", 2, "--float-network", run_path)).stdout)
    assert more["ledger"] == ledger(codec, data, load_float_network(run_path, codec), draws=2).to_dict()
    result = invoke("compress", "photos", "grey.png", "--archive", "-o", "set.nvb", "--json", *options(model_path))
    report = json.loads(result.stdout)
    assert list(report) == [*archive, "ledger"] and list(report["ledger"]) == keys
    assert result.stderr.startswith("set.nvb: 3 images, ")
    rows = table_rows([line for line in result.stderr.splitlines() if line.startswith("  ")])
    assert list(rows)[0] == "negative ELBO of the integer network" and "integer network" not in rows
    assert rows["file"] == report["ledger"]["file_bits"] == 8 * os.path.getsize("set.nvb")


def test_there_is_no_ledger_where_nobody_asks_for_it_or_reads_it(photos, model_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a ledger")

    monkeypatch.setattr(ledger_module, "ledger", refuse)
    quiet = ["--effort", 1, "--model", model_path]
    plain = invoke("compress", "photos/a.png", "--json", *quiet)
    assert plain.exit_code == 0 and "ledger" not in json.loads(plain.stdout) and "part" not in plain.stderr
    silent = invoke("compress", "photos/b.png", "-q", *options(model_path))
    assert silent.exit_code == 0 and (silent.stdout, silent.stderr) == ("", "")


@pytest.mark.parametrize("arguments", [["--float-network", "run"], ["--draws", 2]])
def test_options_of_a_ledger_need_it(photos, monkeypatch, arguments):
    monkeypatch.setitem(sys.modules, "nvae_codec.codec", None)
    assert "are for a --ledger" in failure(invoke("compress", "photos/a.png", *arguments), status=2)
    assert "--draws" in failure(invoke("compress", "photos/a.png", "--ledger", "--draws", 0), status=2)


def test_a_float_network_that_does_not_fit_is_refused_before_any_coding(photos, model_path, monkeypatch):
    monkeypatch.setattr(Codec, "compress", None)
    monkeypatch.setattr(Codec, "compress_archive", None)
    save_checkpoint(Path("other.pt"), network(num_channels_dec=8))
    for name, reason in (
        ("other.pt", "the model mine was made of"),
        ("missing", "there is no such file"),
        ("grey.png", "not a readable checkpoint"),
    ):
        for archive in ([], ["--archive", "-o", "set.nvb"]):
            reported = failure(
                invoke("compress", "photos/a.png", *archive, *options(model_path, "--float-network", name))
            )
            assert reported.startswith(f"nvae-codec: {name}: ") and reason in reported and reported.count("\n") == 1
    assert not list(Path().rglob("*.nvb"))


def test_grey_images_are_refused_before_they_are_coded_if_there_is_a_float_network(photos, model_path, run_path):
    given = options(model_path, "--float-network", run_path)
    result = invoke("compress", "grey.png", "photos/b.png", "--json", *given)
    assert result.exit_code == 1 and [json.loads(line)["input"] for line in result.stdout.splitlines()] == [
        "grey.png",
        "photos/b.png",
    ]
    assert result.stderr.startswith("nvae-codec: grey.png: a float network has no likelihood for grey images")
    assert not os.path.exists("grey.nvb")
    reported = failure(invoke("compress", "photos", "grey.png", "--archive", "-o", "set.nvb", *given))
    assert reported.startswith("nvae-codec: grey.png: a float network") and reported.count("\n") == 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [(DriftError("why"), "why"), (MemoryError(), "there is not enough memory; a machine with more is needed")],
)
def test_a_ledger_that_fails_leaves_the_file(photos, model_path, monkeypatch, error, reason):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(ledger_module, "ledger", fail)
    reported = failure(invoke("compress", "photos/a.png", *options(model_path)))
    assert reported == f"nvae-codec: photos/a.png: the file was made, but its ledger cannot be: {reason}\n"
    container.unpack(Path("photos/a.nvb").read_bytes())


# Over many images


def evaluated(*arguments: object) -> tuple[int, str, str]:
    result = invoke("eval", "rate", *arguments)
    return result.exit_code, result.stdout, result.stderr


def test_images_can_be_cut_and_left_out(photos, model_path):
    status, _, _ = evaluated("photos", "--images", 1, "--crop", 5, "--effort", 1, "--model", model_path, "-o", "out")
    (path,) = Path("out/files").glob("*.nvb")
    back = Codec.load(model_path).decompress(path.read_bytes()).samples
    assert status == 0 and np.array_equal(back, smooth_image(20, 33)[7:12, 14:19])
    status, _, err = evaluated("photos/b.png", "--crop", 17, "--model", model_path)
    assert status == 1 and err == "nvae-codec: b.png: 16 x 16 pixels are too few for a crop of 17\n"
    status, _, err = evaluated("photos/b.png", "--reduce", 17, "--model", model_path)
    assert status == 1 and err == "nvae-codec: b.png: 16 x 16 pixels cannot be reduced by 17\n"


def test_what_is_wrong_is_named_before_any_coding(photos, model_path, run_path, monkeypatch):
    monkeypatch.setattr(Codec, "compress", None)
    monkeypatch.setattr(Codec, "compress_archive", None)
    Path("bad.png").write_bytes(b"no image")
    shutil.copytree("photos", "twins")
    Path("done").mkdir()
    Path("done/results.json").touch()
    save_checkpoint(Path("other.pt"), network(num_channels_dec=8))
    grey = "grey.png: a float network has no likelihood for grey images"
    for arguments, reason in (
        (["photos", "bad.png"], "bad.png: this is no image"),
        (["missing.png"], "nvae-codec: missing.png: there is no such file"),
        (["photos", "-o", "done"], "done: holds a results.json already; choose another folder"),
        (["photos", "-o", "grey.png"], "grey.png: is a file, not a folder"),
        (["photos", "grey.png", "--float-network", run_path], grey),
        (["photos", "--float-network", "other.pt"], "other.pt: this is not the float network"),
        (["photos", "twins", "--archive"], "two images are called a.png"),
        (["--dataset", "photos"], "no data set 'photos' of images of one size; there are mnist"),
        (["--dataset", "folder"], "no data set 'folder' of images of one size"),
    ):
        status, out, err = evaluated(*arguments, "--model", model_path)
        assert status == 1 and out == "" and err.count("\n") == 1
        assert err.startswith("nvae-codec: ") and reason in err
    for arguments in (
        [],
        ["photos", "--dataset", "cifar10"],
        ["photos", "--data", "x"],
        ["photos", "--draws", 0],
        ["photos", "--images", -1],
        ["photos", "--crop", "1.5"],
    ):
        assert evaluated(*arguments)[0] == 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImageError("why"), "why"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "there is not enough memory; a machine with more is needed",
        ),
    ],
)
def test_failures_name_their_image_and_leave_no_folder(photos, model_path, monkeypatch, error, reason):
    def refuse(self, image, **_):
        raise error

    monkeypatch.setattr(Codec, "compress", refuse)
    status, _, err = evaluated("photos", "--model", model_path, "-o", "out")
    assert (status, err) == (1, f"nvae-codec: a.png: {reason}\n") and not os.path.exists("out")


def test_a_data_set(photos, model_path):
    tiles = smooth_tiles(4, 32).numpy()
    Path("set").mkdir()
    for split, images in (("train", tiles[:2]), ("test", tiles[2:])):
        np.save(f"set/{split}.npy", images)
    status, _, err = evaluated(
        "--dataset", "cifar10", "--data", "set", "--archive", "--effort", 1, "--model", model_path, "-o", "out"
    )
    assert status == 0, err
    content = container.unpack(Path("out/files/archive.nvb").read_bytes())
    decoded = [each.samples for _, each in Codec.load(model_path).decompress_archive(content)]
    assert np.array_equal(np.stack(decoded), tiles[2:].transpose(0, 2, 3, 1))
    assert [image.name for image in content.images] == ["00000", "00001"]


def test_no_extra_and_no_torch_are_needed_to_begin():
    """Ledgers are drawn by `compress` too, which comes without the packages that draw figures."""
    script = """if True:
        import sys
        sys.modules["matplotlib"] = None
        import nvae_codec.cli.ledger, nvae_codec.eval.tables, nvae_codec.eval.rate
        sys.exit("torch" in sys.modules)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 0


# Images of black and white


@pytest.fixture
def digits(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A model for black and white and the run of its float network, beside three images as MNIST has them."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    config = dataclasses.replace(
        PRESETS["mnist-small"], num_channels_enc=4, num_channels_dec=4, num_phase_channels=4, num_phase_cells=1
    )
    floats = NVAE(config).eval()
    exact = convert(floats, (smooth_tiles(4, 28)[:, :1] > 120).to(torch.uint8))
    model, run = Path("digits.safetensors"), Path("run")
    model.write_bytes(model_file.serialise(exact, {"origin": model_file.fingerprint(config, floats.state_dict())}))
    run.mkdir()
    save_checkpoint(run / FILE_NAME, floats)
    levels = smooth_tiles(3, 28, seed=1)[:, 0].numpy().tobytes()
    for name in ("train", "t10k"):
        Path(f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4s3I", b"\0\0\x08\3", 3, 28, 28) + levels)
    return model, run


def test_black_and_white_of_a_data_set_is_measured(digits):
    model, run = digits
    status, _, err = evaluated(
        "--dataset", "mnist", "--data", ".", "--archive", "--model", model, "--float-network", run, "-o", "out"
    )
    assert status == 0, err
    found = json.loads(Path("out/results.json").read_text())
    assert found["data"] == {
        "source": "mnist",
        "num_images": 3,
        "pixels": 3 * 784,
        "subpixels": 3 * 784,
        "bits_per_sample": 1,
    }
    floats, integers = (found["totals"][f"{which}negative_elbo_bits"] for which in ("", "integer_"))
    assert abs(integers / floats - 1) < 1e-3 and found["totals"]["file_bits"] > floats
    content = container.unpack(Path("out/files/archive.nvb").read_bytes())
    for _, image in Codec.load(model).decompress_archive(content):
        assert image.samples.shape == (28, 28) and set(np.unique(image.samples)) == {0, 255}


def test_black_and_white_has_a_ledger_at_the_command_line(digits):
    model, run = digits
    samples = np.where(smooth_tiles(1, 28, seed=2)[0, 0].numpy() > 120, 255, 0).astype(np.uint8)
    Path("digit.png").write_bytes(write_all(Image(samples)))
    for arguments in (["digit.png"], ["digit.png", "--archive", "-o", "set.nvb"]):
        reported = invoke("compress", *arguments, *options(model, "--float-network", run))
        assert reported.exit_code == 0 and "negative ELBO of the float network" in reported.stderr

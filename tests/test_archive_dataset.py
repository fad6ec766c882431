"""Archives as a data set of PyTorch: every image by its number, few chunks decoded, in any process."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import smooth_tiles
from torch.utils.data import DataLoader

from nvae_codec.archive_dataset import ArchiveDataset, ChunkSampler
from nvae_codec.bitstreams import content
from nvae_codec.bitstreams.container import unpack
from nvae_codec.bitstreams.content import ImageEntry
from nvae_codec.codec import Codec
from nvae_codec.errors import BitstreamError, DriftError, ModelError
from nvae_codec.image import Image
from nvae_codec.training.data.archives import archive_files, image_shape
from nvae_codec.training.data.definition import Request
from nvae_codec.training.data.fit import AtLeast, Squares, Unsuitable
from nvae_codec.training.data.open import DATASETS, open_dataset
from nvae_codec.training.data.stored import StoredImages

COUNT = 11


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return smooth_tiles(2 * COUNT, 16).permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def archives(codec, samples, tmp_path_factory) -> list[Path]:
    """Two of eleven images each, in chunks of three."""
    folder = tmp_path_factory.mktemp("archives")
    paths = []
    for part in range(2):
        images = [(f"{number:03}.png", Image(samples[COUNT * part + number])) for number in range(COUNT)]
        paths.append(folder / f"{part}.nvb")
        paths[-1].write_bytes(codec.compress_archive(images, chunk_pixels=3 * 16**2, effort=1))
    return paths


@pytest.fixture
def dataset(archives, toy_model_path) -> ArchiveDataset:
    return ArchiveDataset(archives, toy_model_path)


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """How many images were decoded at each time."""
    found: list[int] = []
    restore = Codec.restore_archive

    def counted(self, content, **options):
        found.append(len(content.images))
        return restore(self, content, **options)

    monkeypatch.setattr(Codec, "restore_archive", counted)
    return found


def test_every_image_has_its_number(dataset, samples):
    assert len(dataset) == 2 * COUNT and [len(chunk) for chunk in dataset.chunks] == [3, 3, 3, 2] * 2
    for index in np.random.default_rng(0).permutation(2 * COUNT):
        assert torch.equal(dataset[int(index)], torch.from_numpy(samples[index]).permute(2, 0, 1))
    assert torch.equal(dataset[-1], dataset[2 * COUNT - 1])
    assert dataset.entry(COUNT + 2).name == "002.png" and dataset.path(COUNT + 2) == dataset.paths[1]
    assert dataset.image(4).samples.dtype == np.uint8
    for index in (2 * COUNT, -2 * COUNT - 1):
        with pytest.raises(IndexError):
            dataset[index]


def test_one_chunk_is_decoded_for_an_image_and_kept_as_long_as_there_is_room(archives, toy_model_path, decoded):
    of_a_chunk = 3 * 3 * 16**2
    dataset = ArchiveDataset(archives, toy_model_path, cache_bytes=2 * of_a_chunk)
    assert decoded == []
    for index in (0, 1, 2, 5, 4, 0, 7, 0):
        dataset[index]
    assert decoded == [3, 3, 3]  # the third took the place of none but the second
    dataset[4]
    assert decoded == [3, 3, 3, 3]
    small = ArchiveDataset(archives, toy_model_path, cache_bytes=0)
    small[0], small[1]
    assert len(decoded) == 5


def test_a_sampler_gives_every_image_once_and_needs_few_chunks_at_a_time(archives, toy_model_path, decoded):
    dataset = ArchiveDataset(archives, toy_model_path, cache_bytes=2 * 3 * 3 * 16**2)
    sampler = ChunkSampler(dataset, window=2, seed=5)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(2 * COUNT)) and len(sampler) == 2 * COUNT
    assert first != second and list(ChunkSampler(dataset, window=2, seed=5)) == first
    assert list(ChunkSampler(dataset, window=2, seed=6)) != first
    for index in first:
        dataset[index]
    assert len(decoded) == len(dataset.chunks)


@pytest.mark.thorough
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_loader_decode_for_themselves(context, dataset, samples):
    dataset[0]  # this process has decoded something, which one that is forked must not use
    loader = DataLoader(
        dataset, batch_size=4, sampler=ChunkSampler(dataset), num_workers=2, multiprocessing_context=context
    )
    found = torch.cat(list(loader))
    expected = torch.from_numpy(samples).permute(0, 3, 1, 2)
    assert sorted(map(bytes, found.numpy())) == sorted(map(bytes, expected.numpy().copy()))


def test_a_data_set_can_be_pickled(dataset):
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[5], dataset[5]) and again.chunks == dataset.chunks


def test_damage_is_found_when_it_is_reached(archives, toy_model_path, tmp_path):
    data = bytearray(archives[0].read_bytes())
    last = unpack(bytes(data)).chunks[-1].words
    data[data.rindex(last)] ^= 1
    path = tmp_path / "damaged.nvb"
    path.write_bytes(data)
    dataset = ArchiveDataset([path], toy_model_path)
    assert len(dataset[0])
    with pytest.raises(BitstreamError, match=r"damaged\.nvb: damaged"):
        dataset[COUNT - 1]
    path.write_bytes(data[:100])
    with pytest.raises(BitstreamError, match=r"damaged\.nvb: truncated"):
        ArchiveDataset([path], toy_model_path)
    path.write_bytes(b"")
    with pytest.raises(BitstreamError, match="empty"):
        ArchiveDataset([path], toy_model_path)
    with pytest.raises(FileNotFoundError):
        ArchiveDataset([tmp_path / "none.nvb"])
    with pytest.raises((ModelError, DriftError)):
        ArchiveDataset(archives)[0]  # its model is not a bundled one


def request_of_squares(root: Path) -> StoredImages:
    """The images of a data set of 16 x 16 pixels."""
    definition = dataclasses.replace(DATASETS["cifar10"], side=16)
    found = archive_files(Request(definition, root, 16, "crop", 0, 2**20, lambda line: None))
    assert found is not None
    return found[0]


def test_networks_are_trained_on_archives(codec, samples, tmp_path, monkeypatch, decoded):
    """Of a folder of them, told apart by their names, or of one, by a hash; images that do not suit are left out."""
    monkeypatch.setattr(Codec, "for_fingerprint", lambda fingerprint, model=None, device=None: codec)
    images = [(f"{number}.png", Image(each)) for number, each in enumerate(samples)]
    odd = [("grey.png", Image(samples[0, ..., 0])), ("small.png", Image(samples[0, :9]))]
    (tmp_path / "train.nvb").write_bytes(codec.compress_archive([*images[:8], *odd], effort=1))
    (tmp_path / "test.nvb").write_bytes(codec.compress_archive(images[8:11], effort=1))
    said: list[str] = []
    dataset = open_dataset("folder", tmp_path, side=16, report=said.append)
    assert len(dataset.training.stored) == 8 and len(dataset.validation.stored) == 3
    assert any("2 of 13 images in archives left out: 1 grey, 1 smaller than 16 x 16" in line for line in said)
    assert decoded == []
    found = [dataset.training.item(index) for index in range(8)]
    assert all(np.array_equal(a, b.transpose(2, 0, 1)) for a, b in zip(found, samples, strict=False))
    # A column of images is as many images.
    column = [("column.png", Image(np.concatenate(samples[:5]))), images[7]]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "one.nvb").write_bytes(codec.compress_archive(column, effort=1))
    columns = open_dataset("folder", tmp_path / "sub", side=16, fit="resize", validation_percent=0)
    assert len(columns.training) == 2
    whole = request_of_squares(tmp_path / "sub")
    assert [np.array_equal(whole[row], samples[row].transpose(2, 0, 1)) for row in range(5)] == [True] * 5
    assert whole.name(3) == "one.nvb/column.png#3" and whole.name(5) == f"one.nvb/{images[7][0]}" and len(whole) == 6
    alone = open_dataset("folder", tmp_path / "train.nvb", side=16)
    assert len(alone.training.stored) + len(alone.validation.stored) == 8


@pytest.mark.parametrize("mode", content.MODES)
def test_images_from_every_colour_space_suit(mode):
    """RGB from a JPEG file, say, is RGB."""
    channels = content.CHANNELS[mode]
    assert image_shape(AtLeast(9) if channels == 3 else Squares(9, 1), ImageEntry(9, 9, mode, 0)) == (1, channels, 9, 9)
    for other in (
        ImageEntry(9, 9, mode, 0, has_alpha=True),
        ImageEntry(9, 9, mode, 0, depth=16),
        ImageEntry(9, 9, content.PALETTE, 0),
    ):
        with pytest.raises(Unsuitable, match="neither 8-bit grey nor RGB"):
            image_shape(AtLeast(9), other)

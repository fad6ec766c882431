"""The batches of a run: what is in each of them follows from (seed, step) alone."""

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from nvae_codec.errors import ImageError
from nvae_codec.training.data import augment
from nvae_codec.training.data.sets import Crops, ImageSet
from nvae_codec.training.data.stored import silent
from nvae_codec.wording import counted

DRAWS = 3  # random integers below 2^63 that an item is given


class Batches:
    """The batches of a run, uint8 [batch_size, C, S, S], endless, from `first_step` on.

    Batch t of all processes together is one of world_size * batch_size items, of which process r gets the r-th part.
    The order of an epoch depends on (seed, epoch), what is random in an item on (seed, epoch, place in the epoch). So
    two processes with B images each see what one process with 2 B images sees. As in the NVAE release, an epoch has
    floor(ceil(N / world_size) / batch_size) steps, and if a last item is missing in the last of them, the epoch's
    first ones are seen again.

    `parts` says of how many items, in the mean, something is done to make them more like other images, in random
    ways: `smaller` are of images at half their size; the others are in `augment.CHANGES`.

    With `workers`, so many processes make batches ahead. Raises ImageError if there are fewer items than a batch
    takes, or if a part of them is to be `smaller` and they are not crops.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        seed: int,
        *,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        parts: Mapping[str, float] | None = None,
    ):
        self.images, self.batch_size, self.seed, self.parts = images, batch_size, seed % 2**64, parts or {}
        self.first_step, self.rank, self.world_size, self.workers = first_step, rank, world_size, workers
        self.steps_per_epoch = -(-len(images) // world_size) // batch_size
        if self.steps_per_epoch == 0:
            processes = f" in each of {world_size} processes" if world_size > 1 else ""
            found = counted(len(images), f"training {images.noun}")
            too_few = "is too few" if len(images) == 1 else "are too few"
            raise ImageError(f"{found} {too_few} for a batch of {batch_size}{processes}")
        if self.parts.get("smaller") and not isinstance(images, Crops):
            raise ImageError("smaller is for training on crops of images, and these images are seen whole")
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __iter__(self) -> Iterator[Tensor]:
        steps = itertools.count(self.first_step)
        if self.workers == 0:
            yield from map(self.batch, steps)
            return
        # Workers are forked where that is the custom, so that they share the images in memory with this process. The
        # loader takes a seed for them from a generator: from one of its own, as torch's belongs to the run.
        method = "fork" if sys.platform == "linux" else None
        loader = torch.utils.data.DataLoader(
            _Worker(self),
            batch_size=None,
            sampler=steps,
            num_workers=self.workers,
            multiprocessing_context=method,
            generator=torch.Generator(),
        )
        for batch, unreadable in loader:
            for number, why in unreadable.items():
                self.images.note(number, why)
            if isinstance(batch, str):
                raise ImageError(batch)
            yield batch

    def batch(self, step: int) -> Tensor:
        """This process's batch in one step, computed here."""
        epoch, number = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.images))
        order = self._order[1]
        size = self.world_size * self.batch_size
        # numpy takes [s, e] and [s, e, 0] for the same seed, hence the 1.
        draws = np.random.default_rng([self.seed, epoch, 1 + number]).integers(2**63, size=(size, DRAWS))
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        places = np.arange(number * size, (number + 1) * size)[mine] % len(order)
        smaller, _ = self._chosen("smaller", epoch, number, 0)
        batch = _stacked(self.images, order[places].tolist(), draws[mine].tolist(), smaller[mine].tolist())
        for place, (name, change) in enumerate(augment.CHANGES.items(), 1):
            chosen, seeds = self._chosen(name, epoch, number, place)
            for image, chosen_here, seed in zip(batch.numpy(), chosen[mine], seeds[mine], strict=True):
                if chosen_here:
                    image[:] = change(image, np.random.default_rng(seed))
        return batch

    def _chosen(self, name: str, epoch: int, number: int, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Which items of all processes a change is made to, bool [n], and a seed for each, int64 [n].

        Drawn apart, each change with a last number of its own: without it, batches are what they are with it.
        """
        size, part = self.world_size * self.batch_size, self.parts.get(name, 0)
        if not part:
            return np.zeros(size, dtype=bool), np.zeros(size, dtype=np.int64)
        random = np.random.default_rng([self.seed, epoch, 1 + number, 1 + place])
        return random.random(size) < part, random.integers(2**63, size=size)


class _Worker(torch.utils.data.Dataset):
    """Batches by number, for torch's loader; with each, which images were found unreadable since the last one."""

    def __init__(self, batches: Batches):
        self.batches = batches

    def __getitem__(self, step: int) -> tuple[Tensor | str, dict[int, str]]:
        images = self.batches.images
        images.report = silent  # in this copy: the first process reports
        known = set(images.unreadable)
        try:
            batch: Tensor | str = self.batches.batch(step)
        except ImageError as error:  # the loader would dress it in a traceback
            batch = str(error)
        return batch, {number: why for number, why in images.unreadable.items() if number not in known}


def fixed_batch(images: ImageSet, count: int, seed: int = 0) -> Tensor:
    """uint8 [count, C, S, S]: the validation form of `count` items drawn without replacement; all, if there are fewer.

    The first of a larger batch are those of a smaller one.
    """
    indices = np.random.default_rng(seed).permutation(len(images))[:count].tolist()
    return _stacked(images, indices, [None] * len(indices), [False] * len(indices))


def _stacked(
    images: ImageSet, indices: list[int], draws: Sequence[Sequence[int] | None], smaller: Sequence[bool]
) -> Tensor:
    batch = np.empty((len(indices), *images.shape), dtype=np.uint8)
    for place, index, draw, small in zip(batch, indices, draws, smaller, strict=True):
        place[:] = images.item(index, draw, smaller=small)
    return torch.from_numpy(batch)

"""Where the time goes: images through the codec in memory, with a clock on every stage."""

import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from nvae_codec.bitstreams.container import unpack
from nvae_codec.errors import DriftError, enough_memory
from nvae_codec.formats.open import write_all
from nvae_codec.image import Image

from .items import Item
from .memory import peak_bytes
from .printed import Bench, Direction, Forward, Operator
from .progress import Report, silent

if TYPE_CHECKING:
    import torch

    from nvae_codec.codec import Codec
    from nvae_codec.integer.latent_model import IntegerModel
    from nvae_codec.integer.network import IntegerNetwork

FEATURES, PIXELS, CODER, LEARNING = "features", "pixels", "coder", "learning"
BATCH_SIZE = 16  # of the forward passes that are compared


@contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """So many programs beside this one that want a processor each, all the time."""
    code = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"
    programs: list[subprocess.Popen] = []
    try:
        for _ in range(count):
            programs.append(subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL))
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


class TimedModel:
    """An `IntegerModel` with a clock on what the coder asks it for: features, every group, pixels."""

    def __init__(self, model: "IntegerModel", clock: _Clock):
        self._model, self._clock = model, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def features(self, draft: Any) -> Any:
        with self._clock(FEATURES):
            return self._model.features(draft)

    def pixel_phases(self, *arguments: Any) -> Iterator[np.ndarray]:
        phases = self._model.pixel_phases(*arguments)
        while True:
            with self._clock(PIXELS):  # and not while the coder has the parameters
                parameters = next(phases, None)
            if parameters is None:
                return
            yield parameters

    def _group(self, method: str, group: int, *arguments: Any) -> Any:
        with self._clock(f"group {group}"):
            return getattr(self._model, method)(group, *arguments)

    def prior(self, group: int, *arguments: Any) -> Any:
        return self._group("prior", group, *arguments)

    def posterior(self, group: int, *arguments: Any) -> Any:
        return self._group("posterior", group, *arguments)

    def flow(self, group: int, *arguments: Any) -> Any:
        return self._group("flow", group, *arguments)

    def unflow(self, group: int, *arguments: Any) -> Any:
        return self._group("unflow", group, *arguments)

    def update(self, group: int, *arguments: Any) -> Any:
        return self._group("update", group, *arguments)


@dataclass(frozen=True)
class Timing:
    """Seconds of one direction by stage; the coder's are all that are not the network's."""

    seconds: float
    stages: dict[str, float]


@enough_memory("smaller images need less")
def bench(
    model: str | Path | None,
    items: Sequence[Item],
    *,
    archive: bool = False,
    effort: int | None = None,
    learn: bool = True,
    repeat: int = 2,
    workers: int = 1,
    device: "torch.device | None" = None,
    float_network: Path | None = None,
    profile: bool = False,
    beside: int = 0,
    report: Report = silent,
) -> Bench:
    """Read the images, compress them one by one or as an archive, decompress, compare: the fastest of `repeat` runs.

    With several `workers`, which only an archive can have, the seconds have no stages, and include the start of these
    processes. What learning while coding takes, unless `learn` is false, is the difference to as many runs without it.
    Reading and writing files is timed once, beside them. `device` is a torch.device; None: the processor.
    `float_network` is the run that the model was made of; a forward pass of both networks is then compared. `profile`
    looks at the first image's operators. `beside` programs want a processor each meanwhile. Raises DriftError if other
    samples come back, and as reading and coding do.
    """
    with busy_programs(beside):
        start = time.perf_counter()
        clock, codec = _Clock(), _load(model, device)
        start_seconds = time.perf_counter() - start
        codec.payload.model = cast("IntegerModel", TimedModel(codec.model, clock))
        start = time.perf_counter()
        images = [(f"{number}", Image(item.load())) for number, item in enumerate(items)]
        read_seconds = time.perf_counter() - start
        runs, plain = (_Runs(codec, clock, images, archive, effort, learns, workers) for learns in (learn, False))
        compares = learn and workers == 1
        for turn in range(repeat):
            report(f"run {turn + 1} of {repeat}")
            runs.run()
            if compares:
                plain.run()
        around = _time_files(runs.files, runs.samples)
        peak = peak_bytes()
        import torch

        from nvae_codec.coding.compiled.library import load

        raw_bytes = sum(image.samples.size for _, image in images)

        def direction(timings: Sequence[Timing], without: Sequence[Timing], read: float, write: float) -> Direction:
            best = min(timings, key=lambda each: each.seconds)
            stages = dict(best.stages)
            if without:
                stages[LEARNING] = best.stages[CODER] - min(each.stages[CODER] for each in without)
                stages[CODER] -= stages[LEARNING]
            return Direction(
                seconds=best.seconds,
                raw_megabytes_per_second=raw_bytes / best.seconds / 1e6,
                images_per_second=len(images) / best.seconds,
                stage_seconds=stages if workers == 1 else None,
                read_seconds=read,
                write_seconds=write,
            )

        return Bench(
            model=codec.name,
            kernel=kernel(codec.model.network),
            compiled=load() is not None,
            device=str(codec.model.network.device),
            threads=torch.get_num_threads(),
            beside=beside,
            workers=workers,
            num_images=len(images),
            raw_bytes=raw_bytes,
            file_bytes=sum(map(len, runs.files)),
            start_seconds=start_seconds,
            compress=direction(runs.encoded, plain.encoded, read_seconds, around["write"]),
            decompress=direction(runs.decoded, plain.decoded, around["read"], around["write images"]),
            peak_memory_bytes=peak if workers == 1 else None,
            forward=None if float_network is None else time_forward(model, float_network, repeat, device),
            profile=profile_compression(model, items[0], effort, device) if profile else None,
        )


class _Runs:
    """Images through a codec and back, in memory, several times; the last files and samples are kept."""

    def __init__(
        self,
        codec: "Codec",
        clock: _Clock,
        images: Sequence[tuple[str, Image]],
        archive: bool,
        effort: int | None,
        learn: bool,
        workers: int,
    ):
        self.codec, self.clock, self.images = codec, clock, images
        self.archive, self.workers = archive, workers
        self.settings: dict[str, Any] = dict(effort=effort, learn=learn, verify=False, payload="neural")
        self.encoded: list[Timing] = []
        self.decoded: list[Timing] = []
        self.files: list[bytes] = []
        self.samples: list[np.ndarray] = []

    def run(self) -> None:
        """Once more. Raises DriftError if other samples come back."""
        timing, self.files = _timed(self.clock, self._encode)
        self.encoded.append(timing)
        timing, self.samples = _timed(self.clock, self._decode)
        self.decoded.append(timing)
        if not all(np.array_equal(now, was.samples) for now, (_, was) in zip(self.samples, self.images, strict=True)):
            raise DriftError("other samples came back")

    def _encode(self) -> list[bytes]:
        if self.archive:
            count = len(self.images)
            return [self.codec.compress_archive(iter(self.images), count, workers=self.workers, **self.settings)]
        return [self.codec.compress(image, **self.settings) for _, image in self.images]

    def _decode(self) -> list[np.ndarray]:
        return [
            image.samples
            for data in self.files
            for _, image in self.codec.decompress_archive(unpack(data, max_pixels=sys.maxsize), workers=self.workers)
        ]


def _time_files(files: Sequence[bytes], samples: Sequence[np.ndarray]) -> dict[str, float]:
    """The seconds for writing .nvb files, for reading them, and for writing the images as PNG files."""
    clock = _Clock()
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.nvb" for number in range(len(files))]
        with clock("write"):
            for path, data in zip(paths, files, strict=True):
                path.write_bytes(data)
        with clock("read"):
            for path in paths:
                path.read_bytes()
        with clock("write images"):
            for number, each in enumerate(samples):
                (Path(folder) / f"{number}.png").write_bytes(write_all(Image(each)))
    return clock.seconds


def _load(model: str | Path | None, device: "torch.device | None") -> "Codec":
    from nvae_codec.codec import Codec
    from nvae_codec.integer.kernels import CPU

    return Codec.load(model, device or CPU)


def profile_compression(
    model: str | Path | None, item: Item, effort: int | None, device: "torch.device | None" = None
) -> list[Operator]:
    """Operators of PyTorch and calls to the entropy coder while an image is compressed, the slowest first."""
    from torch.autograd.profiler import record_function
    from torch.profiler import ProfilerActivity, profile

    from nvae_codec.coding.ans import Stack

    codec, image = _load(model, device), Image(item.load())
    genuine = {name: getattr(Stack, name) for name in dir(Stack) if name.startswith(("push_", "pop_"))}

    def recorded(name: str) -> Callable:
        def call(*arguments: Any) -> Any:
            with record_function(name):
                return genuine[name](*arguments)

        return call

    codec.compress(image, effort=effort, verify=False, payload="neural")  # warms up
    try:
        for name in genuine:
            setattr(Stack, name, recorded(name))
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
            codec.compress(image, effort=effort, verify=False, payload="neural")
    finally:
        for name, method in genuine.items():
            setattr(Stack, name, method)
    found = [
        Operator(operator=each.key, calls=each.count, seconds=each.self_cpu_time_total / 1e6)
        for each in profiler.key_averages()
    ]
    return sorted(found, key=lambda each: -each.seconds)


def _timed(clock: _Clock, function: Callable) -> tuple[Timing, list]:
    clock.seconds.clear()
    start = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - start
    stages = dict(sorted(clock.seconds.items()))
    return Timing(seconds, stages | {CODER: seconds - sum(stages.values())}), result


def kernel(network: "IntegerNetwork") -> str:
    """What convolutions of the integer network are computed with, the most frequent first."""
    from nvae_codec.integer.conv import Conv

    names = [str(op.carrier).removeprefix("torch.") for op in network.ops() if isinstance(op, Conv)]
    return ", ".join(sorted(set(names), key=names.count, reverse=True))


def time_forward(model: str | Path | None, run: Path, repeat: int, device: "torch.device | None" = None) -> Forward:
    """One forward pass of the integer network beside that of the float network that it was made of, in turns.

    A float network that rounds its activations does not do so here: that is for training.
    """
    import torch

    from nvae_codec.integer.fake_quant import unrounded
    from nvae_codec.model.descent import Descent
    from nvae_codec.model.nvae import unit_range
    from nvae_codec.tiling import Lattice
    from nvae_codec.training.export import load_float_network

    codec = _load(model, device)
    exact, floats = codec.model.network, unrounded(load_float_network(run, codec)).to(codec.model.network.device)
    side = codec.model.tile_side
    samples = torch.randint(0, 256, (BATCH_SIZE, 3, side, side), generator=torch.Generator().manual_seed(0))
    samples = samples.to(torch.uint8)
    latents = [
        torch.zeros(BATCH_SIZE, *codec.model.group_shape(group), device=exact.device)
        for group in range(codec.model.num_groups)
    ]
    images = {
        exact: torch.from_numpy(codec.model.likelihood.network_input(samples.numpy())).to(exact.device),
        floats: unit_range(codec.model.network.config, samples.to(exact.device)),
    }
    best = dict.fromkeys(images, float("inf"))
    with torch.inference_mode():
        for _ in range(repeat + 1):  # the first one warms up
            for network, x in images.items():
                start = time.perf_counter()
                draft = network.draft(BATCH_SIZE, partial(Lattice.of, values=x))
                descent = Descent(network, BATCH_SIZE, network.features(draft))
                for step in descent:
                    _ = step.posterior
                    step.latents = latents[step.group]
                for _ in network.pixel_phases(descent.state, draft):
                    pass
                if x.is_cuda:
                    torch.cuda.synchronize(x.device)
                best[network] = min(best[network], time.perf_counter() - start)
    return Forward(
        batch_size=BATCH_SIZE,
        integer_seconds=best[exact],
        float_seconds=best[floats],
        integer_over_float=best[exact] / best[floats],
    )

"""`pixels.c` as Python sees it. Only this file knows ctypes."""

import ctypes
import math
import os
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nvae_codec.coding import learning
from nvae_codec.coding.blocks import Pixels
from nvae_codec.coding.compiled.compiler import LIBRARY, fingerprint
from nvae_codec.coding.learning import PLANES, Rule
from nvae_codec.colour.spaces import ColourSpace
from nvae_codec.likelihoods.layout import PARAMETERS_PER_COMPONENT
from nvae_codec.likelihoods.likelihood import Decisions, IntegerLikelihood
from nvae_codec.likelihoods.mixture import SCORE_BITS, IntegerMixture
from nvae_codec.likelihoods.tables import MixtureTables

MAX_COMPONENTS = 64  # as in block.h
TRIED = 256  # pixels that scores are compared of
HAVE_AVX = ("AVX2", "AVX512")  # as torch calls what a processor can do
SWITCH = "NVAE_CODEC_COMPILED"  # an environment variable: 0 means to code without


class _Mixture(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("components", "bits", "residual", "weights", "inverse_scales")),
        *((name, c_void_p) for name in ("weight", "inverse_scale", "coefficient", "sigmoid")),
    ]


class _Space(Structure):
    _fields_ = [
        *((name, c_double) for name in ("of_green", "of_blue")),
        *((name, c_void_p) for name in ("edges_of_cr", "lines", "edges_of_cb", "grey")),
    ]


class _Rule(Structure):
    _fields_ = [
        *(
            (name, c_int32)
            for name in ("neighbours", "valued", "crossed", "near", "experts", "rate", "memory", "nearby")
        ),
        *((name, c_int32 * learning.MAX_EXPERTS) for name in ("shift", "narrowing")),
        *((name, c_double) for name in ("coarse", "ridge")),
        ("sizes", c_double * (learning.SIZES - 1)),
        ("ratios", c_double * (learning.RATIOS - 1)),
        ("logarithms", c_void_p),
    ]


class _Canvas(Structure):
    _fields_ = [(name, c_void_p * learning.PLANES) for name in ("errors", "values", "ratios", "gains")]


class _Sizes(Structure):
    names = ("mixture", "space", "rule", "learnt", "canvas")
    _fields_ = [(name, c_int64) for name in names]


def _declared(library: Any) -> Any:
    """The library with its functions' arguments declared; None if it was compiled from another source."""
    pointers = {
        "block_new": (c_void_p, [c_void_p, c_void_p, c_int]),
        "block_free": (None, [c_void_p]),
        "block_start": (None, [c_void_p, c_void_p, c_void_p, c_int, c_void_p, c_void_p, c_int]),
        "block_plane": (None, [c_void_p, c_void_p, c_void_p]),
        "block_masses": (None, [c_void_p, c_void_p, c_void_p, c_void_p]),
        "block_next": (None, [c_void_p, c_void_p, c_int, c_void_p, c_void_p]),
        "block_last": (None, [c_void_p, c_void_p, c_void_p]),
        "block_known": (None, [c_void_p, c_void_p, c_void_p]),
        "pixel_scores": (None, [c_void_p, c_void_p, c_void_p, c_int, c_int, c_void_p]),
        "pixels_corrected": (None, [c_void_p, c_void_p, c_void_p, c_int, c_int, c_void_p]),
        "block_sizes": (None, [POINTER(_Sizes)]),
        "block_source": (c_char_p, []),
        "use_wide": (None, [c_int]),
    }
    for name, (result, arguments) in pointers.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if library.block_source().decode() != fingerprint():
        return None
    sizes = _Sizes()
    library.block_sizes(byref(sizes))
    expected = [ctypes.sizeof(each) for each in (_Mixture, _Space, _Rule)]
    expected += [learning.LEARNT.itemsize, ctypes.sizeof(_Canvas)]
    assert [getattr(sizes, name) for name in _Sizes.names] == expected, "structures are declared here as in pixels.c"
    library.use_wide(torch.backends.cpu.get_cpu_capability() in HAVE_AVX)
    return library


@cache
def load(path: Path = LIBRARY) -> Any:
    """The compiled functions; None where they were not built, do not load, or were compiled from another source."""
    if os.environ.get(SWITCH) == "0" or not path.exists():
        return None
    try:
        return _declared(ctypes.CDLL(str(path)))
    except (OSError, AttributeError):
        return None


def _address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


class _Doubles:
    """Tables as contiguous doubles that live as long as this."""

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []

    def address(self, values: Any, kind: type = np.float64) -> int:
        self._kept.append(np.ascontiguousarray(values, dtype=kind))
        return self._kept[-1].ctypes.data


def _mixture(tables: MixtureTables, components: int, doubles: _Doubles) -> _Mixture:
    """The tables, which live as long as `doubles`."""
    weight, inverse, coefficient, sigmoid = (tensor.numpy() for tensor in tables.tensors)
    return _Mixture(
        components,
        tables.num_bits,
        tables.residual,
        len(weight),
        len(inverse),
        *map(doubles.address, (weight, inverse, coefficient)),
        doubles.address(sigmoid, np.float32),
    )


class CompiledScores:
    """`IntegerMixture.scores` and `corrected` of tensors as networks have them.

    All are [B, C, h, w] with whole numbers below 2**24; the results are float32, in `torch.channels_last`. Raises
    ValueError for tensors that do not fit each other.
    """

    def __init__(self, library: Any, tables: MixtureTables, components: int):
        self._library, self._tables, self._doubles = library, tables, _Doubles()
        self._mixture = _mixture(tables, components, self._doubles)

    def __reduce__(self) -> tuple:
        """Networks are copied, also into other processes, where the library lies elsewhere."""
        return CompiledScores.of, (self._tables, self._mixture.components)

    @classmethod
    def of(cls, likelihood: IntegerLikelihood, components: int) -> "CompiledScores | None":
        """None where nothing is compiled, or computes something else than Python, or the likelihood has no scores."""
        library = load()
        if library is None or not isinstance(likelihood, IntegerMixture) or components > MAX_COMPONENTS:
            return None
        found = cls(library, likelihood, components)
        return found if found._agrees(likelihood) else None

    def scores(self, parameters: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Of pixels [B, 3, h, w] as `ImageInput` gives them, [B, 9, h, w]."""
        return self._call(self._library.pixel_scores, parameters, x, PLANES, len(SCORE_BITS))

    def corrected(self, parameters: torch.Tensor, corrections: torch.Tensor) -> torch.Tensor:
        """Parameters [B, 10 M, h, w] with corrections [B, M + 9, h, w]."""
        given = self._mixture.components + 3 * PLANES
        return self._call(self._library.pixels_corrected, parameters, corrections, given, parameters.shape[1])

    def _call(
        self, function: Any, parameters: torch.Tensor, beside: torch.Tensor, given_channels: int, channels: int
    ) -> torch.Tensor:
        batch, numbers, *sides = parameters.shape
        if numbers != PARAMETERS_PER_COMPONENT * self._mixture.components or len(sides) != 2:
            raise ValueError(f"{tuple(parameters.shape)} are no parameters of {self._mixture.components} components")
        if beside.shape != (batch, given_channels, *sides):
            raise ValueError(f"{tuple(beside.shape)} does not go with parameters of {tuple(parameters.shape)}")
        given, other = (
            each.to("cpu", torch.float32).contiguous(memory_format=torch.channels_last) for each in (parameters, beside)
        )
        found = torch.empty(batch, channels, *sides).contiguous(memory_format=torch.channels_last)
        count, threads = batch * math.prod(sides), torch.get_num_threads()
        function(byref(self._mixture), given.data_ptr(), other.data_ptr(), count, threads, found.data_ptr())
        return found

    def _agrees(self, mixture: IntegerMixture) -> bool:
        """Whether the results are those of Python, of numbers from one end to the other."""
        random, components = np.random.default_rng(0), self._mixture.components
        spread = 2.0 ** random.uniform(1, 16, TRIED)
        given, corrections = (
            np.rint(random.normal(0, spread, (count, TRIED))).clip(-32767, 32767).astype(np.int32)
            for count in (PARAMETERS_PER_COMPONENT * components, components + 3 * PLANES)
        )
        samples = random.integers(0, 1 << mixture.num_bits, (PLANES, TRIED))
        largest = (1 << mixture.num_bits) - 1
        parameters, x, of_pixels = (
            torch.from_numpy(values).float().t().view(1, 1, TRIED, -1).permute(0, 3, 1, 2)
            for values in (given, 2 * samples - largest, corrections)
        )
        pairs = (
            (self.scores(parameters, x), mixture.scores(given, samples)),
            (self.corrected(parameters, of_pixels), mixture.corrected(given, corrections)),
        )
        return all(np.array_equal(found[0, :, 0].numpy(), expected) for found, expected in pairs)


class CompiledPixels:
    """What blocks of one model's pixels have in common. Raises MemoryError where a block finds no room."""

    def __init__(self, library: Any, tables: MixtureTables, components: int, rule: Rule):
        self.library, self.rule = library, rule
        self._doubles = _Doubles()
        self.mixture = _mixture(tables, components, self._doubles)
        unused = [0] * (learning.MAX_EXPERTS - rule.experts)
        self.rule_fields = _Rule(
            *(rule.neighbours, rule.valued, rule.crossed, rule.near, rule.experts, rule.rate, rule.memory, rule.nearby),
            (c_int32 * learning.MAX_EXPERTS)(*rule.shifts, *unused),
            (c_int32 * learning.MAX_EXPERTS)(*rule.narrowings, *unused),
            rule.coarse(components),
            rule.ridge,
            (c_double * (learning.SIZES - 1))(*learning.SIZE_LIMITS),
            (c_double * (learning.RATIOS - 1))(*learning.RATIO_LIMITS),
            self._doubles.address(learning.logarithms()),
        )
        self._spaces: dict[int, _Space] = {}

    def space(self, space: ColourSpace | None) -> Any:
        if space is None:
            return None
        if id(space) not in self._spaces:
            self._spaces[id(space)] = _Space(
                *space.direction,
                *map(
                    self._doubles.address,
                    (space.edges_of_cr, space.lines, space.edges_of_cb, space.luma * space.luma_of.clip(min=0)),
                ),
            )
        return byref(self._spaces[id(space)])


class CompiledBlock:
    """See `coding.blocks.Block`."""

    def __init__(self, pixels: CompiledPixels, capacity: int, learns: bool):
        self._pixels, self._library = pixels, pixels.library
        self._block = self._library.block_new(
            byref(pixels.mixture), byref(pixels.rule_fields) if learns else None, capacity
        )
        if not self._block:
            raise MemoryError
        self._canvas: Any = None

    def __del__(self) -> None:
        if getattr(self, "_block", None):
            self._library.block_free(self._block)

    def start(self, pixels: Pixels) -> None:
        self._kept = pixels
        self._count, canvas = pixels.parameters.shape[1], pixels.canvas
        self._canvas = None
        if canvas is not None:
            rows = (
                (c_void_p * learning.PLANES)(*(plane.ctypes.data for plane in each))
                for each in (canvas.errors, canvas.values, canvas.ratios, canvas.gains)
            )
            self._canvas = byref(_Canvas(*rows))
        self._library.block_start(
            self._block,
            self._pixels.space(pixels.space),
            _address(pixels.parameters),
            self._count,
            _address(pixels.at),
            _address(pixels.neighbours),
            torch.get_num_threads(),
        )

    def plane(self, learnt: np.ndarray | None) -> None:
        self._learnt = _address(learnt)
        self._library.block_plane(self._block, self._learnt, self._canvas)

    def masses(self, values: np.ndarray) -> np.ndarray:
        found = np.empty((self._pixels.mixture.bits, self._count, 2), dtype=np.float32)
        self._library.block_masses(self._block, self._learnt, _address(values), _address(found))
        return found

    def decide(self) -> Decisions:
        masses = np.empty((self._count, 2), dtype=np.float32)
        to, bits = _address(masses), None
        for bit in reversed(range(self._pixels.mixture.bits)):
            self._library.block_next(self._block, self._learnt, bit, _address(bits), to)
            bits = yield masses
        values = np.empty(self._count, dtype=np.uint8)
        self._library.block_last(self._block, _address(bits), _address(values))
        return values

    def known(self) -> None:
        self._library.block_known(self._block, self._learnt, self._canvas)

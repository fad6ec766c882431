"""What an image is to the codec: samples, what they mean, and what its file said besides."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nvae_codec.errors import ImageError

GREY, RGB, PALETTE, CMYK = "grey", "RGB", "palette", "CMYK"
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, CMYK: 4}  # without alpha
COLOURS_OF = {1: GREY, 2: GREY, 3: RGB, 4: RGB}  # what arrays are taken for, by their channels: 2 and 4 have alpha
MAX_DEPTH = 16
MAX_PALETTE_DEPTH = 8
ACCEPTED = "accepted is uint8 or uint16 [H, W] or [H, W, 2 to 4], with at least one pixel"


@dataclass(frozen=True, eq=False)
class Image:
    """Samples, uint8 or uint16 [H, W] or, of more than one channel, [H, W, C], and what its file said besides.

    Samples are below 2^`depth` and uint16 where it is above 8; by default it is 8 or 16, by their type. An alpha
    channel comes last and is not multiplied into the colours. Samples of a palette are numbers of its colours; in
    some readable files a few lie beyond its end. `colours` is one of CHANNELS; by default the channels decide.

    All metadata are kept byte for byte, and empty if absent: `exif` begins with its byte-order mark, `icc` is a colour
    profile, `xmp` a packet. `transparency` is laid out as in PNG's tRNS chunk: of a palette alphas, otherwise one
    colour. `wrapping` is what a file of its `format` said besides, in that format's own terms (`nvae_codec.formats`).

    `file` is the whole file that the image came from, if that is at hand. Where `is_whole`, samples and metadata say
    all that it says; otherwise only the file itself does, as of a JPEG file, whose samples another decoder may see
    otherwise.

    Raises ImageError for what contradicts itself, or is no image.
    """

    samples: np.ndarray
    exif: bytes = b""
    icc: bytes = b""
    xmp: bytes = b""
    colours: str = ""
    depth: int = 0
    palette: bytes = b""  # red, green and blue of each colour
    transparency: bytes = b""
    format: str = ""
    wrapping: bytes = b""
    file: bytes = b""
    is_whole: bool = True

    def __post_init__(self) -> None:
        _check_array(self.samples)
        object.__setattr__(self, "colours", self.colours or COLOURS_OF[self.channels])
        object.__setattr__(self, "depth", self.depth or 8 * self.samples.dtype.itemsize)
        self._check_colours()
        self._check_depth()
        self._check_transparency()

    @property
    def channels(self) -> int:
        """How many, 1 to 4, with that of alpha."""
        return 1 if self.samples.ndim == 2 else self.samples.shape[2]

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.channels > CHANNELS[self.colours]

    @property
    def is_plain(self) -> bool:
        """Whether it is 8-bit grey or RGB without transparency."""
        return self.colours in (GREY, RGB) and self.depth == 8 and not self.has_alpha and not self.transparency

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The samples, for numpy."""
        return np.array(self.samples, dtype=dtype, copy=copy)

    @property
    def _name(self) -> str:
        return f"{'an' if self.colours == RGB else 'a'} {self.colours} image"

    def _check_colours(self) -> None:
        if self.colours not in CHANNELS:
            raise ImageError(f"an image cannot have the colours {self.colours!r}; known are {', '.join(CHANNELS)}")
        extra = self.channels - CHANNELS[self.colours]
        if extra not in ((0, 1) if self.colours in (GREY, RGB) else (0,)):
            raise ImageError(f"{self._name} does not have {self.channels} channels")
        if (self.colours == PALETTE) != bool(self.palette):
            raise ImageError(f"{self._name} {'needs a' if self.colours == PALETTE else 'has no'} palette")

    def _check_depth(self) -> None:
        most = MAX_PALETTE_DEPTH if self.palette else MAX_DEPTH
        if not 1 <= self.depth <= most:
            raise ImageError(f"a sample of {self._name} has 1 to {most} bits, not {self.depth}")
        if self.samples.dtype != (np.uint8 if self.depth <= 8 else np.uint16):
            raise ImageError(f"samples of {self.depth} bits are not {self.samples.dtype}; up to 8 bits are uint8")
        if self.depth not in (8, 16) and int(self.samples.max()) >> self.depth:
            raise ImageError(f"a sample is {int(self.samples.max())}, too large for {self.depth} bits")
        if len(self.palette) % 3 or len(self.palette) > 3 << self.depth:
            raise ImageError(
                f"a palette of {len(self.palette)} bytes is not one of up to {1 << self.depth} colours of 3 bytes"
            )

    def _check_transparency(self) -> None:
        length = len(self.transparency)
        if not length:
            return
        if self.palette:
            if length > len(self.palette) // 3:
                raise ImageError(f"a palette of {len(self.palette) // 3} colours does not have {length} alphas")
        elif self.has_alpha or self.colours == CMYK or length != 2 * self.channels:
            alpha = " with alpha" if self.has_alpha else ""
            raise ImageError(f"{length} bytes are no transparent colour of {self._name}{alpha}")


def _check_array(samples: Any) -> None:
    if not isinstance(samples, np.ndarray):
        raise ImageError(f"a {type(samples).__name__} is no image; accepted are Image, numpy array, Pillow image")
    if isinstance(samples, np.ma.MaskedArray):
        raise ImageError("a masked array is no image, as masked pixels have no value; fill them first")
    shape = samples.shape
    known = len(shape) == 2 or len(shape) == 3 and shape[2] in (2, 3, 4)
    if samples.dtype not in (np.uint8, np.uint16) or samples.size == 0 or not known:
        raise ImageError(f"the array is {samples.dtype} {list(shape)}; {ACCEPTED}")

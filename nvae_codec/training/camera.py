"""What cameras, scanners and codecs do to pictures, done to training pictures that were made smaller and lost it.

Their colours have half the resolution, as in most cameras, JPEG files and video frames: a network that knows only
colours as sharp as brightness pays for green and blue what red has told already. And there is noise, of film or sensor,
that the colours do not share: a network that never met it takes it for less than it is.
"""
import numpy as np

KINDS = 8                             # of `with_half_chroma`
MOST_NOISE = 2.0                      # levels, the largest deviation that training pictures get
_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114                               # parts of luma


def with_half_chroma(image: np.ndarray, kind: int) -> np.ndarray:
    """uint8 [3, H, W] as it comes out of a codec that keeps one chroma sample for 2 x 2 pixels; H and W are even.

    Source of the conversion: ITU-T T.871 (JFIF).

    `kind` below KINDS: its bits tell whether squares begin at odd rows, whether at odd columns (as they may in a
    picture that was cut), and whether chroma is repeated rather than interpolated.
    """
    if not 0 <= kind < KINDS:
        raise ValueError(f"kinds are 0 to {KINDS - 1}, not {kind}")
    top, left, repeated = kind & 1, kind >> 1 & 1, kind >> 2 & 1
    red, green, blue = image.astype(np.float32)
    luma = _RED * red + _GREEN * green + _BLUE * blue
    height, width = luma.shape

    def halved(chroma: np.ndarray) -> np.ndarray:
        framed = np.pad(chroma, ((top, top), (left, left)), mode="edge")
        small = framed.reshape(framed.shape[0] // 2, 2, framed.shape[1] // 2, 2).mean(axis=(1, 3)).round()
        large = _doubled(_doubled(small.T, repeated).T, repeated).round()
        return large[top:top + height, left:left + width]

    to_blue, to_red = 2 * (1 - _BLUE), 2 * (1 - _RED)                   # of one step of chroma
    chroma_blue, chroma_red = halved((blue - luma) / to_blue), halved((red - luma) / to_red)
    red, blue = to_red * chroma_red, to_blue * chroma_blue
    green = -(_RED * red + _BLUE * blue) / _GREEN
    return (luma.round() + np.stack([red, green, blue])).round().clip(0, 255).astype(np.uint8)


def with_noise(image: np.ndarray, deviation: float, random: np.random.Generator) -> np.ndarray:
    """uint8 [C, H, W] with normal noise of a deviation in levels, independent in pixels and colours."""
    noise = random.normal(0, deviation, image.shape)
    return (image + noise).round().clip(0, 255).astype(np.uint8)


def _doubled(samples: np.ndarray, repeated: int) -> np.ndarray:
    """[H, W] -> [H, 2 W]: repeated, or three parts of the nearest sample and one of the next, as JPEG decoders do."""
    if repeated:
        return samples.repeat(2, axis=1)
    framed = np.pad(samples, ((0, 0), (1, 1)), mode="edge")
    before, after = framed[:, :-2], framed[:, 2:]
    return np.stack([3 * samples + before, 3 * samples + after], axis=2).reshape(len(samples), -1) / 4

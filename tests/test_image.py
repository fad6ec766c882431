"""The class Image: what it takes, what it fills in, and what it refuses in one sentence."""

import numpy as np
import pytest
from image_files import GREY_SAMPLES, RGB, samples_of

from nvae_codec.errors import ImageError
from nvae_codec.image import CMYK, GREY, PALETTE, Image
from nvae_codec.image import RGB as RGB_COLOURS


@pytest.mark.parametrize(
    ("samples", "colours", "depth", "has_alpha", "is_plain"),
    [
        (GREY_SAMPLES, GREY, 8, False, True),
        (RGB, RGB_COLOURS, 8, False, True),
        (samples_of(8, 2), GREY, 8, True, False),
        (samples_of(8, 4), RGB_COLOURS, 8, True, False),
        (samples_of(16), GREY, 16, False, False),
        (samples_of(16, 3), RGB_COLOURS, 16, False, False),
    ],
)
def test_arrays_say_what_they_are(samples, colours, depth, has_alpha, is_plain):
    image = Image(samples)
    assert (image.colours, image.depth, image.has_alpha, image.is_plain) == (colours, depth, has_alpha, is_plain)
    assert image.samples is samples and np.array_equal(np.asarray(image), samples)
    assert image.channels == (samples.shape[2] if samples.ndim == 3 else 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"depth": 1, "samples": samples_of(1)},
        {"depth": 12, "samples": samples_of(12, 3)},
        {"colours": PALETTE, "palette": bytes(6)},  # numbers beyond the palette are legal in some files
        {"colours": PALETTE, "palette": bytes(768), "transparency": bytes(256)},
        {"colours": CMYK, "samples": samples_of(8, 4)},
        {"transparency": bytes(2)},
        {"samples": RGB, "transparency": bytes(6)},
    ],
)
def test_what_else_there_is(fields):
    image = Image(**{"samples": GREY_SAMPLES, **fields})
    assert not image.is_plain and not image.has_alpha


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"samples": RGB.astype(np.int16)}, r"the array is int16 \[13, 17, 3\]"),
        ({"samples": RGB.astype(bool)}, "bool"),
        ({"samples": RGB[0, 0]}, r"\[3\]"),
        ({"samples": RGB[:0]}, r"\[0, 17, 3\]"),
        ({"samples": np.zeros((2, 2, 5), np.uint8)}, r"\[2, 2, 5\]"),
        ({"samples": np.zeros((2, 2, 1), np.uint8)}, r"\[2, 2, 1\]"),
        ({"samples": RGB.tolist()}, "a list is no image"),
        ({"samples": None}, "a NoneType is no image"),
        ({"samples": np.ma.masked_array(RGB, RGB > 9)}, "masked"),
        ({"depth": 7}, "too large for 7 bits"),
        ({"depth": 16}, "samples of 16 bits are not uint8"),
        ({"samples": samples_of(16), "depth": 8}, "samples of 8 bits are not uint16"),
        ({"depth": 17}, "has 1 to 16 bits, not 17"),
        ({"colours": "mauve"}, "the colours 'mauve'"),
        ({"colours": RGB_COLOURS}, "an RGB image does not have 1 channels"),
        ({"samples": samples_of(8, 2), "colours": PALETTE, "palette": bytes(3)}, "does not have 2 channels"),
        ({"colours": PALETTE}, "a palette image needs a palette"),
        ({"palette": bytes(3)}, "a grey image has no palette"),
        ({"colours": PALETTE, "palette": bytes(4)}, "a palette of 4 bytes is not one"),
        ({"colours": PALETTE, "palette": bytes(771)}, "up to 256 colours"),
        ({"colours": PALETTE, "palette": bytes(3), "transparency": bytes(2)}, "1 colours does not have 2 alphas"),
        ({"transparency": bytes(6)}, "6 bytes are no transparent colour of a grey image"),
        ({"samples": samples_of(8, 4), "transparency": bytes(6)}, "of an RGB image with alpha"),
    ],
)
def test_what_contradicts_itself_is_refused(fields, reason):
    with pytest.raises(ImageError, match=reason) as error:
        Image(**{"samples": GREY_SAMPLES, **fields})
    assert "\n" not in str(error.value)

"""Images of one's own: any kind, any size."""

from nvae_codec.training.data.arrays import array_files
from nvae_codec.training.data.definition import Definition
from nvae_codec.training.data.files import image_files

FOLDER = Definition(
    "folder",
    "any kind",
    0,
    "Put 8-bit RGB images (PNG, WebP, JPEG, TIFF, BMP, PPM), or tar archives of them, into {root}.",
    layouts=(image_files, array_files),
    preset="photo",
)

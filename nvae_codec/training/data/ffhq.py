"""FFHQ with 256 x 256 pixels."""

from nvae_codec.training.data.arrays import array_files
from nvae_codec.training.data.definition import Definition
from nvae_codec.training.data.files import image_files
from nvae_codec.training.data.fit import Resized
from nvae_codec.training.data.lmdb_files import lmdb_of_samples

FFHQ256 = Definition(
    "ffhq256",
    "FFHQ",
    256,
    "Download images1024x1024 of FFHQ (https://github.com/NVlabs/ffhq-dataset) and put the PNG files "
    "into {root}, or train.lmdb and validation.lmdb.",
    layouts=(lmdb_of_samples, array_files, image_files),
    aliases=("ffhq",),
    validation_percent=10.0,
    other_sizes=Resized(256),
)

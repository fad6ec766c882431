"""Downsampled ImageNet (van den Oord et al., 2016), of 32 x 32 or 64 x 64 pixels."""

from nvae_codec.training.data.arrays import array_files
from nvae_codec.training.data.definition import Definition
from nvae_codec.training.data.files import image_files
from nvae_codec.training.data.lmdb_files import lmdb_of_samples


def _imagenet(side: int) -> Definition:
    return Definition(
        f"imagenet{side}",
        f"downsampled ImageNet, {side} x {side}",
        side,
        f"Download the downsampled ImageNet of {side} x {side} pixels, npz format "
        "(https://image-net.org/download-images.php), and unpack train_data_batch_1.npz to train_data_batch_10.npz "
        "and val_data.npz in {root}.",
        layouts=(lmdb_of_samples, array_files, image_files),
        aliases=(f"imagenet_{side}",),
        preset="celeba64" if side == 64 else "",
    )


IMAGENET32, IMAGENET64 = _imagenet(32), _imagenet(64)

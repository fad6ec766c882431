"""OMNIGLOT in 28 x 28 grey levels, the file that Burda and others published with the IWAE.

Not torchvision's Omniglot, which are the 105 x 105 drawings that this file was made of.
"""

import numpy as np

from nvae_codec.errors import ImageError
from nvae_codec.training.data.arrays import array_files
from nvae_codec.training.data.definition import Definition, Request
from nvae_codec.training.data.files import image_files
from nvae_codec.training.data.fit import padded
from nvae_codec.training.data.splits import Splits
from nvae_codec.training.data.stored import ArrayImages


def _matlab_file(request: Request) -> Splits | None:
    path = next(iter(sorted(request.root.rglob("chardata.mat"))), None)
    if path is None:
        return None
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ImageError("reading chardata.mat needs the package scipy: pip install 'nvae-codec[train]'") from None
    try:
        values = loadmat(path, variable_names=["data", "testdata"])
    except Exception as error:  # whatever a damaged file makes its reader stumble over
        raise ImageError(f"{path}: cannot be read as a MATLAB file ({error})") from error
    splits = []
    for key in ("data", "testdata"):
        levels = values.get(key)
        if not isinstance(levels, np.ndarray) or levels.dtype.kind != "f" or levels.ndim != 2 or len(levels) != 784:
            raise ImageError(f"{path}: there is no array {key} of 784 x N grey levels")
        if not (levels.size and levels.min() >= 0 and levels.max() <= 1):
            raise ImageError(f"{path}: the grey levels in {key} are not all in 0 ... 1")
        images = (levels * 255).astype(np.uint8).reshape(28, 28, -1).T  # each image is stored by columns
        splits.append(ArrayImages([padded(images[:, None], request.definition.margin)]))
    return splits[0], splits[1]


OMNIGLOT = Definition(
    "omniglot",
    "OMNIGLOT",
    32,
    "Download chardata.mat (https://github.com/yburda/iwae, folder datasets/OMNIGLOT) and put it into {root}.",
    layouts=(_matlab_file, array_files, image_files),
    preset="mnist",
    channels=1,
    margin=2,
)

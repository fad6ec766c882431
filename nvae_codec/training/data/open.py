"""Opening a data set by its name: the table of those that there are, and `open_dataset`."""

from pathlib import Path

from nvae_codec.errors import ImageError
from nvae_codec.formats.names import is_image_file
from nvae_codec.shards import ARCHIVE_SUFFIX
from nvae_codec.training.data.archives import archive_files
from nvae_codec.training.data.celeba import CELEBA64, CELEBAHQ256
from nvae_codec.training.data.cifar import CIFAR10, CIFAR100
from nvae_codec.training.data.definition import Definition, Request
from nvae_codec.training.data.ffhq import FFHQ256
from nvae_codec.training.data.folder import FOLDER
from nvae_codec.training.data.imagenet import IMAGENET32, IMAGENET64
from nvae_codec.training.data.mnist import MNIST
from nvae_codec.training.data.omniglot import OMNIGLOT
from nvae_codec.training.data.sets import Binarised, Crops, Dataset, ImageSet, Whole
from nvae_codec.training.data.stored import Report, StoredImages, silent
from nvae_codec.wording import counted

DATASETS: dict[str, Definition] = {
    each.name: each
    for each in (MNIST, OMNIGLOT, CIFAR10, CIFAR100, IMAGENET32, IMAGENET64, CELEBA64, CELEBAHQ256, FFHQ256, FOLDER)
}
ALIASES: dict[str, str] = {alias: each.name for each in DATASETS.values() for alias in each.aliases}


def open_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    side: int,
    fit: str = "crop",
    validation_percent: float | None = None,
    cache_bytes: int = 4 << 30,
    report: Report = silent,
) -> Dataset:
    """The data set `name` in the folder `root`, by default data/NAME, for a network of `side` x `side` images.

    Images are looked for in the files that the data set is published as; then, of every data set, in arrays (.npy,
    .npz, uint8), in folders and uncompressed tar archives of image files, which may hold columns of images, and in
    archives of our own (.nvb). Training and validation images are told apart by the words train, validation (valid,
    val) or test in names of folders, archives and arrays. If these do not make two splits, `validation_percent` of the
    images are held out by a hash of their names; None stands for 10 % of FFHQ and CelebA-HQ, and 5 % otherwise.

    `fit` is for `folder` alone: crops of the images, or the whole of them ("resize") but for what is more than a
    square. At most `cache_bytes` of decoded images are kept in memory.

    Raises ImageError if there is no such data set, or if its files are missing or damaged. Single images that are
    damaged or of the wrong kind are left out, and counted through `report`.
    """
    name = ALIASES.get(name, name)
    if name not in DATASETS:
        raise ImageError(f"there is no data set {name!r}; there are {', '.join(DATASETS)}")
    kind = DATASETS[name].for_side(side)
    if kind.side not in (0, side):
        raise ImageError(f"{name} has images of {kind.side} x {kind.side}, but the network takes {side} x {side}")
    if fit not in ("crop", "resize"):
        raise ImageError(f"images can be fitted by crop or resize, not by {fit!r}")
    percent = kind.validation_percent if validation_percent is None else validation_percent
    if not 0 <= percent < 100:
        raise ImageError(f"{percent} % of the images cannot be held out")
    root = Path(root) if root is not None else Path("data") / name
    request = Request(kind, root, side, fit, percent, cache_bytes, report)
    found = next(filter(None, (layout(request) for layout in (*kind.layouts, archive_files))), None)
    if found is None:
        if root.exists() and not root.is_dir() and root.suffix not in (".tar", ARCHIVE_SUFFIX):
            what = "one image file is no data set, which" if is_image_file(root) else "a data set"
            raise ImageError(f"{root}: {what} is a folder, a .tar archive of image files, or an .nvb archive")
        if not root.exists() and is_image_file(root):
            raise ImageError(f"{root}: there is no such file; nor would an image file be a data set, which is a folder")
        missing = f"no images of {kind.title} are there" if root.exists() else "there is no such folder"
        raise ImageError(f"{root}: {missing}. {kind.advice.format(root=root)}")
    training, validation = (_items(images, request) for images in found)
    if not len(training):
        size = f"of at least {side} x {side} RGB pixels" if isinstance(training, Crops) else "of the right kind"
        raise ImageError(f"{root}: no image {size} to train on")
    crops = f", {len(training):,} crops in an epoch" if isinstance(training, Crops) else ""
    report(f"{name}: {counted(len(training.stored), 'training image')}{crops}; {len(validation.stored):,} held out")
    return Dataset(name, training, validation, side, kind.channels)


def _items(images: StoredImages, request: Request) -> ImageSet:
    kind = request.definition
    if kind.side == 0 and request.fit == "crop":
        return Crops(images, request.side, request.report)
    form = Binarised if kind.channels == 1 else Whole
    return form(images, (kind.channels, request.side, request.side), request.report)

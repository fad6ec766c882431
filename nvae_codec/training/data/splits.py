"""Which images are for training and which are held out: by words in names, or else by a hash of names."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from nvae_codec.training.data.stored import StoredImages

TRAINING_WORDS = {"train", "training"}
VALIDATION_WORDS = {"validation", "valid", "val"}
TEST_WORDS = {"test", "testing"}

Splits = tuple[StoredImages, StoredImages]  # training, validation
Purposes = list[str | None]  # of each file: "training", "validation", or None for neither


def purposes_by_words(places: Sequence[str]) -> Purposes | None:
    """What each file is for, by the words in the names of its folders, archive or array.

    Where there are validation and test images, those for testing are for nothing: None. The result is None if the
    names do not make two splits.
    """
    kinds = {"training": TRAINING_WORDS, "validation": VALIDATION_WORDS, "test": TEST_WORDS}
    found = []
    for place in places:
        words = set(re.findall("[a-z]+", place.lower()))
        found.append(next((kind for kind, its_words in kinds.items() if words & its_words), None))
    held_out = "validation" if "validation" in found else "test"
    if not {"training", held_out} <= set(found):
        return None
    return [{"training": "training", held_out: "validation"}.get(kind or "") for kind in found]


def is_validation(name: str, percent: float = 5.0) -> bool:
    """Whether the image is held out: decided by a hash of its name, so that it stays so when images are added."""
    return _hash(name) < percent / 100 * 2**32


def split_by_hash(images: StoredImages, percent: float) -> Splits:
    """(training, validation): `percent` of the images, but at least one of several, are held out by their names."""
    names = [images.name(index) for index in range(len(images))]
    held_out = np.array([is_validation(name, percent) for name in names], dtype=bool)
    if percent > 0 and len(names) > 1 and not held_out.any():
        held_out[min(range(len(names)), key=lambda index: _hash(names[index]))] = True
    return images.select(np.flatnonzero(~held_out)), images.select(np.flatnonzero(held_out))


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:4], "little")

"""The training images of the preset `photo-next`: photographs of public collections, made smaller, cut, and packed.

    python docs/photo_images.py SOURCES PIECES OUTPUT

SOURCES has a folder for each collection, with its files by any names: elementary, popos, budgie, unsplash34, clothing,
grocery. All are JPEG files or were: made smaller by 2, the last two by 3, they show no blocks any more. PIECES are the
tar archives that the bundled `photo` was trained on; the twentieth of them that `train` holds out by a hash of their
names becomes OUTPUT/validation.tar, and nothing that these were cut from gets into OUTPUT/train-0.tar to train-7.tar.
"""

import io
import re
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from nvae_codec.training.data.open import open_dataset

FACTORS = {"elementary": 2, "popos": 2, "budgie": 2, "unsplash34": 2, "clothing": 3, "grocery": 3}
PIECE, LEAST = 512, 64  # pixels of a side
ARCHIVES = 8
NEAR = 4  # levels by which small copies differ, on average: the same image, edited


def stem(name: str) -> str:
    """What names of an image and of pieces of it have in common."""
    name = re.sub(r"\.(jpe?g|png|webp)$", "", name, flags=re.IGNORECASE)
    name = re.sub(r"\.h[0-9a-f]{8}$", "", re.sub(r"-(2|3|4|6|8)$", "", name))
    return re.sub(r"[^a-z0-9]", "", name.split("__")[-1].lower())


def small_copy(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((12, 12), Image.Resampling.BOX), dtype=np.float32)


def pieces(path: Path) -> tuple[np.ndarray, list[tuple[str, bytes]]] | None:
    """A small copy of an image, and its pieces as lossless WebP files; None if it cannot be read or is transparent."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGBA")
    except (OSError, ValueError):
        return None
    if image.getchannel("A").getextrema()[0] < 255:
        return None
    image = image.convert("RGB")
    smaller, found = image.reduce(FACTORS[folder_of(path)]), []
    for top in range(0, smaller.height, PIECE):
        for left in range(0, smaller.width, PIECE):
            piece = smaller.crop((left, top, min(left + PIECE, smaller.width), min(top + PIECE, smaller.height)))
            if min(piece.size) >= LEAST:
                file = io.BytesIO()
                piece.save(file, "WEBP", lossless=True, quality=30, method=2)
                found.append((f"{folder_of(path)}-{path.stem}-{top // PIECE}-{left // PIECE}.webp", file.getvalue()))
    return small_copy(image), found


def folder_of(path: Path) -> str:
    return next(part for part in path.parts if part in FACTORS)


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def main(sources: Path, before: Path, output: Path) -> None:
    stored = open_dataset("folder", before, side=64).validation.stored
    held_out = {stored.name(number) for number in range(len(stored))}
    held_stems = {stem(name) for name in held_out} | {stem(name.partition("-")[2]) for name in held_out}
    output.mkdir(parents=True, exist_ok=True)
    archives = [tarfile.open(output / f"train-{number}.tar", "w") for number in range(ARCHIVES)]
    count = 0
    with tarfile.open(output / "validation.tar", "w") as validation:
        for path in sorted(before.glob("train-*.tar")):
            with tarfile.open(path) as given:
                for member in given:
                    data = given.extractfile(member)
                    if data is not None:
                        add(
                            validation if member.name in held_out else archives[count % ARCHIVES],
                            member.name,
                            data.read(),
                        )
                        count += member.name not in held_out
    paths = [path for folder in FACTORS for path in sorted((sources / folder).rglob("*")) if path.is_file()]
    kept: list[np.ndarray] = []  # small copies of what must not come again
    for path in paths:
        if stem(path.name) in held_stems:
            with Image.open(path) as image:
                kept.append(small_copy(image))
    others = [path for path in paths if stem(path.name) not in held_stems]
    with ProcessPoolExecutor() as pool:
        for path, found in zip(others, pool.map(pieces, others, chunksize=4), strict=True):
            if found is None or any(np.abs(found[0] - other).mean() < NEAR for other in kept):
                continue
            if FACTORS[folder_of(path)] == 2:  # the other collections are many images of one kind
                kept.append(found[0])
            for name, data in found[1]:
                add(archives[count % ARCHIVES], name.replace("/", "_"), data)
                count += 1
    for archive in archives:
        archive.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

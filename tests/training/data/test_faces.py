"""CelebA, CelebA-HQ and FFHQ from image files."""

import io

import numpy as np
from helpers import noise
from PIL import Image as pillow
from training_sets import folder, items, planes, png, resized_by_pillow

from nvae_codec.training.data.open import open_dataset


def test_celeba_from_its_aligned_images(tmp_path):
    faces = {f"{number:06}": noise(218, 178, 3, seed=number) for number in range(1, 6)}
    files = {f"celeba/img_align_celeba/{name}.png": png(face) for name, face in faces.items()}
    files["celeba/img_align_celeba/000009.png"] = png(noise(100, 178, 3))
    file = io.BytesIO()
    pillow.fromarray(faces["000004"]).save(file, "JPEG")
    del files["celeba/img_align_celeba/000004.png"]
    files["celeba/img_align_celeba/000004.jpg"] = file.getvalue()
    faces["000004"] = np.asarray(pillow.open(file))
    splits = "000001.jpg 0\n000002.jpg 1\n000003.jpg 2\n000004.jpg 0\n000009.jpg 0\n"
    folder(tmp_path, files | {"celeba/list_eval_partition.txt": splits.encode()})
    lines = []
    found = open_dataset("celeba_64", tmp_path, side=64, report=lines.append)
    expected = {name: resized_by_pillow(face, (15, 40, 163, 188), (64, 64)) for name, face in faces.items()}
    assert np.array_equal(items(found.training), planes(np.stack([expected["000001"], expected["000004"]])))
    assert np.array_equal(items(found.validation), planes(expected["000002"][None]))
    assert found.name == "celeba64" and "2 of 6 image files are for neither training nor validation" in lines
    assert any("1 not 178 x 218 RGB pixels" in line for line in lines)
    (tmp_path / "celeba" / "list_eval_partition.txt").unlink()
    found = open_dataset("celeba64", tmp_path, side=64, cache_bytes=20_000)
    assert len(found.training) + len(found.validation) == 5
    (tmp_path / "celeba" / "list_eval_partition.csv").write_text(f"image_id,partition\n{splits.replace(' ', ',')}")
    assert len(open_dataset("celeba64", tmp_path, side=64).training) == 2


def test_ffhq_from_its_images(tmp_path):
    originals = [noise(512, 512, 3), noise(256, 256, 3, seed=1), noise(300, 500, 3, seed=2)]
    folder(tmp_path, {f"train/{number:05}.png": png(image) for number, image in enumerate(originals)})
    folder(tmp_path, {"validation/00000.png": png(originals[0])})
    wide = np.asarray(pillow.fromarray(originals[2]).resize((426, 256), pillow.Resampling.BILINEAR))[:, 85:341]
    expected = planes(np.stack([resized_by_pillow(originals[0], (0, 0, 512, 512), (256, 256)), originals[1], wide]))
    for name in ("ffhq", "ffhq256", "celeba_256", "celebahq256"):
        found = open_dataset(name, tmp_path, side=256, cache_bytes=0 if name == "ffhq" else 4 << 30)
        assert np.array_equal(items(found.training), expected)
        assert np.array_equal(items(found.validation), expected[:1])

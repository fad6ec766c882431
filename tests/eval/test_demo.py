"""`eval demo`."""

from dataclasses import replace

import pytest
from photographs import one_wrong_sample, photograph, save
from terminal import failure, invoke

from nvae_codec.eval import codecs, demo, items
from nvae_codec.eval.codecs import BASELINES

pytestmark = pytest.mark.thorough


def test_the_demo_photograph_is_there():
    assert items.read_samples(demo.astronaut()).shape == (512, 512, 3)


@pytest.fixture
def toy_as_default(monkeypatch, toy_model_path):
    monkeypatch.setattr(demo, "nvae_codec", lambda: codecs.nvae_codec(str(toy_model_path)))


def test_demo(toy_as_default, tmp_path):
    output = invoke("eval", "demo", save(tmp_path / "mine.png", photograph((30, 20)))).stdout
    assert "mine.png, 20 x 30 pixels, grey" in output
    assert [line.split()[0] for line in output.splitlines()[5:9]] == ["nvae-codec", "png", "webp", "jxl"]


def test_demo_fails_if_a_pixel_differs(toy_as_default, monkeypatch, tmp_path):
    webp = BASELINES["webp"]
    lossy = replace(webp, decode=lambda data: one_wrong_sample(webp.decode(data)))
    monkeypatch.setitem(BASELINES, "webp", lossy)
    message = failure(invoke("eval", "demo", save(tmp_path / "mine.png", photograph((30, 20, 3)))))
    assert "mine.png: webp gave back other samples" in message


def test_demo_needs_an_image_where_scikit_image_is_absent(monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert "name an image of your own" in failure(invoke("eval", "demo"))

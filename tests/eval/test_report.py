"""The page of all results: whole, honest about what it compares, and made of nothing but results."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers import smooth_tiles
from PIL import Image as pillow
from terminal import failure, invoke

from nvae_codec.errors import NvaeCodecError
from nvae_codec.eval import report
from nvae_codec.formats.open import write_all
from nvae_codec.image import Image

pytestmark = pytest.mark.thorough


def document_in(folder):
    return json.loads((folder / "results.json").read_text())


class Page(HTMLParser):
    """Its elements are closed in order, and it fetches nothing."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.used, self.pictures, self.tables, self.figures = [], [], [], [], 0, 0

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tables += tag == "table"
        self.figures += tag == "figure"
        self.ids += [given["id"]] if "id" in given else []
        for name, value in given.items():
            if name == "src" and tag == "img":  # a picture in the page itself
                with pillow.open(io.BytesIO(base64.b64decode(value.removeprefix("data:image/png;base64,")))) as picture:
                    self.pictures.append(picture.size)
            elif name in ("src", "href", "xlink:href"):
                assert value.startswith("#")
                self.used.append(value[1:])
            self.used += re.findall(r"url\(#([^)]*)\)", value or "")
        if tag not in ("meta", "br", "hr", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read_page(path) -> tuple[Page, str]:
    text = path.read_text()
    page = Page()
    page.feed(text)
    assert not page.open and len(set(page.ids)) == len(page.ids) and set(page.used) <= set(page.ids)
    return page, text


def test_the_page_is_whole_and_says_what_was_measured(measured, tmp_path):
    document = document_in(measured)
    page, text = read_page(measured / "report.html")
    assert page.figures == 5 and page.tables == 4 and len(page.pictures) == 1
    assert document["command"] in text and document["platform"] in text and document["model"]["fingerprint"] in text
    assert f"{document['totals']['file_bits'] // 8:,} bytes" in text
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert invoke("eval", "report", measured, measured, "-o", tmp_path / "both.html").exit_code == 0
    text = (tmp_path / "both.html").read_text()
    assert text.count("<figure>") == 10 and text.count("<table>") == 8


def test_texts_of_results_are_text(measured, tmp_path):
    """Whoever hands results around may have written anything into them."""
    evil = '<script>alert("$x$")</script>&amp;'
    document = document_in(measured)
    (tmp_path / "results.json").write_text(json.dumps(document | {"model": document["model"] | {"fingerprint": evil}}))
    message = failure(invoke("eval", "report", tmp_path, "-o", tmp_path / "page.html"))
    assert "rate.model.fingerprint has a value that it cannot have" in message
    document["model"]["name"] = evil
    document |= {"command": evil, "platform": evil}
    document["data"]["source"] = evil
    for number, image in enumerate(document["images"]):
        image["image"] = f"{evil} $\\frac{{$ {number}"
    (tmp_path / "results.json").write_text(json.dumps(document))
    result = invoke("eval", "report", tmp_path, "-o", tmp_path / "page.html")
    assert result.exit_code == 0, result.stderr
    page, text = read_page(tmp_path / "page.html")
    before, _ = read_page(measured / "report.html")
    assert (page.figures, page.tables) == (before.figures, before.tables)
    assert text.count("<script>") == 1 and "alert" not in text.partition("<script>\n")[2]
    escaped = evil.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert escaped.replace('"', "&#34;") in text  # in the page
    assert f"{escaped} $\\frac{{$ 0</text>" in text  # in a figure


def test_all_kinds_of_results_stand_on_one_page(measured, images, tmp_path):
    options = ["--model", "none", "--baselines", "png,jpegls"]
    assert invoke("eval", "compare", images, *options, "-o", tmp_path / "codecs").exit_code == 0
    assert invoke("eval", "reported", "-o", tmp_path / "paper").exit_code == 0
    folders = [measured, tmp_path / "codecs", tmp_path / "paper"]
    assert invoke("eval", "report", *folders, "-o", tmp_path / "all.html").exit_code == 0
    page, text = read_page(tmp_path / "all.html")
    assert "nvae-codec, model" in text  # among the codecs: its files are the same
    assert page.figures == 6 and "jpegls" in text and "Vahdat" in text and "FFHQ" in text
    alone, _ = read_page(tmp_path / "codecs" / "report.html")
    assert alone.figures == 1
    assert {path.name for path in (tmp_path / "codecs" / "compressai").iterdir()} == {"png.json", "jpegls.json"}


def test_the_page_begins_with_the_least_of_the_others(model, tmp_path):
    """Of images a file each, and of all in one archive; of no others, and of no codec that left one out."""
    folder = tmp_path / "cats & dogs"
    folder.mkdir()
    for seed, tile in enumerate(smooth_tiles(3, 16, 9).permute(0, 2, 3, 1).numpy()):
        (folder / f"{seed}.png").write_bytes(write_all(Image(np.ascontiguousarray(tile))))
    ours = [folder, "--model", model[0], "--effort", "1"]
    for name, options in (("each", []), ("archive", ["--archive"]), ("crops", ["--crop", "8"])):
        assert invoke("eval", "rate", *ours, *options, "-o", tmp_path / name).exit_code == 0
    options = ["--model", "none", "--baselines", "png,jxl-e3", "--solid", "-o", tmp_path / "codecs"]
    assert invoke("eval", "compare", folder, *options).exit_code == 0
    documents = [
        report.read_results(tmp_path / name / "results.json") for name in ("each", "archive", "crops", "codecs")
    ]
    rows = {row[1].rpartition(", ")[2]: row for row in rows_of(report.render(documents))}
    assert set(rows) == {"a file each", "together"}
    assert all("cats &amp; dogs, 3 images" in row[1] for row in rows.values())
    codecs = documents[-1]
    for how, size, other in (
        ("a file each", documents[0].totals.file_bits // 8, codecs.totals),
        ("together", documents[1].totals.file_bits // 8, codecs.solid_archives),
    ):
        least = min(other, key=lambda row: row.size_bytes)
        assert rows[how][2] == f"{size:,}" and rows[how][6:8] == [least.codec, f"{least.size_bytes:,}"]
        assert float(rows[how][9]) == pytest.approx(100 * (size / least.size_bytes - 1), abs=6e-4)
        assert float(rows[how][5].replace(",", "")) == pytest.approx(8 * size * np.log(2) / 3, rel=1e-3)
    of_7_bits = replace(codecs, data=replace(codecs.data, bits_per_sample=7))
    assert rows_of(report.render([*documents[:3], of_7_bits])) == []
    incomplete = replace(codecs, totals=[replace(row, num_images=2) for row in codecs.totals])
    rows = rows_of(report.render([*documents[:3], incomplete]))
    assert [row[1].rpartition(", ")[2] for row in rows] == ["together"]
    assert rows_of(report.render(documents[:3])) == []


def rows_of(page: str) -> list[list[str]]:
    """The cells of the page's first table, if it is the one that compares."""
    if "Beside the smallest of the other codecs" not in page:
        return []
    body = page.partition("<tbody>")[2].partition("</tbody>")[0]
    return [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in body.strip().splitlines()]


def test_results_that_are_none_make_no_page(measured, tmp_path):
    good = document_in(measured)
    for content, reason in (
        ("[", "it is not JSON"),
        ("[]", "it has no kind that is known"),
        ('{"kind": "rate"}', "it has no rate.schema_version"),
        ('{"kind": "guess"}', "it is of the kind 'guess'"),
        (json.dumps(good | {"schema_version": 2}), "rate.schema_version has a value that it cannot have"),
        (json.dumps(good | {"more": 1}), "it has rate.more, which is unknown"),
        (json.dumps(good | {"chains": [{"num_images": "1"}]}), "rate.chains.0.num_images has a value"),
    ):
        (tmp_path / "results.json").write_text(content)
        message = failure(invoke("eval", "report", tmp_path, "-o", tmp_path / "page.html"))
        assert message.startswith(f"nvae-codec: {tmp_path / 'results.json'}: not results of `eval rate`, ")
        assert reason in message and message.count("\n") == 1 and not (tmp_path / "page.html").exists()
    with pytest.raises(NvaeCodecError, match="not results of"):
        report.read_results(tmp_path / "results.json")

"""Figures of comparisons: the Pareto front, and charts of one or several results."""

import importlib.util
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from helpers import REPOSITORY
from terminal import failure, invoke

from nvae_codec import __version__
from nvae_codec.eval import document, figures, machine, overview, results, totals


def test_the_front_has_what_no_other_codec_beats():
    points = [
        figures.Point("slow and small", 3, 1),
        figures.Point("beaten", 3.5, 0.9),
        figures.Point("fast", 4, 10),
        figures.Point("as small, slower", 3, 0.5),
        figures.Point("as fast, larger", 5, 10),
    ]
    assert [point.codec for point in figures.front(points)] == ["slow and small", "fast"]
    assert figures.front([]) == []


def found(*rows: tuple[str, float, float, int]) -> results.CompareResults:
    """Results of two images: the codec, its rate, its speed and how many images it coded."""
    return results.CompareResults(
        kind="compare",
        schema_version=1,
        command="",
        platform="",
        data=results.NamedData("", 2, 1, 1, 8, ["a", "b"]),
        settings=results.CompareSettings({name: "" for name, *_ in rows}, False, None, None, ""),
        results=[],
        totals=[
            results.Total(name, count, 1, rate, rate, rate, rate, 1.0, 1.0, speed, 10 * speed, 0, 0)
            for name, rate, speed, count in rows
        ],
        left_out=[],
        solid_archives=None,
    )


def bars(given: results.CompareResults) -> str:
    return overview.rates_figure([given])


@pytest.mark.parametrize("draw", [figures.speed_figure, bars])
def test_figures_name_every_codec_and_are_the_same_each_time(draw):
    rows = [("ours", 2.9, 0.1, 2), ("jxl", 3.1, 1.0, 2), ("png & co", 4.2, 5.0, 2)]
    given = found(*rows, ("partial", 2.9, 0.1, 1))
    text = draw(given)
    assert text == draw(given) and "dc:date" not in text
    shown = "".join(ElementTree.fromstring(text).itertext())
    assert "bits per sub-pixel" in shown and "partial" not in shown
    if draw is figures.speed_figure:
        assert all(shown.count(name) >= 2 for name, *_ in rows)
        assert all(words in shown for words in ("encoding", "decoding", "raw MB/s", "Pareto front"))
        assert "$" not in shown  # nothing is read as mathematics, speeds neither
    else:
        assert all(name in shown and f"{rate:.3f}" in shown for name, rate, *_ in rows)
    assert draw(found())


def rated(kind: str, images: list[tuple[float, float]], archive: bool = False) -> results.RateResults:
    """Files of images of 100 sub-pixels, each with the bits of its negative ELBO and of the file."""
    ledger = results.LedgerParts(*[0.0] * 7, 0, 0, 0, None, 0.0)
    rows = [
        results.RateImage(
            str(number),
            10,
            10,
            1,
            100,
            100,
            "a",
            int(bits),
            promised,
            promised,
            None,
            bits / promised - 1,
            [],
            1.0,
            ledger,
            1.0,
            1.0,
        )
        for number, (promised, bits) in enumerate(images)
    ]
    return results.RateResults(
        kind="rate",
        schema_version=1,
        command="",
        platform="",
        data=results.Data(kind, len(images), 100 * len(images), 100 * len(images), 8),
        model=results.Model("toy", "0" * 16, False),
        settings=results.RateSettings(archive, None, 1, None),
        images=rows,
        totals=totals.rate_totals(rows, archive),
        chains=[],
        first_groups=results.FirstGroups(1, 1, [1.0, 1.0], "aaaa"),
    )


def shown(svg: str) -> str:
    return "".join(ElementTree.fromstring(svg).itertext())


def test_a_panel_for_each_kind_of_images_that_was_coded_by_us_and_others(tmp_path):
    photographs = found(("nvae-codec", 2.9, 0.1, 2), ("jxl", 3.1, 1.0, 2), ("png", 4.0, 1.0, 2))
    drawings = replace(
        found(("jxl", 2.2, 1.0, 2)), data=results.NamedData("far/drawings, reduced by 4", 2, 200, 200, 8, ["a", "b"])
    )
    alone = replace(drawings, data=replace(drawings.data, source="alone"))
    ours = rated("far/drawings, reduced by 4", [(200.0, 210), (220.0, 230)])
    for number, each in enumerate((photographs, drawings, alone, ours)):
        (tmp_path / f"{number}.json").write_text(document.to_json(each))

    every = sorted(tmp_path.glob("*.json"))
    assert invoke("eval", "plot", *every, "-o", tmp_path / "a.svg").exit_code == 0
    text = shown((tmp_path / "a.svg").read_text())
    assert "drawings, reduced by 4, 2 images, a file each" in text and "far" not in text
    assert "alone" not in text and "2.200" in text and "4.000" in text  # (210 + 230) / 200
    assert invoke("eval", "plot", *every, "--codecs", "nvae-codec,jxl", "-o", tmp_path / "b.svg").exit_code == 0
    assert "png" not in shown((tmp_path / "b.svg").read_text())

    assert invoke("eval", "plot", *every, "--kind", "negative-elbo", "-o", tmp_path / "c.svg").exit_code == 0
    assert "drawings, reduced by 4, 2 images, a file each: +4.76 %" in shown((tmp_path / "c.svg").read_text())
    message = failure(invoke("eval", "plot", every[0], "--kind", "negative-elbo", "-o", tmp_path / "d.svg"))
    assert message == "nvae-codec: no results of `eval rate` are among these files\n"
    message = failure(invoke("eval", "plot", *every, "--codecs", "jxl, flif", "-o", tmp_path / "d.svg"))
    assert message == "nvae-codec: these results have no codec flif\n"
    result = invoke("eval", "plot", every[0], "--kind", "times", "--codecs", "jxl", "-o", tmp_path / "d.svg")
    assert result.exit_code == 2 and "--codecs is for --kind rates" in result.stderr
    result = invoke("eval", "plot", *every, "--kind", "times", "-o", tmp_path / "d.svg")
    assert result.exit_code == 2 and "takes one result" in result.stderr and not (tmp_path / "d.svg").exists()
    assert invoke("eval", "plot", every[0], "--kind", "times", "-o", tmp_path / "d.svg").exit_code == 0


def test_the_chart_of_a_document(tmp_path):
    given = found(("nvae-codec", 2.9, 0.1, 2), ("jxl", 3.1, 1.0, 2))
    (tmp_path / "results.json").write_text(document.to_json(given))
    result = invoke("eval", "plot", tmp_path / "results.json", "-o", tmp_path / "a.svg")
    assert result.exit_code == 0 and result.stderr == f"wrote {tmp_path / 'a.svg'}\n"
    assert (tmp_path / "a.svg").read_text() == bars(given)
    nowhere = failure(invoke("eval", "plot", tmp_path / "results.json", "-o", tmp_path / "none" / "a.svg"))
    assert nowhere == f"nvae-codec: {tmp_path / 'none'}: there is no such folder\n"
    (tmp_path / "results.json").write_text('{"kind": "rate"}')
    message = failure(invoke("eval", "plot", tmp_path / "results.json", "-o", tmp_path / "b.svg"))
    assert (
        "results.json: not results of `eval rate`, `compare` or `reported`: it has no" in message
        and not (tmp_path / "b.svg").exists()
    )


def test_results_without_ours_have_their_bars():
    others = found(("jxl", 2.2, 1.0, 2), ("png", 4.0, 1.0, 2))
    solid = [results.SolidArchive("jxl", 2, 1, "png", 10, 1.75, 9.0, 3.0, 1.0, 0, 0)]
    text = shown(overview.rates_figure([replace(others, solid_archives=solid)]))
    assert all(each in text for each in ("2.200", "4.000", "1.750", "a file each", "together"))
    assert "4.000" in shown(overview.rates_figure([others, replace(others, data=replace(others.data, source="b"))]))


@pytest.mark.parametrize(
    "source, title",
    [
        ("/far/kodak", "kodak"),
        ("kodak/, reduced by 4", "kodak, reduced by 4"),
        ("far/1.png, far/2.png, the central 64 x 64", "1.png and others, the central 64 x 64"),
        ("mnist", "mnist"),
    ],
)
def test_kinds_of_images_are_named_without_folders(source, title):
    kind = overview.Kind.of(results.Data(source, 2, 9, 9, 8), overview.ALONE)
    assert kind.title == f"{title}, 2 images, a file each"


CPUS = {
    "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f\n": "Some CPU with avx512f, ",
    "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\n": "an Arm, ",
    "": "an Arm, ",
}


@pytest.mark.parametrize("text", CPUS)
def test_the_machine_in_words(text, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine.platform, "processor", lambda: "an Arm")
    if text:
        machine.CPU_INFO.write_text(text)
    found = machine.describe()
    assert found.startswith(CPUS[text]) and "processor" in found and f"nvae-codec {__version__}" in found


@pytest.fixture(scope="module")
def writer():
    """`docs/write_figures.py`."""
    spec = importlib.util.spec_from_file_location("write_figures", REPOSITORY / "docs/write_figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_documents_take_their_figures_from_results(writer):
    codecs = replace(
        found(("nvae-codec", 2.9, 0.1, 2), ("jxl", 3.1, 1.0, 2)),
        solid_archives=[results.SolidArchive("jxl", 2, 1, "png", 1234567, 3.0, 9.0, 3.0, 1.0, 0, 0)],
    )
    measured = writer.digest({"photographs": rated("photographs", [(200.0, 210), (220.0, 230)]), "codecs": codecs})
    text = (
        "| <!--photographs.bits--><!--/--> | <!--photographs.negative-elbo.nats-->7<!--/--> nats "
        "| **<!--codecs.jxl.bits-->old<!--/-->** | <!--codecs.together.jxl.bytes--><!--/--> bytes, "
        "<!--codecs.together.jxl.encode.seconds--><!--/--> s, <!--photographs.overhead.percent--><!--/--> |"
    )
    expected = text
    for name, figure in {
        "photographs.bits": "2.200",
        "photographs.negative-elbo.nats": "145.6",  # 210 ln 2
        "codecs.jxl.bits": "3.100",
        "codecs.together.jxl.bytes": "1,234,567",
        "codecs.together.jxl.encode.seconds": "1.5",
        "photographs.overhead.percent": "+4.762 %",
    }.items():
        expected = re.sub(rf"<!--{name}-->[^<]*<", f"<!--{name}-->{figure}<", expected)
    assert writer.filled(text, measured) == expected == writer.filled(expected, measured)
    for unknown in ("codecs.webp.bits", "photographs.groups.3.bits", "elsewhere.bits"):
        with pytest.raises(KeyError, match=unknown):
            writer.filled(f"<!--{unknown}-->1<!--/-->", measured)


def test_no_figure_of_the_day_is_typed_by_hand(writer):
    """What is in the documents is what was measured last."""
    texts = {path: path.read_text() for path in writer.documents()}
    marked = {path: text for path, text in texts.items() if writer.FIGURE.search(text)}
    digest = REPOSITORY / writer.DIGEST
    assert bool(marked) == digest.exists()
    for text in marked.values():
        assert writer.filled(text, json.loads(digest.read_text())) == text

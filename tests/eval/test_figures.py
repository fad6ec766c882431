"""Figures of comparisons: the Pareto front and the chart of rates."""

import xml.etree.ElementTree as ElementTree

import pytest
from terminal import failure, invoke

from nvae_codec.eval import document, figures, results


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


@pytest.mark.parametrize("draw", [figures.speed_figure, figures.rates_figure])
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


def test_the_chart_of_a_document(tmp_path):
    given = found(("nvae-codec", 2.9, 0.1, 2), ("jxl", 3.1, 1.0, 2))
    (tmp_path / "results.json").write_text(document.to_json(given))
    result = invoke("eval", "plot", tmp_path / "results.json", "-o", tmp_path / "a.svg")
    assert result.exit_code == 0 and result.stderr == f"wrote {tmp_path / 'a.svg'}\n"
    assert (tmp_path / "a.svg").read_text() == figures.rates_figure(given)
    nowhere = failure(invoke("eval", "plot", tmp_path / "results.json", "-o", tmp_path / "none" / "a.svg"))
    assert nowhere == f"nvae-codec: {tmp_path / 'none'}: there is no such folder\n"
    (tmp_path / "results.json").write_text('{"kind": "rate"}')
    message = failure(invoke("eval", "plot", tmp_path / "results.json", "-o", tmp_path / "b.svg"))
    assert (
        "results.json: not results of `eval compare`: it is of the kind 'rate'" in message
        and not (tmp_path / "b.svg").exists()
    )

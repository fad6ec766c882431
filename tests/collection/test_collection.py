"""Collections: what becomes of shards, what is kept when a run is repeated, and that nothing is lost or done twice."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from shard_files import contents, decode, encode, fill, make_tar, png, run

from nvae_codec import collection
from nvae_codec.bitstreams.container import unpack
from nvae_codec.codec import Codec
from nvae_codec.collection import Far, encode_collection
from nvae_codec.errors import ImageError
from nvae_codec.formats.open import read_image
from nvae_codec.manifest import DONE, FAILED, KEPT, Manifest, Record
from nvae_codec.shards import find_archives, find_shards


def test_shards_become_the_archives_that_one_call_makes_and_come_back(
    folder, tar, images, encoding, decoding, here, tmp_path
):
    out, back = tmp_path / "out", tmp_path / "back"
    far: list[Far] = []
    records = encode([folder, tar], str(out), encoding, here, watch=far.append)
    assert [records[name].status for name in ("pictures", "more.v2.tar")] == [DONE, DONE]
    assert far[-1] == (2, 6, sum(record.input_bytes for record in records.values()))
    alone = Codec.load(encoding.model).compress_archive(
        [(name, read_image(data)) for name, data in sorted(images.items())], chunk_pixels=2 * 16**2, effort=1
    )
    assert (out / "pictures.nvb").read_bytes() == alone
    assert [image.name for image in unpack((out / "more.v2.nvb").read_bytes()).images] == list(images)

    decoded = decode([str(out)], str(back), decoding, here)
    assert {record.status for record in decoded.values()} == {DONE}
    assert contents(back / "pictures") == contents(back / "more.v2") == images
    as_tar = decode([str(out / "pictures.nvb")], str(back), replace(decoding, as_tar=True), here)
    assert as_tar["pictures.nvb"].status == DONE and contents(back / "pictures.tar") == images
    as_ppm = decode([str(out / "pictures.nvb")], str(back / "p"), replace(decoding, format_name="ppm"), here)
    assert as_ppm["pictures.nvb"].status == DONE
    assert set(contents(back / "p" / "pictures")) == {"a/1.ppm", "a/2.pgm", "b.ppm"}
    no_grey = decode([str(out / "pictures.nvb")], str(back / "w"), replace(decoding, format_name="webp"), here)
    assert no_grey["pictures.nvb"].status == FAILED and "grey" in no_grey["pictures.nvb"].error
    assert [path.name for path in (back / "w").iterdir()] == ["manifest.jsonl"]


def test_what_is_there_and_whole_is_kept(folder, tar, encoding, decoding, here, coded, tmp_path):
    out, back = str(tmp_path / "out"), str(tmp_path / "back")
    first = encode([folder, tar], out, encoding, here)
    again = encode([folder, tar], out, encoding, here)
    assert len(coded) == 2
    assert again == {name: replace(record, status=KEPT, seconds=again[name].seconds, finished=again[name].finished)
                     for name, record in first.items()}  # fmt: skip
    for as_tar in (False, True):
        how = replace(decoding, as_tar=as_tar)
        assert {record.status for record in decode([out], back, how, here).values()} == {DONE}
        assert {record.status for record in decode([out], back, how, here).values()} == {KEPT}
    assert {record.status for record in encode([folder, tar], out, encoding, here, force=True).values()} == {DONE}
    assert len(coded) == 4


def test_what_is_damaged_or_of_shards_that_changed_is_made_anew(folder, tar, encoding, decoding, here, coded, tmp_path):
    out, back = tmp_path / "out", tmp_path / "back"
    encode([folder, tar], str(out), encoding, here)
    whole = (out / "pictures.nvb").read_bytes()
    (out / "pictures.nvb").write_bytes(whole[:-1])
    records = encode([folder, tar], str(out), encoding, here)
    assert (records["pictures"].status, records["more.v2.tar"].status) == (DONE, KEPT)
    assert (out / "pictures.nvb").read_bytes() == whole
    fill(Path(folder), {"c.png": png(5, 5, 3)})
    assert encode([folder, tar], str(out), encoding, here)["pictures"].images == 4
    assert len(coded) == 4

    decode([str(out)], str(back), decoding, here)
    (back / "pictures" / "b.png").write_bytes(b"changed")
    records = decode([str(out)], str(back), decoding, here)
    assert (records["pictures.nvb"].status, records["more.v2.nvb"].status) == (DONE, KEPT)
    assert (back / "pictures" / "b.png").read_bytes() == Path(folder, "b.png").read_bytes()


def test_archives_that_a_killed_run_left_are_kept(folder, tar, encoding, decoding, here, coded, tmp_path):
    """It has written them, and not what they are: its manifest is not there, or ends in the middle of a line."""
    out = tmp_path / "out"
    encode([folder, tar], str(out), encoding, here)
    manifest = out / "manifest.jsonl"
    lines = manifest.read_text().splitlines()
    manifest.write_text(f"{lines[0]}\n{lines[1][:40]}")
    records = encode([folder, tar], str(out), encoding, here)
    assert {record.status for record in records.values()} == {KEPT} and len(coded) == 2
    assert [json.loads(line)["shard"] for line in manifest.read_text().splitlines() if line.endswith("}")] == [
        json.loads(lines[0])["shard"], folder, tar
    ]  # fmt: skip
    manifest.unlink()
    assert {record.status for record in encode([folder, tar], str(out), encoding, here).values()} == {KEPT}
    assert len(coded) == 2


def test_files_of_somebody_else_are_not_replaced(folder, tar, encoding, decoding, here, tmp_path):
    out, back = tmp_path / "out", tmp_path / "back"
    encode([tar], str(out), encoding, here)
    other = Codec.load(encoding.model).compress_archive([("x.png", read_image(png(5, 5, 3)))])
    for data in (b"a letter", other):
        (out / "pictures.nvb").write_bytes(data)
        record = encode([folder], str(out), encoding, here)["pictures"]
        assert record.status == FAILED and "is not an archive of this shard" in record.error
        assert (out / "pictures.nvb").read_bytes() == data
    assert encode([folder], str(out), encoding, here, force=True)["pictures"].status == DONE

    fill(back, {"pictures/b.png": b"a letter", "pictures.tar": b"a letter"})
    for as_tar, letter in ((False, "pictures/b.png"), (True, "pictures.tar")):
        how = replace(decoding, as_tar=as_tar)
        record = decode([str(out / "pictures.nvb")], str(back), how, here)["pictures.nvb"]
        assert record.status == FAILED and "exists already" in record.error
        assert (back / letter).read_bytes() == b"a letter"
        record = decode([str(out / "pictures.nvb")], str(back), how, here, force=True)["pictures.nvb"]
        assert record.status == DONE


def test_a_shard_that_fails_stops_no_other(folder, tar, encoding, decoding, here, tmp_path):
    out, back = tmp_path / "out", tmp_path / "back"
    cut = tmp_path / "cut.tar"
    cut.write_bytes(Path(tar).read_bytes()[:700])
    bad = tmp_path / "bad"
    fill(bad, {"no.png": b"no image", "none.jpg": b"", "yes.png": png(5, 5, 3)})
    (tmp_path / "empty").mkdir()
    inputs = [str(cut), str(bad), str(tmp_path / "empty"), folder]
    records = encode(inputs, str(out), encoding, here)
    assert {name: record.status for name, record in records.items()} == {
        "cut.tar": FAILED, "bad": FAILED, "empty": FAILED, "pictures": DONE
    }  # fmt: skip
    assert "not a whole tar file" in records["cut.tar"].error
    assert "2 images cannot be coded" in records["bad"].error and "no.png" in records["bad"].error
    assert "at least one image" in records["empty"].error
    assert sorted(path.name for path in out.iterdir()) == ["manifest.jsonl", "pictures.nvb"]

    lenient = replace(encoding, skip_unreadable=True)
    records = encode(inputs, str(out), lenient, here)
    assert (records["bad"].status, records["bad"].images, len(records["bad"].left_out)) == (DONE, 1, 2)
    assert records["pictures"].status == KEPT
    (out / "manifest.jsonl").unlink()
    assert encode([str(bad)], str(out), lenient, here)["bad"].status == KEPT
    (out / "manifest.jsonl").unlink()
    assert encode([str(bad)], str(out), encoding, here)["bad"].status == FAILED

    archive = out / "pictures.nvb"
    (out / "half.nvb").write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    (out / "large.nvb").write_bytes(archive.read_bytes())
    records = decode([str(out)], str(back), replace(decoding, max_pixels=10), here)
    assert {record.status for record in records.values()} == {FAILED}
    records = decode([str(out)], str(back), decoding, here)
    assert [name for name, record in records.items() if record.status == FAILED] == ["half.nvb"]


def test_nothing_is_written_outside(folder, images, encoding, decoding, here, tmp_path):
    """Names that lead out are refused when they are coded; a link in the output is not followed."""
    out, back, elsewhere = tmp_path / "out", tmp_path / "back", tmp_path / "elsewhere"
    leading_out = make_tar(tmp_path / "leading.tar", {"../a.png": images["b.png"]})
    record = encode([str(leading_out)], str(out), encoding, here)["leading.tar"]
    assert record.status == FAILED and "not a plain relative path" in record.error
    encode([folder], str(out), encoding, here)
    elsewhere.mkdir()
    (back / "pictures").mkdir(parents=True)
    (back / "pictures" / "a").symlink_to(elsewhere)
    record = decode([str(out)], str(back), decoding, here)["pictures.nvb"]
    assert record.status == FAILED and "outside" in record.error
    assert not any(elsewhere.iterdir())


def test_shards_elsewhere_by_their_urls(folder, tar, images, encoding, decoding, here, tmp_path):
    """In a store that has no folders to make, cannot append, and shows a file when all of it is there."""
    memory = fsspec.filesystem("memory")
    try:
        memory.put(folder, "/bucket/in/pictures", recursive=True)
        memory.put(tar, "/bucket/in/more.v2.tar")
        given = ["memory://bucket/in/pictures", "memory://bucket/in/*.tar"]
        records = encode(given, "memory://bucket/out", encoding, here)
        assert {record.status for record in records.values()} == {DONE}
        assert len(Manifest("memory://bucket/out").last) == 2
        local = encode([folder, tar], str(tmp_path / "out"), encoding, here)
        for name in ("pictures.nvb", "more.v2.nvb"):
            assert memory.cat(f"/bucket/out/{name}") == (tmp_path / "out" / name).read_bytes()
        assert {record.output_digest for record in records.values()} == {r.output_digest for r in local.values()}
        assert {record.status for record in encode(given, "memory://bucket/out", encoding, here).values()} == {KEPT}
        for as_tar in (False, True):
            how = replace(decoding, as_tar=as_tar)
            for status in (DONE, KEPT):
                back = decode(["memory://bucket/out"], "memory://bucket/back", how, here)
                assert {record.status for record in back.values()} == {status}
        assert memory.cat("/bucket/back/pictures/a/1.png") == images["a/1.png"]
        memory.get("/bucket/back/more.v2.tar", str(tmp_path / "back.tar"))
        assert contents(tmp_path / "back.tar") == images
    finally:
        memory.store.clear()


def test_inputs_that_are_no_shards_are_refused(folder, tar, tmp_path):
    (tmp_path / "a.txt").write_text("no shard")
    shutil.copytree(folder, tmp_path / "sub" / "pictures")
    for inputs, error, reason in [
        ([str(tmp_path / "a.txt")], ImageError, "a shard is a folder of images, or a tar file"),
        ([str(tmp_path / "none")], FileNotFoundError, "none"),
        ([folder, str(tmp_path / "sub" / "pictures")], ImageError, "would get the same name, pictures"),
        (["memory://none/*.tar"], FileNotFoundError, "there is no such file"),
        (["nonsense://a/b"], OSError, "nonsense"),
    ]:
        with pytest.raises(error, match=reason):
            find_shards(inputs)
    with pytest.raises(ImageError, match=r"no \.nvb file"):
        find_archives([folder])


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2"])
def test_compressed_tar_files(mode, images, tmp_path):
    path = make_tar(tmp_path / f"set.tar.{mode[2:]}", images, mode)
    (shard,) = find_shards([str(path)])
    assert shard.stem == "set" and dict(shard.files()) == images


@pytest.mark.thorough
def test_processes_make_the_same_archives(folder, tar, encoding, here, tmp_path):
    alone = encode([folder, tar], str(tmp_path / "alone"), encoding, here)
    far: list[Far] = []
    shared = run(
        encode_collection, find_shards([folder, tar]), str(tmp_path / "out"), encoding, workers=2, watch=far.append
    )
    assert {name: record.output_digest for name, record in shared.items()} == {
        name: record.output_digest for name, record in alone.items()
    }
    assert far[-1].shards == 2 and far[-1].images == 6


def test_work_is_given_out_a_little_ahead_alone(folder, encoding, tmp_path, monkeypatch):
    """Of a million shards none but the next few wait in memory."""
    shards = [replace(find_shards([folder])[0], path=f"shard {number}") for number in range(50)]
    waiting = most = 0

    class Counting(ThreadPoolExecutor):
        def submit(self, *given, **options):
            nonlocal waiting, most
            waiting += 1
            most = max(most, waiting)
            return super().submit(*given, **options)

    def work(how, shard, target, last, force):
        nonlocal waiting
        waiting -= 1
        return Record(shard.path, target, DONE)

    monkeypatch.setattr(collection, "encode_shard", work)
    with Counting(1) as executor:
        records = list(encode_collection(shards, str(tmp_path), encoding, executor, workers=3))
    assert len({record.shard for record in records}) == 50 and most <= 6


def test_whatever_a_store_raises_fails_its_shard_alone(folder, tar, encoding, here, tmp_path, monkeypatch):
    """Libraries of stores have errors of their own, which may come in the middle of a file."""
    memory = fsspec.filesystem("memory")

    class StoreError(Exception):
        pass

    def fails(self, *given):
        raise StoreError("no key was given\nand more")

    try:
        memory.put(tar, "/bucket/in/more.v2.tar")
        shards = find_shards(["memory://bucket/in/more.v2.tar", folder])
        with monkeypatch.context() as patch:
            patch.setattr(type(memory.open("/bucket/in/more.v2.tar")), "read", fails, raising=False)
            records = run(encode_collection, shards, str(tmp_path / "out"), encoding, here)
        assert (records["more.v2.tar"].status, records["pictures"].status) == (FAILED, DONE)
        assert records["more.v2.tar"].error == "memory://bucket/in/more.v2.tar: no key was given"
    finally:
        memory.store.clear()

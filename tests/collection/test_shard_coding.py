"""What of a collection is kept, and what is not replaced: one case for each way to get that wrong."""

import json
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from shard_files import contents, decode, encode, fill, make_tar, png

from nvae_codec import storage
from nvae_codec.bitstreams.container import pack, unpack
from nvae_codec.codec import Codec
from nvae_codec.errors import ImageError
from nvae_codec.formats.open import read_image, write_all
from nvae_codec.image import Image
from nvae_codec.manifest import DONE, FAILED, KEPT, Manifest
from nvae_codec.shards import find_archives, find_shards

EXIF = b"II*\0\x08\0\0\0\0\0\0\0\0\0"


def test_a_failure_in_between_hides_nothing(tar, images, encoding, here, tmp_path):
    """Neither that the archive is ours, nor that the shard has changed since it was made."""
    out = str(tmp_path / "out")
    first = encode([tar], out, encoding, here)["more.v2.tar"]
    whole = Path(tar).read_bytes()
    Path(tar).write_bytes(whole[:700])
    assert encode([tar], out, encoding, here)["more.v2.tar"].status == FAILED
    make_tar(Path(tar), images | {"b.png": png(16, 16, 3)})
    again = encode([tar], out, encoding, here)["more.v2.tar"]
    assert again.status == DONE and again.output_digest != first.output_digest
    make_tar(Path(tar), {"other.png": png(16, 16, 3)})
    assert encode([tar], out, encoding, here)["more.v2.tar"].status == DONE


def test_an_archive_of_other_images_with_the_same_names_is_not_kept(folder, images, encoding, here, tmp_path):
    out = tmp_path / "out"
    encode([folder], str(out), encoding, here)
    (out / "manifest.jsonl").unlink()
    assert encode([folder], str(out), encoding, here)["pictures"].status == KEPT
    (out / "manifest.jsonl").unlink()
    fill(Path(folder), {"b.png": png(16, 16, 3)})
    record = encode([folder], str(out), encoding, here)["pictures"]
    assert record.status == FAILED and "is not an archive of this shard" in record.error


def test_what_another_shard_of_the_name_has_become_is_not_replaced(folder, images, encoding, decoding, here, tmp_path):
    other, out, back = tmp_path / "other" / "pictures", tmp_path / "out", tmp_path / "back"
    fill(other, {"x.png": png(5, 5, 3)})
    encode([folder], str(out), encoding, here)
    before = (out / "pictures.nvb").read_bytes()
    record = encode([str(other)], str(out), encoding, here)["pictures"]
    assert record.status == FAILED and (out / "pictures.nvb").read_bytes() == before
    (out / "pictures.nvb").write_bytes(b"my thesis")
    record = encode([folder], str(out), encoding, here)["pictures"]
    assert record.status == FAILED and (out / "pictures.nvb").read_bytes() == b"my thesis"
    (tmp_path / "sheet").mkdir()
    (tmp_path / "sheet" / "manifest.jsonl").write_text('{"mine": 1}\n')
    with pytest.raises(ImageError, match="is no manifest of a collection"):
        encode([folder], str(tmp_path / "sheet"), encoding, here)
    assert (tmp_path / "sheet" / "manifest.jsonl").read_text() == '{"mine": 1}\n' and not back.exists()


def test_tar_files_that_a_killed_run_left_are_kept(folder, encoding, decoding, here, tmp_path, monkeypatch):
    """And of the same places by other names."""
    out, back = tmp_path / "out", tmp_path / "back"
    encode([folder], str(out), encoding, here)
    as_tar = replace(decoding, as_tar=True)
    assert decode([str(out)], str(back), as_tar, here)["pictures.nvb"].status == DONE
    monkeypatch.chdir(tmp_path)
    assert decode(["out"], "back", as_tar, here)["pictures.nvb"].status == KEPT
    (back / "manifest.jsonl").unlink()
    assert decode([str(out)], str(back), as_tar, here)["pictures.nvb"].status == KEPT
    assert encode(["pictures"], "out", encoding, here)["pictures"].status == KEPT


def test_other_settings_make_other_outputs(folder, images, encoding, decoding, here, tmp_path):
    out, back = str(tmp_path / "out"), tmp_path / "back"
    encode([folder], out, encoding, here)
    smaller = replace(encoding, chunk_pixels=16**2)
    assert [encode([folder], out, smaller, here)["pictures"].status for _ in range(2)] == [DONE, KEPT]
    elsewhere = replace(smaller, threads=1, skip_unreadable=True)
    assert encode([folder], out, elsewhere, here)["pictures"].status == KEPT
    decode([out], str(back), decoding, here)
    in_tiff = replace(decoding, format_name="tif")
    assert decode([out], str(back), in_tiff, here)["pictures.nvb"].status == DONE
    assert {"a/1.tif", "a/2.tif", "b.tif"} <= set(contents(back / "pictures"))


@pytest.mark.parametrize("data", [b"\x1f\x8b\x08", b"\x1f\x8b\x08\0\0\0\0\0\0\3rubbish", b"BZh9rubbish", b"\xfd7zXZ\0"])
def test_whatever_a_damaged_tar_file_makes_libraries_raise(data, folder, encoding, here, tmp_path):
    path = tmp_path / "cut.tar.gz"
    path.write_bytes(data)
    records = encode([str(path), folder], str(tmp_path / "out"), encoding, here)
    assert (records["cut.tar.gz"].status, records["pictures"].status) == (FAILED, DONE)
    assert "\n" not in records["cut.tar.gz"].error


def test_names_that_are_no_text(images, encoding, here, tmp_path):
    odd = tmp_path / "a\udcff\u2028"
    fill(odd, images)
    out = tmp_path / "out"
    for status in (DONE, KEPT):
        (record,) = encode([str(odd)], str(out), encoding, here).values()
        assert record.status == status
    assert len(Manifest(str(out)).last) == 1


def test_files_that_are_no_archives_of_a_collection(encoding, decoding, here, tmp_path):
    out, back = tmp_path / "out", tmp_path / "back"
    out.mkdir()
    codec = Codec.load(encoding.model)
    (out / "one.nvb").write_bytes(codec.compress(read_image(png(16, 16, 3)), payload="neural"))
    for how in (decoding, replace(decoding, as_tar=True), replace(decoding, format_name="png")):
        record = decode([str(out)], str(back), how, here)["one.nvb"]
        assert record.status == FAILED and "is no archive" in record.error
    assert [path.name for path in back.iterdir()] == ["manifest.jsonl"]
    for name in ("...nvb", "..nvb"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ImageError, match="no output can be named after this"):
            find_archives([str(tmp_path / name)])


def test_a_link_in_the_place_of_an_output_is_not_followed(folder, encoding, decoding, here, tmp_path):
    out, back, elsewhere = tmp_path / "out", tmp_path / "back", tmp_path / "elsewhere"
    encode([folder], str(out), encoding, here)
    elsewhere.mkdir()
    back.mkdir()
    (back / "pictures").symlink_to(elsewhere)
    assert decode([str(out)], str(back), decoding, here)["pictures.nvb"].status == FAILED
    assert not any(elsewhere.iterdir())


def test_a_moments_error_of_a_store_changes_nothing(folder, encoding, here, monkeypatch):
    memory = fsspec.filesystem("memory")
    try:
        encode([folder], "memory://bucket/out", encoding, here)
        before = memory.cat("/bucket/out/manifest.jsonl")

        def fails(*given, **options):
            raise TimeoutError("the store is busy")

        with monkeypatch.context() as patch:
            patch.setattr(type(memory), "info", fails)
            with pytest.raises(OSError, match="busy"):
                encode([folder], "memory://bucket/out", encoding, here)
        assert memory.cat("/bucket/out/manifest.jsonl") == before
    finally:
        memory.store.clear()


def test_files_by_url_are_those_of_this_machine(folder, encoding, here, tmp_path):
    out = tmp_path / "out"
    assert encode([f"file://{folder}"], f"file://{out}", encoding, here)["pictures"].status == DONE
    assert encode([folder], str(out), encoding, here)["pictures"].status == KEPT


def test_where_files_show_before_they_are_whole_they_get_their_names_at_the_end(tmp_path, monkeypatch):
    """As in a folder of a server: the local file system stands for one, by a protocol that is not a store's."""
    local = fsspec.get_filesystem_class("file")
    fsspec.register_implementation("server", local, clobber=True)
    monkeypatch.setattr(local, "protocol", ("file", "local", "server"))
    target = tmp_path / "a.bin"
    names: list[str] = []
    pipe = local.pipe_file
    monkeypatch.setattr(local, "pipe_file", lambda self, path, data: names.append(path) or pipe(self, path, data))
    storage.write(f"server://{target}", b"whole")
    assert target.read_bytes() == b"whole" and names != [str(target)] and list(tmp_path.iterdir()) == [target]


def test_shards_are_told_by_their_images_alone(folder, images, encoding, decoding, here, tmp_path):
    """Captions, and archives that are written into the same folder, do not change a shard; hidden images are none."""
    assert encode([folder], folder, encoding, here)["pictures"].status == DONE
    Path(folder, "captions.json").write_text("{}")
    Path(folder, "latest.txt").symlink_to(tmp_path / "nowhere")
    assert encode([folder], folder, encoding, here)["pictures"].status == KEPT
    hidden = make_tar(tmp_path / "hidden.tar", images | {".thumbs/1.png": png(5, 5, 3)})
    record = encode([str(hidden)], str(tmp_path / "out"), encoding, here)["hidden.tar"]
    assert record.images == len(images)
    for status in (DONE, KEPT):
        back = decode([str(tmp_path / "out")], str(tmp_path / "back"), decoding, here)
        assert back["hidden.nvb"].status == status


def test_what_a_format_does_not_hold_is_named(encoding, decoding, here, tmp_path):
    fill(tmp_path / "set", {"a.webp": write_all(Image(read_image(png(9, 9, 3)).samples, EXIF), ".webp")})
    encode([str(tmp_path / "set")], str(tmp_path / "out"), encoding, here)
    as_bmp = replace(decoding, format_name="bmp")
    record = decode([str(tmp_path / "out")], str(tmp_path / "back"), as_bmp, here)["set.nvb"]
    assert record.status == DONE and len(record.left_out) == 1 and "EXIF" in record.left_out[0]
    lines = (tmp_path / "back" / "manifest.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["left_out"] == record.left_out


def test_checksums_of_copies_and_of_files_are_compared_as_well(encoding, here, tmp_path):
    one = png(9, 9, 3)
    jpeg = write_all(Image(read_image(one).samples), ".png")
    fill(tmp_path / "set", {"a.png": one, "b.png": one, "c.png": jpeg, "d.png": png(300, 2, 3)})
    out = tmp_path / "out"
    first = encode([str(tmp_path / "set")], str(out), encoding, here)["set"]
    (out / "manifest.jsonl").unlink()
    assert encode([str(tmp_path / "set")], str(out), encoding, here)["set"].output_digest == first.output_digest
    content = unpack((out / "set.nvb").read_bytes())
    assert any(image.distance for image in content.images)
    assert pack(content) and find_shards([str(tmp_path / "set")])[0].size > 0

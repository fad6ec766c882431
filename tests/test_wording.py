"""Words that what is printed has in common."""

from nvae_codec.wording import counted


def test_one_is_singular():
    assert [counted(number, "image") for number in (0, 1, 1024)] == ["0 images", "1 image", "1,024 images"]

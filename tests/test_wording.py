"""Words that what is printed has in common."""

from nvae_codec.wording import counted, printable, utf8


def test_one_is_singular():
    assert [counted(number, "image") for number in (0, 1, 1024)] == ["0 images", "1 image", "1,024 images"]


def test_what_could_get_at_a_terminal_or_mislead_is_written_out():
    controls = [
        *range(0x20),
        *range(0x7F, 0xA0),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        0x2028,
        0x2029,
        0xDCFF,
    ]
    for code in controls:
        escaped = printable(f"ü {chr(code)} 日")
        assert escaped.isprintable() and escaped.startswith("ü \\") and escaped.endswith(" 日")
        assert printable(escaped) == escaped
    assert printable("\x1b[31m\u202egnp") == r"\x1b[31m\u202egnp"
    assert printable("a\nb\x9b", kept="\n") == "a\nb\\x9b"


def test_names_of_any_bytes_become_text():
    assert utf8("ü\udcff.png") == r"ü\xff.png"

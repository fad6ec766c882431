"""Words that what is printed has in common, and what of a text may reach a terminal."""


def counted(number: int, what: str) -> str:
    """A number with its noun: "1 image", "1,024 images"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def utf8(name: str) -> str:
    """A name of a file, whose bytes need not be text, as text that JSON and pages can hold: \\xff for such a byte."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def printable(text: str, kept: str = "") -> str:
    """A text that cannot get at a terminal, or at a reader's eyes, with what it holds.

    Names of files, notes of models and the like come from strangers. Their control characters (of ASCII and of U+0080
    to U+009F), line breaks, characters that turn the direction of writing, and bytes that are no text are written out
    as Python would: \\x1b, \\u202e. Characters in `kept` stay, such as the line breaks of a table.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in kept else character.encode("unicode_escape").decode()
        for character in text
    )

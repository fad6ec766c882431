"""Words that what is printed has in common."""


def counted(number: int, what: str) -> str:
    """A number with its noun: "1 image", "1,024 images"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"

"""Documents of results: from one dataclass come its JSON, the schema of that, the keys that help shows, and columns.

Field descriptions are the strings below the fields. Nothing here imports numpy or torch, as `--help` needs it.
"""

import csv
import io
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from nvae_codec.errors import NvaeCodecError

STRICT = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
FILE_NAME = "results.json"
HELP_WIDTH = 78

Count = Annotated[int, Field(ge=1)]
Bytes = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Cell = str | int | float | None


def to_json(document: Any) -> str:
    """The text of a JSON document, of a dataclass with the configuration STRICT."""
    return TypeAdapter(type(document)).dump_json(document, indent=1).decode() + "\n"


def schema(kind: Any) -> dict[str, Any]:
    """The JSON schema of what `to_json` makes of dataclasses of this kind."""
    return TypeAdapter(kind).json_schema(mode="serialization")


def read(kind: Any, path: Path, what: str) -> Any:
    """The document of this kind in a JSON file; `what` says in words what it should be.

    Raises OSError, and NvaeCodecError for a file that holds something else.
    """
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        raise NvaeCodecError(f"{path}: not {what}: {_reason(error)}") from error


def _reason(error: ValidationError) -> str:
    """What is the matter with a file, by the first error that pydantic found."""
    first = error.errors(include_url=False)[0]
    place, found = ".".join(map(str, first["loc"])), first["input"]
    if first["type"] == "json_invalid":
        return "it is not JSON"
    kind = found.get("kind") if first["type"] == "union_tag_invalid" else found if place == "kind" else None
    if isinstance(kind, str):
        return f"it is of the kind {kind!r}"
    if first["type"] == "missing":
        return f"it has no {place}"
    if first["type"] == "unexpected_keyword_argument":
        return f"it has {place}, which is unknown"
    return f"{place} has a value that it cannot have" if place else "it has no kind that is known"


def keys(kind: Any) -> str:
    """The keys of a document of this kind with what they mean, a line or a few for each; keys of objects indented."""
    whole = schema(kind)
    return "\n".join(_key_lines(whole, whole.get("$defs", {}), "", set()))


def _key_lines(part: dict, definitions: dict, indent: str, shown: set[str]) -> Iterator[str]:
    bare: list[str] = []  # keys of which there is nothing to say stand together
    for name, value in part["properties"].items():
        text, reference = _description(value, shown)
        if not text and reference is None:
            bare.append(name)
            continue
        if bare:
            yield _wrapped(", ".join(bare), indent)
            bare = []
        yield _wrapped(f"{name}: {text}" if text else name, indent)
        if reference and reference not in shown:
            shown.add(reference)
            yield from _key_lines(definitions[reference], definitions, f"{indent}  ", shown)
    if bare:
        yield _wrapped(", ".join(bare), indent)


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, HELP_WIDTH, initial_indent=indent, subsequent_indent=f"{indent}    ")


def _description(value: dict, shown: set[str]) -> tuple[str, str | None]:
    """What help says of a property, and the name of the object that it holds or lists, if it does."""
    if "const" in value:
        return json.dumps(value["const"]), None
    reference, words = _shape(value)
    described = value.get("description", "")
    if "null" in described:
        words = [word for word in words if word != "or null"]
    if reference in shown:
        words = [*words, "its keys are above"]
    return "; ".join(filter(None, [described, *words])), reference


def _shape(value: dict) -> tuple[str | None, list[str]]:
    """The object that a property holds or lists, if it does, and words for lists and null."""
    choices = value.get("anyOf", [value])
    words = ["or null"] if {"type": "null"} in choices else []
    for choice in choices:
        for holder, word in ((choice, ""), (choice.get("items", {}), "a list"), (_values(choice), "an object by name")):
            if "$ref" in holder:
                return holder["$ref"].rpartition("/")[2], [*filter(None, [word]), *words]
    return None, ["a list", *words] if any(choice.get("type") == "array" for choice in choices) else words


def _values(choice: dict) -> dict:
    values = choice.get("additionalProperties", {})
    return values if isinstance(values, dict) else {}


def heading(name: str) -> str:
    """The words over a column of a field: "bits_per_subpixel" becomes "bits/sub-pixel"."""
    return name.replace("subpixel", "sub-pixel").replace("_per_", "/").removeprefix("num_").replace("_", " ")


def columns(rows: Sequence[Any], names: Sequence[str]) -> tuple[list[str], list[list[Cell]]]:
    """The headings of some fields, and these fields of every row."""
    return [heading(name) for name in names], [[getattr(row, name) for name in names] for row in rows]


def flat(row: Any) -> dict[str, Cell]:
    """The fields of a dataclass that are neither lists nor objects; those of objects of its own among them."""
    found: dict[str, Cell] = {}
    for name, value in asdict(row).items():
        if isinstance(value, Mapping):
            found |= value
        elif not isinstance(value, list):
            found[name] = value
    return found


def to_csv(rows: Sequence[Any]) -> str:
    """A line for each row and one for the names of the fields; `flat` says which."""
    file = io.StringIO(newline="")
    lines = [flat(row) for row in rows]
    writer = csv.DictWriter(file, fieldnames=list(lines[0]) if lines else [])
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()

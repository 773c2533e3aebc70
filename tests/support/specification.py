"""docs/cache-format.md as data: its tables and code blocks, and the words in which it states a type.

In: the page, or the JSON schema of a key. Out: rows of tables by heading, blocks by heading, `integer 0 to 2^40`.
"""

import re
from typing import Any

from support.source import ROOT

PAGE = ROOT / "docs" / "cache-format.md"
BIG = 1 << 10


def sections() -> dict[str, str]:
    """The page cut at its headings, by the heading's words."""
    pieces = re.split(r"^#{1,4} (.+)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def table(section: str) -> list[list[str]]:
    """The rows of the first table of a section, cell by cell, without its head."""
    lines = [line.strip() for line in section.splitlines()]
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def block(section: str, language: str) -> str:
    """The first block of a language in a section."""
    found = re.search(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found.group(1)


def record_tables() -> dict[str, list[list[str]]]:
    """The tables of records, whose headings are the record's name in code."""
    return {name.strip("`"): table(text) for name, text in sections().items() if re.fullmatch(r"`[A-Z]\w+`", name)}


def type_in_words(schema: dict[str, Any]) -> str:
    """What a key may hold, in the words of the page."""
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    if "oneOf" in schema:
        return "by `kind`: " + ", ".join(type_in_words(member) for member in schema["oneOf"])
    if "anyOf" in schema:
        return " or ".join(type_in_words(member) for member in schema["anyOf"])
    if "const" in schema:
        return f"`{_json(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{_json(value)}`" for value in schema["enum"])
    return _by_type(schema)


def _by_type(schema: dict[str, Any]) -> str:
    match schema["type"]:
        case "integer" | "number":
            return f"{schema['type']}{_range(schema)}"
        case "string":
            pattern = f" `{schema['pattern']}`" if "pattern" in schema else ""
            return f"string{_lengths(schema, 'Length', 'characters')}{pattern}"
        case "array" if "prefixItems" in schema:
            return "list [" + ", ".join(type_in_words(item) for item in schema["prefixItems"]) + "]"
        case "array":
            return f"list{_lengths(schema, 'Items', 'items')} of {type_in_words(schema['items'])}"
        case "object":
            if "patternProperties" in schema:
                ((pattern, value),) = schema["patternProperties"].items()
                keys = f"string `{pattern}`"
            else:
                keys, value = (
                    type_in_words(schema["propertyNames"] | {"type": "string"}),
                    schema["additionalProperties"],
                )
            return f"object{_lengths(schema, 'Properties', 'keys')}, {keys} to {type_in_words(value)}"
    return str(schema["type"])


def _range(schema: dict[str, Any]) -> str:
    is_whole = schema["type"] == "integer"
    low, high = schema.get("minimum"), schema.get("maximum")
    if is_whole and "exclusiveMaximum" in schema:
        high = schema["exclusiveMaximum"] - 1
    if "exclusiveMinimum" in schema:
        return f" above {_number(schema['exclusiveMinimum'])}" + (f", at most {_number(high)}" if high else "")
    if low is None and high is None:
        return ""
    return f" {_number(low)} to {_number(high)}" if high is not None else f" from {_number(low)}"


def _lengths(schema: dict[str, Any], what: str, unit: str) -> str:
    low, high = schema.get(f"min{what}"), schema.get(f"max{what}")
    if low is None and high is None:
        return ""
    return f" ({f'{_number(low)} to' if low else 'at most'} {_number(high)} {unit})"


def _number(value: float | None) -> str:
    """Powers of two and their neighbors below are written as such."""
    assert value is not None
    if 0 < value < 1 and (1 / value).is_integer() and value <= 1 / BIG:
        return f"2^-{int(1 / value).bit_length() - 1}"
    whole = int(value)
    for less in (0, 1):
        if whole >= BIG and (whole + less).bit_count() == 1:
            return f"2^{(whole + less).bit_length() - 1}" + (" - 1" if less else "")
    return f"{whole:,}" if whole == value else repr(value)


def _json(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)

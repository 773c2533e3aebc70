"""Configuration files in YAML 1.2 or JSON, and single values of --set and the environment.

`no` is text and 1e-3 a number; duplicate keys, aliases and tags are refused.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from kdpipe.schemas.errors import ConfigError, FileDamaged

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 1 << 20
TAG = "tag:yaml.org,2002:"
# The core schema of YAML 1.2.2, 10.3.2, without octal and hexadecimal numbers, infinities and NaN.
SCALARS = {
    "null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "int": (re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")),
    "float": (re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"), list("-+.0123456789")),
}


def read_file(path: Path) -> dict[str, Any]:
    """The settings in a file; a name that ends in .json is read as strict JSON."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the file {path} cannot be read: {error.strerror}", hint="check --config") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"the file {path} is larger than {MAX_BYTES:,} bytes", hint="check --config")
    value = _json(path, data) if path.suffix.lower() == ".json" else _yaml(path, data)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"the file {path} is not a mapping of settings", hint="write lines such as `seed: 1`")
    return value


def line_numbers(path: Path) -> dict[tuple[str, ...], int]:
    """The line of each setting in a file that `read_file` accepts; JSON is read as YAML."""
    import yaml

    lines: dict[tuple[str, ...], int] = {}

    def visit(node: Any, above: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                lines[(*above, key.value)] = key.start_mark.line + 1
                visit(value, (*above, key.value))

    visit(yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=_loader()), ())
    return lines


def read_value(text: str) -> Any:
    """One value; ValueError if the text is not valid YAML."""
    import yaml

    try:
        return yaml.load(text, Loader=_loader())  # the loader makes plain values only
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{text!r} is not a valid value: {error.problem}") from None
    except (yaml.YAMLError, RecursionError):
        raise ValueError(f"{text!r} is not a valid value") from None


def as_yaml(values: dict[str, Any]) -> str:
    """Settings as YAML that `read_file` reads back unchanged."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Uses the same scalars as the loader."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    Dumper.yaml_implicit_resolvers = {}
    for name, (pattern, first) in SCALARS.items():
        Dumper.add_implicit_resolver(f"{TAG}{name}", pattern, first)
    # The library writes 2e-05 as it reads it: as a number only with a point.
    Dumper.add_representer(float, lambda dumper, value: dumper.represent_scalar(f"{TAG}float", repr(value)))
    return str(yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10_000))


def _json(path: Path, data: bytes) -> Any:
    from kdpipe.schemas.strict_json import parse

    try:
        return parse(data, f"the file {path}")
    except FileDamaged as error:
        raise ConfigError(error.message) from None


def _yaml(path: Path, data: bytes) -> Any:
    import yaml

    try:
        return yaml.load(data.decode("utf-8-sig"), Loader=_loader())  # the loader makes plain values only
    except UnicodeDecodeError as error:
        raise ConfigError(f"the file {path} is not UTF-8: byte {error.start:,}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"the file {path}{where}: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"the file {path} is not YAML: {' '.join(str(error).split())}") from None


@lru_cache(maxsize=1)
def _loader() -> "type[yaml.SafeLoader]":
    """A loader of the core schema without aliases, tags and duplicate keys."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_constructors: ClassVar[dict[Any, Any]] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                mark = cast(Any, self).peek_event().start_mark  # not typed by the library
                raise yaml.composer.ComposerError(None, None, "aliases are not supported: write the value out", mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                if key.tag != f"{TAG}str":
                    raise yaml.constructor.ConstructorError(None, None, "a name must be text", key.start_mark)
                if key.value in seen:
                    problem = f"duplicate key {key.value!r}"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    Loader.yaml_implicit_resolvers = {}
    for name, (pattern, first) in SCALARS.items():
        Loader.add_implicit_resolver(f"{TAG}{name}", pattern, first)
    safe: Any = yaml.SafeLoader
    for name in ("map", "seq", "str", "null"):
        Loader.yaml_constructors[f"{TAG}{name}"] = getattr(safe, f"construct_yaml_{name}")
    for name, convert in (("bool", _boolean), ("int", int), ("float", float)):
        Loader.yaml_constructors[f"{TAG}{name}"] = _scalar(convert)
    Loader.yaml_constructors[None] = safe.construct_undefined
    return Loader


def _boolean(text: str) -> bool:
    return text.lower() == "true"


def _scalar(convert: Callable[[str], Any]) -> Callable[[Any, Any], Any]:
    return lambda loader, node: convert(loader.construct_scalar(node))

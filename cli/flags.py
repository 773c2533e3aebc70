"""Flags that set a setting, as tables shared by the commands with the same settings.

In: a table of `Flag` and a command's function. Out: the function with those flags, --config and --set as options; it
receives them as one `ParsedFlags`.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from kdpipe.cli.help_pages import PANEL_OF


def _unchanged(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: its setting, the type of its argument, and how the argument becomes the setting's value."""

    name: str
    key: str
    type: Any = str
    _: KW_ONLY
    help: str
    metavar: str | None = None
    convert: Callable[[Any], Any] = _unchanged


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedFlags:
    """The flags that were given with their values as settings, the file of --config, and the arguments of --set."""

    flags: tuple[tuple[Flag, Any], ...] = ()
    config: Path | None = None
    sets: tuple[str, ...] = ()


CONFIG = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        rich_help_panel="Run",
        help="Read settings from a YAML or JSON file. Environment, --set and flags override it.",
    ),
]


def _set_option(example: str) -> Any:
    help_text = f"Override one setting, e.g. {example} (repeatable)."
    return Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help=help_text, rich_help_panel="Run")
    ]


def with_flags(table: Sequence[Flag], command: Callable[..., None], set_example: str) -> Callable[..., None]:
    """A command with a table's flags before its own options; its first parameter receives the `ParsedFlags`."""
    flags = {flag.name.removeprefix("--").replace("-", "_"): flag for flag in table}
    own = list(inspect.signature(command).parameters.values())[1:]
    types = {name: _option(flag) for name, flag in flags.items()}
    types |= {parameter.name: parameter.annotation for parameter in own}
    defaults = {parameter.name: parameter.default for parameter in own}

    @functools.wraps(command)
    def run(**typed: Any) -> None:
        flags_given = tuple(
            (flag, flag.convert(typed[name])) for name, flag in flags.items() if typed[name] is not None
        )
        given = ParsedFlags(flags=flags_given, config=typed["config"], sets=tuple(typed["set"] or ()))
        command(given, **{parameter.name: typed[parameter.name] for parameter in own})

    types |= {"config": CONFIG, "set": _set_option(set_example)}
    run.__annotations__ = types
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=defaults.get(name))
        for name, kind in types.items()
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads the options from it
    return run


def _option(flag: Flag) -> Any:
    metavar = flag.metavar or ("N" if flag.type is int else None)
    panel = PANEL_OF[flag.key.partition(".")[0]]
    option = partial(typer.Option, flag.name, help=flag.help, rich_help_panel=panel)
    if flag.type in (int, float):
        return Annotated[Any | None, option(parser=partial(_number, flag.type), metavar=metavar or "NUMBER")]
    return Annotated[flag.type | None, option(metavar=metavar)]


def _number(kind: type, text: str) -> float:
    """A number as it is written: whole where it is, so that a message repeats it; 1e3 counts as a whole number."""
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        number = float(text)
        if kind is float or number.is_integer():
            return int(number) if kind is int else number
    raise typer.BadParameter(f"{text!r} is not {'a whole number' if kind is int else 'a number'}")

"""`kdpipe config`: writes, shows and checks files of settings, without torch."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdpipe.cli import capture_options, console, train_options
from kdpipe.cli.common_options import OUT
from kdpipe.cli.examples import EXAMPLES
from kdpipe.cli.help_pages import HelpCommand, HelpGroup
from kdpipe.schemas.choices import ConfiguredCommand
from kdpipe.schemas.counts import counted
from kdpipe.schemas.errors import ConfigError

if TYPE_CHECKING:
    from kdpipe.schemas.records import Record

FLAGS = {"train": train_options.FLAGS, "cache-teacher": (*capture_options.FLAGS, OUT)}
For = Annotated[ConfiguredCommand, typer.Option("--for", help="Command whose settings these are [train].")]

app = typer.Typer(help="Write, show and check files of settings.", rich_markup_mode=None, cls=HelpGroup)


@app.callback(invoke_without_command=True)
def options(context: typer.Context) -> None:
    """Show the help when no command is given."""
    if context.invoked_subcommand is None:
        console.answer(context.get_help())


@app.command("init", cls=HelpCommand, epilog=EXAMPLES["config init"])
def init(for_: For = "train") -> None:
    """Print a commented YAML file of all settings."""
    helps = {flag.key: f"{flag.name}: {flag.help}" for flag in FLAGS[for_]}
    console.answer("\n".join(_commented(_kind(for_)().model_dump(mode="json"), helps)))


@app.command("show", cls=HelpCommand, epilog=EXAMPLES["config show"])
def show(
    config: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="YAML or JSON file.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override one setting (repeatable).")
    ] = None,
    for_: For = "train",
) -> None:
    """Show every setting, and the source of its value."""
    from kdpipe.pipeline.config_file import line_numbers, read_file, read_value
    from kdpipe.schemas import settings

    kind, lines = _kind(for_), line_numbers(config) if config else {}
    if config:
        _refuse_problems(kind, config)
    given = settings.from_file(kind, read_file(config), str(config)) if config else []
    given += settings.from_environment(kind, os.environ, read_value, others=(_kind("train"), _kind("cache-teacher")))
    given += settings.from_sets(kind, sets or (), read_value)
    sources = {
        ".".join(item.key): f"{config}:{lines.get(item.key, '?')}" if item.level == settings.Level.FILE else item.source
        for item in given
    }
    values = settings.by_dotted_name(settings.build(kind, given).model_dump(mode="json"))
    facts = [(name, f"{json.dumps(value)}  ({sources.get(name, 'default')})") for name, value in values.items()]
    console.answer("\n".join(console.facts(facts)))


@app.command("check", cls=HelpCommand, epilog=EXAMPLES["config check"])
def check(
    config: Annotated[Path, typer.Argument(metavar="FILE", help="YAML or JSON file.")], for_: For = "train"
) -> None:
    """Check a file and list all errors with their lines."""
    _refuse_problems(_kind(for_), config)
    console.answer(f"{config}: OK")


@app.command("schema", cls=HelpCommand, epilog=EXAMPLES["config schema"])
def schema(for_: For = "train") -> None:
    """Print a JSON Schema of the settings, for editors."""
    console.document(_kind(for_).model_json_schema())


def _refuse_problems(kind: "type[Record]", config: Path) -> None:
    """Print all errors of a file with their lines, and raise if there are any."""
    from kdpipe.pipeline.config_file import line_numbers, read_file

    problems, lines = _problems(kind, read_file(config), str(config)), line_numbers(config)
    for key, error in problems:
        hint = f" ({error.hint})" if error.hint else ""
        console.answer(f"{config}:{lines.get(key, 1)}: {error.message}{hint}")
    if problems:
        raise ConfigError(
            f"{config} has {counted(len(problems), 'error')}", hint="correct them, and check the file again"
        )


def _kind(command: ConfiguredCommand) -> "type[Record]":
    from kdpipe.schemas.capture_settings import CaptureSettings
    from kdpipe.schemas.train_settings import TrainSettings

    return TrainSettings if command == "train" else CaptureSettings


def _commented(values: dict[str, Any], helps: dict[str, str], above: str = "", indent: str = "") -> list[str]:
    lines = []
    for name, value in values.items():
        key = f"{above}{name}"
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", *_commented(value, helps, f"{key}.", f"{indent}  ")]
        else:
            comment = f"  # {helps[key]}" if key in helps else ""
            lines.append(f"{indent}# {name}: {json.dumps(value)}{comment}")
    return lines


def _problems(
    kind: "type[Record]", values: dict[str, Any], name: str, above: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], ConfigError]]:
    """The errors of single settings, each with its key; contradictions are checked once every value is valid."""
    from kdpipe.schemas import settings

    problems: list[tuple[tuple[str, ...], ConfigError]] = []
    for step, value in values.items():
        key = (*above, step)
        nested: Any = {} if isinstance(value, dict) else value
        for part in reversed(key):
            nested = {part: nested}
        try:
            settings.build(kind, settings.from_file(kind, nested, name))
        except ConfigError as error:
            problems.append((key, error))
            continue
        if isinstance(value, dict):
            problems += _problems(kind, value, name, key)
    if not above and not problems:
        try:
            settings.build(kind, settings.from_file(kind, values, name))
        except ConfigError as error:
            problems.append(((), error))
    return problems

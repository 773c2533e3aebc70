"""Help pages: options in panels, examples below, in the width of the terminal; and suggestions for wrong words.

In: commands whose options have a panel (`rich_help_panel`) and whose epilog has one example per line. Out: plain text
without rich, which takes longer to import than a help page may take.
"""

from collections import defaultdict
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# The order of the panels; options without one are in the last.
PANELS = ("Teacher", "Student", "Data", "Cache", "Targets", "Losses", "Optimizer", "Run", "Guard", "Output", "Machine")
OTHERS = "Options"
# The panel of a setting's flag, by the first part of the setting's name.
PANEL_OF = {
    "teacher": "Teacher",
    "student": "Student",
    "data": "Data",
    "sequences": "Data",
    "cache": "Cache",
    "extend": "Cache",
    "targets": "Targets",
    "hidden": "Targets",
    "losses": "Losses",
    "optimizer": "Optimizer",
    "schedule": "Optimizer",
    "run": "Run",
    "seed": "Run",
    "guard": "Guard",
    "evaluation": "Output",
    "saving": "Output",
    "report_to": "Output",
    "out": "Output",
    "machine": "Machine",
}
# Panels of options that set no setting.
OPTION_PANELS = {
    "--resume-from": "Run",
    "--overwrite": "Output",
    "--dry-run": "Run",
    "--shard": "Machine",
    "--retry-for": "Machine",
    "--from-cache": "Cache",
    "--allow-partial": "Cache",
    "--verify": "Cache",
    "--student": "Student",
    "--split": "Data",
    "--limit": "Data",
    "--tokens": "Data",
}
# Wider lines than this are hard to read.
MAX_WIDTH = 120
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": MAX_WIDTH}


class HelpCommand(TyperCommand):
    """A command whose help has panels and examples."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_panels(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(self, formatter)


class HelpGroup(TyperGroup):
    """A group of commands whose help has panels and examples."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_panels(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(self, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Suggest `cache-teacher` for `cache teacher`."""
        try:
            return super().resolve_command(ctx, args)
        except typer.TyperException as error:
            joined = f"{ctx.info_name}-{args[0]}"
            if ctx.parent is not None and joined in ctx.parent.command.commands:
                error.message = f"No such command '{args[0]}'. Did you mean '{ctx.parent.info_name} {joined}'?"
            raise


def option_in_other_tools(option: str) -> str | None:
    """The name here of an option of another tool, e.g. of --learning-rate."""
    from kdpipe.schemas.peer_names import PEER_NAMES

    return PEER_NAMES.get(option.lstrip("-").replace("-", "_"))


def _write_panels(command: Any, context: Any, formatter: Any) -> None:
    arguments, panels = [], defaultdict(list)
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None:
            continue
        if parameter.param_type_name == "argument":
            arguments.append(record)
        else:
            panel = getattr(parameter, "rich_help_panel", None) or OPTION_PANELS.get(parameter.opts[0], OTHERS)
            panels[panel].append(record)
    if arguments:
        with formatter.section("Arguments"):
            formatter.write_dl(arguments)
    for name in (*PANELS, OTHERS):
        if name in panels:
            with formatter.section(name):
                formatter.write_dl(panels[name])


def _write_examples(command: Any, formatter: Any) -> None:
    if command.epilog:
        with formatter.section("Examples"):
            formatter.write("".join(f"  {line.strip()}\n" for line in command.epilog.strip().splitlines()))

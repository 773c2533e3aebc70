"""The commands of `kdpipe`, and the options before a command.

Heavy imports happen inside the commands, so that `--help` answers at once.
"""

import importlib.metadata
from collections.abc import Callable
from typing import Annotated

import typer

from kdpipe.cli import cache, config, console
from kdpipe.cli.cache_teacher import cache_teacher
from kdpipe.cli.capture_options import EXTEND, FLAGS, SET_EXAMPLE
from kdpipe.cli.chat import chat
from kdpipe.cli.common_options import OUT
from kdpipe.cli.compare import compare
from kdpipe.cli.demo import demo
from kdpipe.cli.doctor import doctor
from kdpipe.cli.eval import evaluate
from kdpipe.cli.examples import EXAMPLES
from kdpipe.cli.export import export
from kdpipe.cli.flags import with_flags
from kdpipe.cli.help_pages import CONTEXT, HelpCommand, HelpGroup
from kdpipe.cli.plan import plan
from kdpipe.cli.sample import sample
from kdpipe.cli.train import train
from kdpipe.cli.train_options import FLAGS as STUDENT_FLAGS
from kdpipe.cli.train_options import SET_EXAMPLE as STUDENT_SET_EXAMPLE

app = typer.Typer(
    name="kdpipe",
    help="Distill language models in two stages: cache a teacher's predictions, then train students from the cache.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    cls=HelpGroup,
    context_settings=CONTEXT,
)


def _show_version(requested: bool) -> None:
    if requested:
        console.answer(f"kdpipe {importlib.metadata.version('kdpipe')}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show log lines and tracebacks; works after the command too.")
    ] = False,
) -> None:
    """Show the help when no command is given; --version and --debug are handled before."""
    if context.invoked_subcommand is None:
        console.answer(context.get_help())


def _add(name: str, command: Callable[..., None]) -> None:
    app.command(name, cls=HelpCommand, epilog=EXAMPLES[name])(command)


_add("plan", with_flags(FLAGS, plan, SET_EXAMPLE))
_add("cache-teacher", with_flags((*FLAGS, EXTEND, OUT), cache_teacher, SET_EXAMPLE))
_add("train", with_flags(STUDENT_FLAGS, train, STUDENT_SET_EXAMPLE))
_add("eval", evaluate)
_add("compare", compare)
_add("sample", sample)
_add("chat", chat)
app.add_typer(cache.app, name="cache")
app.add_typer(config.app, name="config")
_add("export", export)
_add("demo", demo)
_add("doctor", doctor)

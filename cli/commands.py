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


# Two or three commands to copy, at the end of a help page.
EXAMPLES = {
    "plan": """
        kdpipe plan --teacher Qwen/Qwen3-8B --data corpus.jsonl --targets topk
        kdpipe plan --teacher Qwen/Qwen3-8B --tokens 100000000
    """,
    "cache-teacher": """
        kdpipe cache-teacher --teacher Qwen/Qwen3-8B --data corpus.jsonl --out cache
        kdpipe cache-teacher --teacher model --data chats.jsonl --out cache --dry-run
        kdpipe cache-teacher --config capture.yaml --devices all
    """,
    "train": """
        kdpipe train --from-cache cache --student 100m --out runs/a
        kdpipe train --from-cache cache --student model --out runs/b --lr 1e-5 --lora
        kdpipe train --config train.yaml --dry-run
    """,
    "eval": """
        kdpipe eval --from-cache cache --student runs/a
        kdpipe eval --from-cache cache --student runs/a --tasks hellaswag --limit 100
    """,
    "compare": """
        kdpipe compare runs/a runs/b
        kdpipe compare runs/a student --teacher --format md
    """,
    "sample": """
        kdpipe sample runs/a
        kdpipe sample runs/a --prompt "Once upon a time" --beside Qwen/Qwen3-8B
    """,
    "chat": """
        kdpipe chat runs/a
    """,
    "export": """
        kdpipe export runs/a --to hf --out student
    """,
    "demo": """
        kdpipe demo --out runs/demo
    """,
    "doctor": """
        kdpipe doctor --out runs
        kdpipe doctor --from-cache cache --teacher Qwen/Qwen3-8B --student 100m
        kdpipe doctor runs/a
    """,
}


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

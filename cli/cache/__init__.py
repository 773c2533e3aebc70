"""`kdpipe cache ...`: commands on finished and unfinished caches, one module each."""

import typer

from kdpipe.cli import console
from kdpipe.cli.cache.copy import copy
from kdpipe.cli.cache.export_cache import export
from kdpipe.cli.cache.import_cache import import_
from kdpipe.cli.cache.inspect import inspect
from kdpipe.cli.cache.merge import merge
from kdpipe.cli.cache.requantize import requantize
from kdpipe.cli.cache.sign import sign
from kdpipe.cli.cache.subset import subset
from kdpipe.cli.cache.verify import verify
from kdpipe.cli.examples import EXAMPLES
from kdpipe.cli.help_pages import HelpCommand, HelpGroup

app = typer.Typer(help="Inspect, verify, copy and transform caches.", rich_markup_mode=None, cls=HelpGroup)


@app.callback(invoke_without_command=True)
def options(context: typer.Context) -> None:
    """Show the help when no command is given."""
    if context.invoked_subcommand is None:
        console.answer(context.get_help())


app.command("copy", cls=HelpCommand, epilog=EXAMPLES["cache copy"])(copy)
app.command("export", cls=HelpCommand, epilog=EXAMPLES["cache export"])(export)
app.command("import", cls=HelpCommand, epilog=EXAMPLES["cache import"])(import_)
app.command("inspect", cls=HelpCommand, epilog=EXAMPLES["cache inspect"])(inspect)
app.command("merge", cls=HelpCommand, epilog=EXAMPLES["cache merge"])(merge)
app.command("requantize", cls=HelpCommand, epilog=EXAMPLES["cache requantize"])(requantize)
app.command("sign", cls=HelpCommand, epilog=EXAMPLES["cache sign"])(sign)
app.command("subset", cls=HelpCommand, epilog=EXAMPLES["cache subset"])(subset)
app.command("verify", cls=HelpCommand, epilog=EXAMPLES["cache verify"])(verify)

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
from kdpipe.cli.help_pages import HelpCommand, HelpGroup

app = typer.Typer(help="Inspect, verify, copy and transform caches.", rich_markup_mode=None, cls=HelpGroup)


@app.callback(invoke_without_command=True)
def options(context: typer.Context) -> None:
    """Show the help when no command is given."""
    if context.invoked_subcommand is None:
        console.answer(context.get_help())


app.command("copy", cls=HelpCommand)(copy)
app.command("export", cls=HelpCommand)(export)
app.command("import", cls=HelpCommand)(import_)
app.command("inspect", cls=HelpCommand)(inspect)
app.command("merge", cls=HelpCommand)(merge)
app.command("requantize", cls=HelpCommand)(requantize)
app.command("sign", cls=HelpCommand)(sign)
app.command("subset", cls=HelpCommand)(subset)
app.command("verify", cls=HelpCommand)(verify)

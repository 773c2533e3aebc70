"""Settings of a command: flags over --set over the environment over the file of --config.

In: what was typed. Out: one checked record. Before it: `flags.py`, `stage_one_options.py`, `config_file.py`.
After it: the commands; `kdpipe.schemas.settings` does the joining.
"""

import os
from typing import TYPE_CHECKING

from kdpipe.cli.flags import Given

if TYPE_CHECKING:
    from kdpipe.schemas.stage_one import StageOne


def stage_one(given: Given, *, data: bool = True, out: bool = True) -> "StageOne":
    """The settings: default < file < KDPIPE_* environment < --set < flag, with contradictions and gaps refused."""
    from kdpipe.cli.config_file import read_file, read_value
    from kdpipe.schemas import settings
    from kdpipe.schemas.stage_one import StageOne
    from kdpipe.schemas.stage_one_rules import require, settled

    said = settings.from_file(StageOne, read_file(given.config), str(given.config)) if given.config else []
    said += settings.from_environment(StageOne, os.environ, read_value)
    said += settings.from_sets(StageOne, given.sets, read_value)
    for flag, value in given.flags:
        said += settings.from_flag(StageOne, flag.name, flag.place, value)
    result = settings.layered(StageOne, settled(said))
    require(result, data=data, out=out)
    return result

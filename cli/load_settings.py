"""Settings of a command: flags over --set over the environment over the file of --config.

In: what was typed. Out: one checked record.
"""

import os
from typing import TYPE_CHECKING, TypeVar

from kdpipe.cli.flags import Given

if TYPE_CHECKING:
    from kdpipe.schemas.records import Record
    from kdpipe.schemas.settings import Said
    from kdpipe.schemas.stage_one import StageOne
    from kdpipe.schemas.stage_two import StageTwo

R = TypeVar("R", bound="Record")


def stage_one(given: Given, *, data: bool = True, out: bool = True) -> "StageOne":
    """The settings of stage one, with contradictions and gaps refused."""
    from kdpipe.schemas import settings
    from kdpipe.schemas.stage_one import StageOne
    from kdpipe.schemas.stage_one_rules import require, settled

    result = settings.layered(StageOne, settled(_said(StageOne, given)))
    require(result, data=data, out=out)
    return result


def stage_two(given: Given) -> "StageTwo":
    """The settings of stage two, with contradictions and gaps refused."""
    from kdpipe.schemas import settings
    from kdpipe.schemas.stage_two import StageTwo
    from kdpipe.schemas.stage_two_rules import require, settled

    result = settings.layered(StageTwo, settled(_said(StageTwo, given)))
    require(result)
    return result


def _said(kind: type[R], given: Given) -> "list[Said]":
    """What every layer said: default < file < KDPIPE_* environment < --set < flag."""
    from kdpipe.pipeline.config_file import read_file, read_value
    from kdpipe.schemas import settings
    from kdpipe.schemas.stage_one import StageOne
    from kdpipe.schemas.stage_two import StageTwo

    said = settings.from_file(kind, read_file(given.config), str(given.config)) if given.config else []
    said += settings.from_environment(kind, os.environ, read_value, others=(StageOne, StageTwo))
    said += settings.from_sets(kind, given.sets, read_value)
    for flag, value in given.flags:
        said += settings.from_flag(kind, flag.name, flag.place, value)
    return said

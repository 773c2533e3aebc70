"""Settings of a command, by precedence: flags, --set, environment, the file of --config, defaults."""

import os
from typing import TYPE_CHECKING, TypeVar

from kdpipe.cli.flags import ParsedFlags

if TYPE_CHECKING:
    from kdpipe.schemas.capture_settings import CaptureSettings
    from kdpipe.schemas.records import Record
    from kdpipe.schemas.settings import Assignment
    from kdpipe.schemas.train_settings import TrainSettings

R = TypeVar("R", bound="Record")


def capture_settings(given: ParsedFlags, *, data: bool = True, out: bool = True) -> "CaptureSettings":
    """The settings of cache-teacher and plan, checked for contradictions and missing values."""
    from kdpipe.schemas import settings
    from kdpipe.schemas.capture_rules import require, resolve
    from kdpipe.schemas.capture_settings import CaptureSettings

    result = settings.build(CaptureSettings, resolve(_given_values(CaptureSettings, given)))
    require(result, data=data, out=out)
    return result


def train_settings(given: ParsedFlags) -> "TrainSettings":
    """The settings of train, checked for contradictions and missing values."""
    from kdpipe.schemas import settings
    from kdpipe.schemas.train_rules import require, resolve
    from kdpipe.schemas.train_settings import TrainSettings

    result = settings.build(TrainSettings, resolve(_given_values(TrainSettings, given)))
    require(result)
    return result


def _given_values(kind: type[R], given: ParsedFlags) -> "list[Assignment]":
    """The values of all layers, lowest precedence first."""
    from kdpipe.pipeline.config_file import read_file, read_value
    from kdpipe.schemas import settings
    from kdpipe.schemas.capture_settings import CaptureSettings
    from kdpipe.schemas.train_settings import TrainSettings

    values = settings.from_file(kind, read_file(given.config), str(given.config)) if given.config else []
    values += settings.from_environment(kind, os.environ, read_value, others=(CaptureSettings, TrainSettings))
    values += settings.from_sets(kind, given.sets, read_value)
    for flag, value in given.flags:
        values += settings.from_flag(kind, flag.name, flag.key, value)
    settings.check_overridden(kind, values)
    return values

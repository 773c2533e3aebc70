"""Contradictory and missing settings of stage one, found before anything is loaded.

In: the settings of every layer, or the settings made of them. Out: the settings without those that a later layer
overrides, or a `ConfigError`.
"""

from collections.abc import Iterable

from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.contradictions import Owner, check_owner, check_rivals, is_given, precedence, require_values
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.settings import Assignment, Key
from kdpipe.schemas.targets import CAPTURED

KIND = Owner(key=("targets", "kind"), default="threshold", noun="targets", flag="--targets ")
OF_A_TEACHER = tuple(name for name, kind in CAPTURED.items() if kind.has_teacher)
# The kinds of targets that a setting applies to.
OF_KINDS: dict[Key, tuple[str, ...]] = {
    **{
        ("targets", setting): tuple(name for name, kind in CAPTURED.items() if setting in kind.settings)
        for settings in (kind.settings for kind in CAPTURED.values())
        for setting in settings
    },
    ("targets", "draw_values"): tuple(name for name, kind in CAPTURED.items() if kind.has_draws),
    ("targets", "target_temperature"): tuple(name for name, kind in CAPTURED.items() if kind.has_entries),
    ("targets", "temperatures"): OF_A_TEACHER,
    ("hidden", "layers"): OF_A_TEACHER,
    ("teacher", "allow_foreign_tokenizer"): OF_A_TEACHER,
    ("teacher", "display_name"): OF_A_TEACHER,
    ("teacher", "license"): OF_A_TEACHER,
    ("teacher", "backend"): OF_A_TEACHER,
    ("teacher", "dtype"): OF_A_TEACHER,
    ("teacher", "quantize"): OF_A_TEACHER,
    ("machine", "devices"): OF_A_TEACHER,
}
# Two ways to set one thing: the later layer wins, and one layer may use only one of them.
RIVALS: tuple[tuple[Key, Key, str], ...] = (
    (("targets", "tau"), ("targets", "profile"), "how much threshold targets keep"),
    (("data", "val_path"), ("data", "val_fraction"), "which documents are held out"),
)
LAYERS, DIM = ("hidden", "layers"), ("hidden", "dim")


def resolve(assignments: Iterable[Assignment]) -> list[Assignment]:
    """Drop settings that a later layer overrides; contradictions within one layer are refused."""
    last = {assignment.key: assignment for assignment in assignments}
    for key, kinds in OF_KINDS.items():
        check_owner(last, key, KIND, kinds)
    for first, second, about in RIVALS:
        check_rivals(last, first, second, about)
    _keep_if_layers_are_named(last)
    return list(last.values())


def require(settings: CaptureSettings, *, data: bool = True, out: bool = True) -> None:
    """Refuse settings without a teacher, documents or an output directory."""
    name = settings.teacher.name
    if settings.teacher.allow_foreign_tokenizer and settings.teacher.tokenizer is None:
        raise ConfigError("--allow-foreign-tokenizer needs --tokenizer", hint="give --tokenizer NAME, or omit it")
    if settings.targets.kind not in OF_A_TEACHER:
        predictor = (settings.teacher.tokenizer or name, "tokenizer", "--tokenizer DIR")
    else:
        predictor = (name, "teacher", "--teacher NAME")
    documents = (settings.data.path, "documents", "--data PATH")
    folder = (settings.out, "output directory", "--out DIR")
    require_values(predictor, *[documents] * data, *[folder] * out)


def _keep_if_layers_are_named(last: dict[Key, Assignment]) -> None:
    width, owner = last.get(DIM), last.get(LAYERS)
    if width is None or is_given(owner):
        return
    if precedence(width) < precedence(owner):
        del last[DIM]
        return
    what = "applies to hidden states of every position, and no --hidden-layers are given"
    raise ConfigError(f"{width.source} {what}", hint="give --hidden-layers, e.g. 0.5,1.0, or omit it")

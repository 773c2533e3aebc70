"""Checks before the documents are read, which may take long: teacher config and tokenizer.

In: settings. Out: the tokenizer and the `CapturePlan`, or a `ConfigError`.
"""

from dataclasses import replace
from pathlib import Path

from kdpipe.pipeline.capture.capture_teacher import CapturePlan, plan_capture
from kdpipe.pipeline.capture.inputs import read_tokenizer
from kdpipe.pipeline.documents.data_sources import HUB_NAME
from kdpipe.pipeline.models.folders import HUB_LOOKUP
from kdpipe.pipeline.teachers import backend_of
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer
from kdpipe.pipeline.tokenizers.tokenizer_difference import ALLOW, teacher_tokenizer_difference
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.progress import Progress
from kdpipe.schemas.targets import CAPTURED


def check_before_reading(settings: CaptureSettings, progress: Progress) -> tuple[LoadedTokenizer, CapturePlan]:
    """Check the teacher's description, then its tokenizer, then whether both fit the settings."""
    backend, has_teacher = backend_of(settings), CAPTURED[settings.targets.kind].has_teacher
    if has_teacher and settings.teacher.name is not None:
        _announce_hub(settings.teacher.name, progress)
    backend.describe()  # a broken model folder is reported as such, not as a broken tokenizer
    if settings.teacher.tokenizer is not None:
        _announce_hub(settings.teacher.tokenizer, progress)
    tokenizer = read_tokenizer(settings, backend)
    capture_plan = plan_capture(settings, tokenizer, backend)
    if has_teacher and settings.teacher.tokenizer is not None:
        difference = teacher_tokenizer_difference(settings.teacher, backend, tokenizer)
        if difference is not None:
            progress.warning(f"{ALLOW}: the tokenizer is not the teacher's own: {difference}")
            capture_plan = replace(capture_plan, foreign_tokenizer=True)
        elif settings.teacher.allow_foreign_tokenizer:
            progress.warning(f"{ALLOW} is not needed: {tokenizer.name} is the same as the teacher's own tokenizer")
    return tokenizer, capture_plan


def _announce_hub(name: str, progress: Progress) -> None:
    if HUB_NAME.match(name) and not Path(name).expanduser().exists():
        progress.message(HUB_LOOKUP.format(name))

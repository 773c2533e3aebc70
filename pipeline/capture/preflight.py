"""Checks before the documents are read, which may take long: output directory, teacher config, tokenizer.

In: settings. Out: the tokenizer and the `CapturePlan`, or a `ConfigError`.
"""

import errno
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from kdpipe.cache import layout
from kdpipe.cache.catalog import refuse_foreign_folder
from kdpipe.cache.stores.addresses import check_address, is_url
from kdpipe.cache.stores.fsspec_store import RemoteFolder
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.pipeline.capture.capture_teacher import CapturePlan, plan_capture
from kdpipe.pipeline.capture.inputs import ASKED_HUB, read_tokenizer
from kdpipe.pipeline.documents.data_sources import HUB_NAME
from kdpipe.pipeline.teachers import backend_of
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer
from kdpipe.pipeline.tokenizers.tokenizer_difference import ALLOW, teacher_tokenizer_difference
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.errors import ConfigError
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
        progress.message(ASKED_HUB.format(name))


def is_begun(folder: str, retry_policy: RetryPolicy | None = None) -> bool:
    """Whether a folder holds a cache, complete or not."""
    if is_url(folder):
        retry_policy = (retry_policy or RetryPolicy()).at(folder)
        return retry_policy.call(lambda: RemoteFolder(folder).size(layout.MANIFEST)) is not None
    return (Path(folder) / layout.MANIFEST).exists()


def check_output(settings: CaptureSettings) -> None:
    """Refuse an output directory that no cache can be started in; nothing is left there."""
    folder = settings.out
    if folder is None:
        return
    check_address(folder)
    if folder.startswith(("http://", "https://", "hf://")):
        raise ConfigError(
            f"--out {folder}: cache-teacher cannot write to hf:// or http(s):// directly",
            hint="give a folder or a bucket, then copy from it with `kdpipe cache copy`",
        )
    if is_url(folder):
        return
    path = Path(folder)
    _check_outside(path, settings.data.path, settings.data.val_path)
    try:
        if not is_begun(folder):
            _check_free(path)
    except OSError as error:
        raise ConfigError(
            f"--out {folder}: not writable: {error.strerror}",
            hint="fix its permissions, or choose another --out",
        ) from None


def _check_outside(path: Path, *data: str | None) -> None:
    """Refuse a cache inside the folder of the documents: its files would be read as documents on the next run."""
    for name in data:
        if name is not None and os.path.isdir(name) and path.resolve().is_relative_to(Path(name).resolve()):
            raise ConfigError(
                f"--out {path} is inside the folder of the documents, {name}", hint="choose another --out"
            )


def _check_free(path: Path) -> None:
    nearest = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not nearest.is_dir():
        raise ConfigError(
            f"--out {path}: {nearest} is not a directory",
            hint="choose another --out, or move that file",
        )
    if nearest != path:
        tempfile.TemporaryDirectory(prefix=".kdpipe-", dir=nearest).cleanup()
        return
    refuse_foreign_folder(path)
    # No trial file here: other workers refuse folders with unknown files.
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

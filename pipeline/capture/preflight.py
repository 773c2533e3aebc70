"""What can be refused before the documents are read, which may take long: the place of the cache, config, tokenizer.

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
from kdpipe.pipeline.capture.capture_teacher import CapturePlan, look_ahead
from kdpipe.pipeline.capture.inputs import ASKED_HUB, read_tokenizer
from kdpipe.pipeline.documents.data_sources import HUB_NAME
from kdpipe.pipeline.teachers.shape import teacher_shape
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer
from kdpipe.pipeline.tokenizers.tokenizer_difference import ALLOW, teacher_tokenizer_difference
from kdpipe.pipeline.watch import Watch
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.errors import ConfigError


def look_first(settings: CaptureSettings, watch: Watch) -> tuple[LoadedTokenizer, CapturePlan]:
    """Look at the teacher's config, then at its tokenizer, then at whether both go with what is asked for."""
    shape = None
    if settings.targets.kind != "none" and settings.teacher.name is not None:
        # What is wrong with a whole model folder is not said of the tokenizer in it.
        _tell_of_hub(settings.teacher.name, watch)
        shape = teacher_shape(settings.teacher)
    if settings.teacher.tokenizer is not None:
        _tell_of_hub(settings.teacher.tokenizer, watch)
    tokenizer = read_tokenizer(settings)
    ahead = look_ahead(settings, tokenizer, shape)
    if shape is not None and settings.teacher.tokenizer is not None:
        foreign = teacher_tokenizer_difference(settings.teacher, tokenizer)
        if foreign is not None:
            watch.warn(f"the tokenizer is not the teacher's own, as {ALLOW} permits: {foreign}")
            ahead = replace(ahead, foreign_tokenizer=True)
        elif settings.teacher.allow_foreign_tokenizer:
            watch.warn(f"{ALLOW} is not needed: {tokenizer.name} does not differ from a tokenizer of the teacher")
    return tokenizer, ahead


def _tell_of_hub(name: str, watch: Watch) -> None:
    if HUB_NAME.match(name) and not Path(name).expanduser().exists():
        watch.say(ASKED_HUB.format(name))


def is_begun(folder: str, retry_policy: RetryPolicy | None = None) -> bool:
    """Whether a folder holds a cache, finished or not."""
    if is_url(folder):
        retry_policy = (retry_policy or RetryPolicy()).at(folder)
        return retry_policy.call(lambda: RemoteFolder(folder).size(layout.MANIFEST)) is not None
    return (Path(folder) / layout.MANIFEST).exists()


def check_out(settings: CaptureSettings) -> None:
    """Refuse a place where no cache can be begun; nothing is left there."""
    folder = settings.out
    if folder is None:
        return
    check_address(folder)
    if folder.startswith(("http://", "https://", "hf://")):
        raise ConfigError(
            f"--out {folder} takes no parts one by one", hint="give a folder or a bucket, and copy from it"
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
            f"--out {folder}: nothing can be written there: {error.strerror}",
            hint="choose another folder, or see to it that you may write there",
        ) from None


def _check_outside(path: Path, *data: str | None) -> None:
    """The files of a cache would be found among the documents when the command is run again."""
    for name in data:
        if name is not None and os.path.isdir(name) and path.resolve().is_relative_to(Path(name).resolve()):
            raise ConfigError(f"--out {path} lies in the folder of the documents, {name}", hint="choose another folder")


def _check_free(path: Path) -> None:
    nearest = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not nearest.is_dir():
        raise ConfigError(
            f"--out {path} needs a folder, and {nearest} is none",
            hint="choose another folder, or move what is there away",
        )
    if nearest != path:
        tempfile.TemporaryDirectory(prefix=".kdpipe-", dir=nearest).cleanup()
        return
    refuse_foreign_folder(path)
    # Nothing is tried out where other workers look for what does not belong.
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

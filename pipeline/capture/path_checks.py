"""Checks of the paths of stage one, before torch is imported: output directory, documents, teacher, tokenizer.

In: settings. Out: an error for what does not exist or is incomplete; names that may be on the Hub are looked up later.
"""

import errno
import os
import tempfile
from pathlib import Path

from kdpipe.cache import layout
from kdpipe.cache.catalog import refuse_foreign_folder
from kdpipe.cache.stores.addresses import check_address, is_url
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.pipeline.documents.data_sources import check_data
from kdpipe.pipeline.models.folders import check_model_name
from kdpipe.pipeline.tokenizers.vocabulary_file import check_tokenizer_name
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.targets import CAPTURED


def check_paths(settings: CaptureSettings) -> None:
    """Refuse what can be refused by looking at files alone."""
    check_output(settings)
    teacher = settings.teacher
    if teacher.name is not None and teacher.backend == "transformers" and CAPTURED[settings.targets.kind].has_teacher:
        check_model_name(teacher.name)
    if teacher.tokenizer is not None:
        check_tokenizer_name(teacher.tokenizer)
    for data in (settings.data.path, settings.data.val_path):
        if data is not None:
            check_data(data)


def is_begun(folder: str, retry_policy: RetryPolicy | None = None) -> bool:
    """Whether a folder holds a cache, complete or not."""
    if is_url(folder):
        from kdpipe.cache.stores.fsspec_store import RemoteFolder

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

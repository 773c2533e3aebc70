"""Data sources: a file, a folder, a glob, or a Hub data set.

In: the value of --data. Out: files of rows, in a fixed order.
"""

import os
import re
from collections.abc import Callable, Iterator
from glob import glob, has_magic
from pathlib import Path

from kdpipe.pipeline.documents.row_files import Limits, LinesFile, PlainFile, RowFile, TableFile, open_json
from kdpipe.schemas.errors import ConfigError

FORMATS: dict[str, Callable[[Path, str, Limits], RowFile]] = {
    ".jsonl": LinesFile,
    ".json": open_json,
    ".parquet": TableFile,
    ".txt": PlainFile,
}
PACKED = (".gz", ".zst", ".zip", ".bz2", ".xz", ".tar")
OTHER = (".csv", ".tsv", ".arrow", ".feather", ".ndjson")
READABLE = ", ".join(FORMATS)
HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?$")


def find_files(data: str, split: str | None, limits: Limits, hub_split: str = "train") -> list[RowFile]:
    """The files of a source, sorted by path, or a split of a Hub data set."""
    try:
        return _find(data, split, limits, hub_split)
    except OSError as error:
        raise _unreadable(data, error) from None


def _unreadable(data: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"the data {error.filename or data} cannot be read: {error.strerror}",
        hint="check its permissions, or select other files with a glob",
    )


def check_data(data: str) -> None:
    """Refuse a path that does not exist, without reading anything."""
    try:
        if Path(data).expanduser().exists() or has_magic(data) or is_of_hub(data):
            return
    except OSError as error:
        raise _unreadable(data, error) from None
    raise ConfigError(
        f"no such data: {data}",
        hint="expected a file, a directory, a quoted glob, or a Hub data set as OWNER/NAME",
    )


def _find(data: str, split: str | None, limits: Limits, hub_split: str) -> list[RowFile]:
    path = Path(data).expanduser()
    if path.is_file():
        return _open_all([path], path.parent, split, limits, data)
    if path.is_dir():
        paths = [file for file in _below(path) if _may_be_data(file, path)]
        return _open_all(paths, path, split, limits, f"the folder {data}")
    if has_magic(data):
        paths = [Path(file) for file in glob(str(path), recursive=True) if Path(file).is_file()]
        return _open_all(paths, _common(paths), split, limits, f"{data}")
    check_data(data)
    from kdpipe.pipeline.documents.hub_datasets import HubRows

    return [HubRows(data, split or hub_split)]


def is_of_hub(data: str) -> bool:
    """Whether a name is looked up on the Hub: it is not a local path, nor does it look like a mistyped one."""
    path = Path(data).expanduser()
    is_path = Path(data).suffix in (*FORMATS, *PACKED, *OTHER) or ("/" in data and path.parts[0] in _folders_here())
    return not path.exists() and not has_magic(data) and not is_path and HUB_NAME.match(data) is not None


def _below(folder: Path) -> Iterator[Path]:
    """All files below a folder; an unreadable subfolder is an error."""

    def refuse(error: OSError) -> None:
        raise error

    for inside, below, names in os.walk(folder, onerror=refuse):
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (Path(inside) / name for name in names)


def _folders_here() -> set[str]:
    return {path.name for path in Path().iterdir() if path.is_dir()}


def _may_be_data(path: Path, folder: Path) -> bool:
    """Skip hidden files (version control, download tools), but not data in unsupported formats."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix in (*FORMATS, *PACKED, *OTHER) and not hidden and path.is_file()


def _common(paths: list[Path]) -> Path:
    return min((path.parent for path in paths), key=lambda parent: len(parent.parts), default=Path())


def _open_all(paths: list[Path], root: Path, split: str | None, limits: Limits, what: str) -> list[RowFile]:
    if not paths:
        raise ConfigError(f"no data files in {what}", hint=f"supported formats: {READABLE}")
    names = {_name(path, root): path for path in paths}
    chosen = [name for name in sorted(names) if split is None or split in _words(name)]
    if not chosen:
        raise ConfigError(
            f"no file of {what} has {split!r} in its name; files: {', '.join(sorted(names)[:8])}",
            hint="omit --data-split to read all files",
        )
    return [_open(names[name], name, limits) for name in chosen]


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _words(name: str) -> set[str]:
    """The words of a path, one of which may be a split: train-00000-of-00002.parquet, validation/a.jsonl."""
    return set(re.split(r"[/._-]", name))


def _open(path: Path, name: str, limits: Limits) -> RowFile:
    if path.suffix not in FORMATS:
        kind = f"a {path.suffix} file" if path.suffix else "a file without a suffix"
        hint = "convert it, or select the other files with a glob" if path.suffix else "add the suffix of its format"
        hint = "decompress it" if path.suffix in PACKED else hint
        raise ConfigError(f"{path} is {kind}; supported formats: {READABLE}", hint=hint)
    return FORMATS[path.suffix](path, name, limits)

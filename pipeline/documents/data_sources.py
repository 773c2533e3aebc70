"""Data sources: a file, a folder, a glob, or a Hub data set.

In: the value of --data. Out: files of rows, in a fixed order.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from glob import glob, has_magic
from pathlib import Path

from kdpipe.pipeline.documents.compressed_files import OPENERS
from kdpipe.pipeline.documents.delimited_files import DelimitedFile
from kdpipe.pipeline.documents.row_files import Limits, LinesFile, PlainFile, RowFile, TableFile, open_json
from kdpipe.schemas.errors import ConfigError

FORMATS: dict[str, Callable[[Path, str, Limits], RowFile]] = {
    ".jsonl": LinesFile,
    ".ndjson": LinesFile,
    ".json": open_json,
    ".parquet": TableFile,
    ".csv": partial(DelimitedFile, delimiter=","),
    ".tsv": partial(DelimitedFile, delimiter="\t"),
    ".txt": PlainFile,
    ".md": PlainFile,
}
# Not read: other archives, and other formats of data.
PACKED = (".zip", ".bz2", ".xz", ".tar", ".tgz", ".7z")
OTHER = (".arrow", ".feather", ".xlsx")
READABLE = f"{', '.join(FORMATS)}, also compressed ({', '.join(OPENERS)})"
# In a folder they describe the data.
DESCRIPTIONS = ("readme.md", "readme.txt")
HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataQuery:
    """The files of a source to read: those of a split, and as text those that match a pattern of `text_files`."""

    split: str | None = None
    text_files: tuple[str, ...] = ()
    hub_split: str = "train"

    def is_text(self, path: Path) -> bool:
        names = (path.name, path.with_suffix("").name if path.suffix in OPENERS else path.name)
        return any(fnmatchcase(name, pattern) for pattern in self.text_files for name in names)

    def is_known(self, path: Path) -> bool:
        """Whether a file in a folder looks like data, in a supported format or not."""
        return self.is_text(path) or _format(path) in (*FORMATS, *PACKED, *OTHER)


def find_files(data: str, query: DataQuery, limits: Limits) -> list[RowFile]:
    """The files of a source, sorted by path, or a split of a Hub data set."""
    try:
        return _find(data, query, limits)
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


def _find(data: str, query: DataQuery, limits: Limits) -> list[RowFile]:
    path = Path(data).expanduser()
    if path.is_file():
        return _open_all([path], path.parent, query, limits, data)
    if path.is_dir():
        paths = [file for file in _files_below(path) if _may_be_data(file, path, query)]
        return _open_all(paths, path, query, limits, f"the folder {data}")
    if has_magic(data):
        paths = [Path(file) for file in glob(str(path), recursive=True) if Path(file).is_file()]
        return _open_all(paths, _common(paths), query, limits, f"{data}")
    check_data(data)
    from kdpipe.pipeline.documents.hub_datasets import HubRows

    return [HubRows(data, query.split or query.hub_split)]


def is_of_hub(data: str) -> bool:
    """Whether a name is looked up on the Hub: it is not a local path, nor does it look like a mistyped one."""
    path = Path(data).expanduser()
    is_path = DataQuery().is_known(path) or ("/" in data and path.parts[0] in _folders_here())
    return not path.exists() and not has_magic(data) and not is_path and HUB_NAME.match(data) is not None


def _format(path: Path) -> str:
    """The suffix that names a file's format: that before .gz or .zst."""
    return path.with_suffix("").suffix if path.suffix in OPENERS else path.suffix


def _files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder; an unreadable subfolder is an error."""

    def refuse(error: OSError) -> None:
        raise error

    for inside, below, names in os.walk(folder, onerror=refuse):
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (Path(inside) / name for name in names)


def _folders_here() -> set[str]:
    return {path.name for path in Path().iterdir() if path.is_dir()}


def _may_be_data(path: Path, folder: Path, query: DataQuery) -> bool:
    """Skip hidden files (version control, download tools) and descriptions, but not data in unsupported formats."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    describes = path.name.lower() in DESCRIPTIONS and not query.is_text(path)
    return query.is_known(path) and not hidden and not describes and path.is_file()


def _common(paths: list[Path]) -> Path:
    return min((path.parent for path in paths), key=lambda parent: len(parent.parts), default=Path())


def _open_all(paths: list[Path], root: Path, query: DataQuery, limits: Limits, what: str) -> list[RowFile]:
    if not paths:
        raise ConfigError(
            f"no data files in {what}", hint=f"supported formats: {READABLE}; others with --text-files '*.py'"
        )
    names = {_name(path, root): path for path in paths}
    chosen = [name for name in sorted(names) if query.split is None or query.split in _words(name)]
    if not chosen:
        raise ConfigError(
            f"no file of {what} has {query.split!r} in its name; files: {', '.join(sorted(names)[:8])}",
            hint="omit --data-split to read all files",
        )
    return [_open(names[name], name, query, limits) for name in chosen]


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _words(name: str) -> set[str]:
    """The words of a path, one of which may be a split: train-00000-of-00002.parquet, validation/a.jsonl."""
    return set(re.split(r"[/._-]", name))


def _open(path: Path, name: str, query: DataQuery, limits: Limits) -> RowFile:
    if query.is_text(path):
        return PlainFile(path, name, limits)
    kind = _format(path)
    if kind == ".parquet" and path.suffix in OPENERS:
        raise ConfigError(f"{path}: Parquet files are compressed inside, not as a whole", hint="decompress it")
    if kind in FORMATS:
        return FORMATS[kind](path, name, limits)
    what = f"a {kind} file" if kind else "a file without a suffix"
    if kind in PACKED:
        hint = "decompress it"
    elif kind in OTHER:
        hint = "convert it, or select the other files with a glob"
    else:
        pattern = f"*{kind}" if kind else path.name
        hint = f"to read it as text: --text-files '{pattern}'; to skip it, select the other files with a glob"
    raise ConfigError(f"{path} is {what}; supported formats: {READABLE}", hint=hint)

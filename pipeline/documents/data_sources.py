"""Finds the documents: a file, a folder, a glob, or a data set of the hub.

In: what a person wrote after --data. Out: files of rows, in a fixed order.
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
    """The files that hold the rows, sorted by path; a data set of the hub has a split when none is named."""
    try:
        return _find(data, split, limits, hub_split)
    except OSError as error:
        raise ConfigError(
            f"the data {error.filename or data} cannot be read: {error.strerror}",
            hint="see to it that you may read all of it, or name other files with a glob",
        ) from None


def _find(data: str, split: str | None, limits: Limits, hub_split: str) -> list[RowFile]:
    path = Path(data).expanduser()
    if path.is_file():
        return _open_all([path], path.parent, split, limits, data)
    if path.is_dir():
        paths = [found for found in _below(path) if _may_be_data(found, path)]
        return _open_all(paths, path, split, limits, f"the folder {data}")
    if has_magic(data):
        paths = [Path(found) for found in glob(str(path), recursive=True) if Path(found).is_file()]
        return _open_all(paths, _common(paths), split, limits, f"{data}")
    if is_of_hub(data):
        from kdpipe.pipeline.documents.hub_datasets import HubRows

        return [HubRows(data, split or hub_split)]
    raise ConfigError(
        f"the data {data} is not there",
        hint="name a file, a folder, a glob in quotes, or a data set of the hub as OWNER/NAME",
    )


def is_of_hub(data: str) -> bool:
    """Whether a name is asked of the hub: nothing here is called so, nor is it a path with a slip in it, which is not
    worth half a minute of asking."""
    path = Path(data).expanduser()
    is_path = Path(data).suffix in (*FORMATS, *PACKED, *OTHER) or ("/" in data and path.parts[0] in _folders_here())
    return not path.exists() and not has_magic(data) and not is_path and HUB_NAME.match(data) is not None


def _below(folder: Path) -> Iterator[Path]:
    """Everything in a folder and its folders; one that may not be looked into is not passed over."""

    def refuse(error: OSError) -> None:
        raise error

    for inside, below, names in os.walk(folder, onerror=refuse):
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (Path(inside) / name for name in names)


def _folders_here() -> set[str]:
    return {path.name for path in Path().iterdir() if path.is_dir()}


def _may_be_data(path: Path, folder: Path) -> bool:
    """What version control and download tools leave is no data; data of another format are not passed over."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix in (*FORMATS, *PACKED, *OTHER) and not hidden and path.is_file()


def _common(paths: list[Path]) -> Path:
    return min((path.parent for path in paths), key=lambda parent: len(parent.parts), default=Path())


def _open_all(paths: list[Path], root: Path, split: str | None, limits: Limits, what: str) -> list[RowFile]:
    if not paths:
        raise ConfigError(f"{what} holds nothing that can be read", hint=f"kdpipe reads {READABLE}")
    names = {_name(path, root): path for path in paths}
    chosen = [name for name in sorted(names) if split is None or split in _words(name)]
    if not chosen:
        raise ConfigError(
            f"no file of {what} has {split!r} in its name: there are {', '.join(sorted(names)[:8])}",
            hint="leave --data-split away to read them all",
        )
    return [_open(names[name], name, limits) for name in chosen]


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _words(name: str) -> set[str]:
    """The words of a path, of which one may be its split: train-00000-of-00002.parquet, or validation/a.jsonl."""
    return set(re.split(r"[/._-]", name))


def _open(path: Path, name: str, limits: Limits) -> RowFile:
    if path.suffix not in FORMATS:
        kind = f"a {path.suffix} file" if path.suffix else "a file without an ending"
        hint = "convert it, or name the other files with a glob" if path.suffix else "give it the ending of its format"
        hint = "unpack it" if path.suffix in PACKED else hint
        raise ConfigError(f"{path} is {kind}: kdpipe reads {READABLE}", hint=hint)
    return FORMATS[path.suffix](path, name, limits)

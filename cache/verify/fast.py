"""The fast level: records, file names, kinds and sizes, without reading data.

In: a store. Out: a `FastCheck`: the manifest, the parts' records, and their problems.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from kdpipe.cache import layout
from kdpipe.cache.catalog import load_manifest
from kdpipe.cache.parts.index import IndexRow, read_index
from kdpipe.cache.parts.part_files import examine_part, part_problem, stated_manifest
from kdpipe.cache.stores.file_kinds import wrong_kinds, wrong_kinds_below
from kdpipe.cache.stores.protocol import Store
from kdpipe.schemas.cache_plan import MAX_PARTS
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import FileRecord, Manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.verify_report import Problem

COPY_AGAIN = "copy the file again from the original cache"
FETCH_MISSING = "copy it again from another copy of the cache (kdpipe cache verify --repair-from SRC)"
REPLACE_KIND = "move it away, or replace the link by a copy of its target"

# Reads the records of some parts, and returns them with the problems of each part.
Examine = Callable[[Manifest, Sequence[int], Mapping[int, IndexRow]], Iterable[tuple[PartRecord | None, list[Problem]]]]


@dataclass(slots=True)
class FastCheck:
    """The result of the fast level, filled in as far as the cache could be read.

    `strays` are problems that do not affect reading; `kinds` describes entries that are neither files nor folders.
    """

    manifest: Manifest | None = None
    cache_id: str | None = None
    records: dict[int, PartRecord] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    rows: dict[int, IndexRow] = field(default_factory=dict)
    tables: dict[str, FileRecord] | None = None
    problems: list[Problem] = field(default_factory=list)
    strays: list[Problem] = field(default_factory=list)
    has_index: bool = True

    def add(self, file: str, what: str, do: str = COPY_AGAIN) -> None:
        """Add a problem of the whole cache."""
        self.problems.append(Problem(part=None, file=file, what=what.removeprefix(file).lstrip(": "), do=do))

    def add_stray(self, file: str, what: str, do: str) -> None:
        """Add a problem that does not affect reading."""
        self.add(file, what, do)
        self.strays.append(self.problems[-1])


def fast_check(store: Store, examine: Examine | None = None) -> FastCheck:
    """Check records, names, kinds and sizes; without `examine`, part after part."""
    check = FastCheck()
    try:
        if store.size(layout.MANIFEST) is None and layout.PARTS in store.names(""):
            raise CacheDamaged("the file is missing")
        check.manifest = load_manifest(store)
    except CacheDamaged as error:
        check.add(layout.MANIFEST, error.message, "copy the whole cache again: it cannot be read without its manifest")
        return check
    check.kinds = wrong_kinds_below(store)
    _check_top(store, check)
    check.rows = _check_index(store, check.manifest, check)
    _check_parts(store, check.rows, check, examine or partial(_examine_in_turn, store))
    _check_manifest(store, check.manifest, check)
    _check_tables(store, check.manifest, check)
    return check


def _check_top(store: Store, check: FastCheck) -> None:
    """Names at the top, and the tokenizer's files."""
    assert check.manifest is not None
    names = store.names("")
    for name in names:
        if name not in layout.TOP_LEVEL | layout.BESIDE:
            check.add_stray(name, "not a file of a cache", "move it away")
    for name, what in wrong_kinds(store).items():
        if name in layout.BESIDE | {layout.WORK}:  # others are reported where they are read
            check.add_stray(name, what, REPLACE_KIND)
    expected = {f"{layout.TOKENIZER}/{name}": file for name, file in check.manifest.tokenizer.files.items()}
    _compare_folder(store, layout.TOKENIZER, expected, check)
    if kinds := _within(layout.JOURNAL, check):
        for name, what in kinds.items():
            check.add_stray(name, what, REPLACE_KIND)
        return
    try:
        journal = store.walk(layout.JOURNAL, limit=MAX_PARTS) if layout.JOURNAL in names else {}
    except CacheDamaged as error:
        check.add_stray(layout.JOURNAL, error.message, "delete it")
        return
    for name in sorted(journal):
        if not layout.PART_NAME.match(name.removeprefix(f"{layout.JOURNAL}/").removesuffix(".json")):
            check.add_stray(name, "not a file of a cache", "delete it")


def _within(folder: str, check: FastCheck) -> dict[str, str]:
    """Entries in a folder, or in place of it, that are neither files nor folders."""
    return {name: what for name, what in check.kinds.items() if f"{name}/".startswith(f"{folder}/")}


def _compare_folder(store: Store, folder: str, expected: dict[str, FileRecord], check: FastCheck) -> None:
    if kinds := _within(folder, check):
        for name, what in kinds.items():
            check.add(name, what, REPLACE_KIND)
        return
    try:
        present = store.walk(folder, limit=512) if store.names(folder) else {}
    except CacheDamaged as error:
        check.add(folder, error.message)
        return
    for name, file in expected.items():
        size = present.pop(name, None)
        if size is None:
            check.add(name, "the file is missing")
        elif size != file.bytes:
            check.add(name, f"the file has {size:,} bytes, {file.bytes:,} were written")
    for name in sorted(present):
        check.add_stray(name, "not a file of this cache", "delete it")


def _check_index(store: Store, manifest: Manifest, check: FastCheck) -> dict[int, IndexRow]:
    try:
        if store.size(layout.INDEX) is None:
            check.has_index = False
            what = "missing: the cache is unfinished, or its index was lost"
            check.add(layout.INDEX, what, how_to_finish(manifest))
            return {}
        rows, check.cache_id = read_index(store, manifest)
    except CacheDamaged as error:
        check.add(layout.INDEX, error.message, f"{COPY_AGAIN}, or delete it and run cache-teacher again")
        return {}
    return {row.part: row for row in rows}


def how_to_finish(manifest: Manifest) -> str:
    """A hint to run the command again that created this cache."""
    action = manifest.history[-1].action if manifest.history else "extend"
    command = "cache-teacher" if action == "extend" else f"cache {action}"
    copied = "" if action == "copy" else ", or kdpipe cache copy again if this is an unfinished copy"
    return f"run kdpipe {command} again with the same options to finish the cache{copied}"


def _examine_in_turn(
    store: Store, manifest: Manifest, numbers: Sequence[int], rows: Mapping[int, IndexRow]
) -> Iterator[tuple[PartRecord | None, list[Problem]]]:
    return (examine_part(store, manifest, number, rows.get(number)) for number in numbers)


def _check_parts(store: Store, rows: dict[int, IndexRow], check: FastCheck, examine: Examine) -> None:
    """Check every planned part, and report other entries of parts/."""
    manifest = check.manifest
    assert manifest is not None
    planned = {f"{number:05d}": number for number in range(manifest.plan.n_parts)}
    try:
        names = store.names(layout.PARTS)
    except CacheDamaged as error:
        check.add(layout.PARTS, error.message)
        return
    wrong: dict[int, list[Problem]] = {}
    for path, what in _within(layout.PARTS, check).items():
        name, _, file = path.removeprefix(f"{layout.PARTS}/").partition("/")
        if name in planned:
            wrong.setdefault(planned[name], []).append(part_problem(planned[name], file, what, REPLACE_KIND))
        else:
            check.add_stray(path, what, REPLACE_KIND)
    for name in names:
        if name not in planned and f"{layout.PARTS}/{name}" not in check.kinds:
            check.add_stray(f"{layout.PARTS}/{name}", "not a part of this cache", "delete it")
    present_names = set(names)
    do = FETCH_MISSING if check.has_index else how_to_finish(manifest)
    _note_missing([number for name, number in planned.items() if name not in present_names], check, do)
    check.problems += [problem for problems in wrong.values() for problem in problems]
    present = [number for name, number in planned.items() if name in present_names and number not in wrong]
    for number, (record, problems) in zip(present, examine(manifest, present, rows), strict=True):
        check.problems += problems
        if record is not None and not problems:
            check.records[number] = record


def _note_missing(numbers: list[int], check: FastCheck, do: str) -> None:
    """One problem for a range of missing parts: a plan may have a million."""
    first = 0
    for place in range(1, len(numbers) + 1):
        if place == len(numbers) or numbers[place] != numbers[place - 1] + 1:
            more = place - first - 1
            what = f"the part is missing, as are the next {more:,}" if more else "the part is missing"
            check.problems.append(part_problem(numbers[first], "", what, do))
            first = place


def _check_manifest(store: Store, manifest: Manifest, check: FastCheck) -> None:
    """A manifest that differs from the one stated by all parts was changed itself."""
    others = {problem.part for problem in check.problems if problem.part is not None} if not check.records else set()
    stated = {stated_manifest(store, number) for number in others} - {None}
    if stated and manifest.sha256 not in stated:
        check.add(layout.MANIFEST, "it was changed: no part was written with it")


def _check_tables(store: Store, manifest: Manifest, check: FastCheck) -> None:
    """Check that tables have the sizes in the manifest, and that all parts were written with the same tables."""
    names = {table.name for table in manifest.tables}
    for number, record in list(check.records.items()):
        if check.tables is None and set(record.tables) == names:
            check.tables = dict(record.tables)
        if record.tables != check.tables:
            check.problems.append(
                part_problem(number, layout.PART_RECORD, "written with other tables than the first part")
            )
            del check.records[number]
    digests = check.tables or {}
    expected = {
        layout.table_file(table.name): digests.get(table.name, FileRecord(bytes=table.n_bytes, sha256="0" * 64))
        for table in manifest.tables
    }
    _compare_folder(store, layout.TABLES, expected, check)

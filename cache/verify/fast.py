"""The fast level: everything that can be seen without reading data.

In: a store. Out: a `FastCheck`: the manifest, the parts' records, and the problems met.
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

COPY_AGAIN = "copy the file again from where the cache was made"
FETCH_MISSING = "copy it again from another copy of the cache (kdpipe cache verify --repair-from SRC)"
REPLACE_KIND = "move it away, or replace a link by a copy of what it leads to"

# The records of some parts of a cache, and what is wrong with these parts.
Examine = Callable[[Manifest, Sequence[int], Mapping[int, IndexRow]], Iterable[tuple[PartRecord | None, list[Problem]]]]


@dataclass(slots=True)
class FastCheck:
    """What was found, filled in as far as it could be read; `strays` are the problems that no reader meets.

    `kinds` says of names below the top that are no files and no folders what they are.
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
        """Note a problem of the whole cache."""
        self.problems.append(Problem(part=None, file=file, what=what.removeprefix(file).lstrip(": "), do=do))

    def add_stray(self, file: str, what: str, do: str) -> None:
        """Note something that does not belong there, and that nobody reads."""
        self.add(file, what, do)
        self.strays.append(self.problems[-1])


def survey(store: Store, examine: Examine | None = None) -> FastCheck:
    """Look at records, names, kinds and sizes; parts are examined one after the other unless said."""
    found = FastCheck()
    try:
        if store.size(layout.MANIFEST) is None and layout.PARTS in store.names(""):
            raise CacheDamaged("the file is missing")
        found.manifest = load_manifest(store)
    except CacheDamaged as error:
        found.add(
            layout.MANIFEST, error.message, "copy the whole cache again: nothing can be read without its manifest"
        )
        return found
    found.kinds = wrong_kinds_below(store)
    _survey_top(store, found)
    found.rows = _survey_index(store, found.manifest, found)
    _survey_parts(store, found.rows, found, examine or partial(_examine_in_turn, store))
    _survey_manifest(store, found.manifest, found)
    _survey_tables(store, found.manifest, found)
    return found


def _survey_top(store: Store, found: FastCheck) -> None:
    """Names at the top, and the tokenizer's files."""
    assert found.manifest is not None
    names = store.names("")
    for name in names:
        if name not in layout.TOP_LEVEL | layout.BESIDE:
            found.add_stray(name, "it does not belong to a cache", "move it away")
    for name, what in wrong_kinds(store).items():
        if name in layout.BESIDE | {layout.WORK}:  # the others are reported where they are read
            found.add_stray(name, what, REPLACE_KIND)
    expected = {f"{layout.TOKENIZER}/{name}": file for name, file in found.manifest.tokenizer.files.items()}
    _compare_folder(store, layout.TOKENIZER, expected, found)
    if kinds := _within(layout.JOURNAL, found):
        for name, what in kinds.items():
            found.add_stray(name, what, REPLACE_KIND)
        return
    try:
        journal = store.walk(layout.JOURNAL, limit=MAX_PARTS) if layout.JOURNAL in names else {}
    except CacheDamaged as error:
        found.add_stray(layout.JOURNAL, error.message, "delete it")
        return
    for name in sorted(journal):
        if not layout.PART_NAME.match(name.removeprefix(f"{layout.JOURNAL}/").removesuffix(".json")):
            found.add_stray(name, "it does not belong to a cache", "delete it")


def _within(folder: str, found: FastCheck) -> dict[str, str]:
    """What is neither a file nor a folder in a folder of the cache, or is in its place."""
    return {name: what for name, what in found.kinds.items() if f"{name}/".startswith(f"{folder}/")}


def _compare_folder(store: Store, folder: str, expected: dict[str, FileRecord], found: FastCheck) -> None:
    if kinds := _within(folder, found):
        for name, what in kinds.items():
            found.add(name, what, REPLACE_KIND)
        return
    try:
        there = store.walk(folder, limit=512) if store.names(folder) else {}
    except CacheDamaged as error:
        found.add(folder, error.message)
        return
    for name, file in expected.items():
        size = there.pop(name, None)
        if size is None:
            found.add(name, "the file is missing")
        elif size != file.bytes:
            found.add(name, f"the file has {size:,} bytes, {file.bytes:,} were written")
    for name in sorted(there):
        found.add_stray(name, "it does not belong to the cache", "delete it")


def _survey_index(store: Store, manifest: Manifest, found: FastCheck) -> dict[int, IndexRow]:
    try:
        if store.size(layout.INDEX) is None:
            found.has_index = False
            what = "it is missing: the cache is unfinished, or its index was lost"
            found.add(layout.INDEX, what, how_to_finish(manifest))
            return {}
        rows, found.cache_id = read_index(store, manifest)
    except CacheDamaged as error:
        found.add(layout.INDEX, error.message, f"{COPY_AGAIN}, or delete it and run stage one again")
        return {}
    return {row.part: row for row in rows}


def how_to_finish(manifest: Manifest) -> str:
    """What finishes a cache that has no index: the command that began it, run again."""
    action = manifest.history[-1].action if manifest.history else "extend"
    command = "cache-teacher" if action == "extend" else f"cache {action}"
    copied = "" if action == "copy" else ", or kdpipe cache copy again if this is an unfinished copy"
    return f"run kdpipe {command} again with the same options, it resumes and finishes the cache{copied}"


def _examine_in_turn(
    store: Store, manifest: Manifest, numbers: Sequence[int], rows: Mapping[int, IndexRow]
) -> Iterator[tuple[PartRecord | None, list[Problem]]]:
    return (examine_part(store, manifest, number, rows.get(number)) for number in numbers)


def _survey_parts(store: Store, rows: dict[int, IndexRow], found: FastCheck, examine: Examine) -> None:
    """Every planned part, and whatever else lies in parts/."""
    manifest = found.manifest
    assert manifest is not None
    due = {f"{number:05d}": number for number in range(manifest.plan.n_parts)}
    try:
        names = store.names(layout.PARTS)
    except CacheDamaged as error:
        found.add(layout.PARTS, error.message)
        return
    wrong: dict[int, list[Problem]] = {}
    for path, what in _within(layout.PARTS, found).items():
        name, _, file = path.removeprefix(f"{layout.PARTS}/").partition("/")
        if name in due:
            wrong.setdefault(due[name], []).append(part_problem(due[name], file, what, REPLACE_KIND))
        else:
            found.add_stray(path, what, REPLACE_KIND)
    for name in names:
        if name not in due and f"{layout.PARTS}/{name}" not in found.kinds:
            found.add_stray(f"{layout.PARTS}/{name}", "it is no part of this cache", "delete it")
    there = set(names)
    do = FETCH_MISSING if found.has_index else how_to_finish(manifest)
    _note_missing([number for name, number in due.items() if name not in there], found, do)
    found.problems += [problem for problems in wrong.values() for problem in problems]
    present = [number for name, number in due.items() if name in there and number not in wrong]
    for number, (record, problems) in zip(present, examine(manifest, present, rows), strict=True):
        found.problems += problems
        if record is not None and not problems:
            found.records[number] = record


def _note_missing(numbers: list[int], found: FastCheck, do: str) -> None:
    """One problem for parts that are missing one after the other: a plan may have a million."""
    first = 0
    for place in range(1, len(numbers) + 1):
        if place == len(numbers) or numbers[place] != numbers[place - 1] + 1:
            more = place - first - 1
            what = f"the part is missing, and the {more:,} behind it" if more else "the part is missing"
            found.problems.append(part_problem(numbers[first], "", what, do))
            first = place


def _survey_manifest(store: Store, manifest: Manifest, found: FastCheck) -> None:
    """A manifest that no part was made with has itself been changed."""
    others = {problem.part for problem in found.problems if problem.part is not None} if not found.records else set()
    stated = {stated_manifest(store, number) for number in others} - {None}
    if stated and manifest.sha256 not in stated:
        found.add(layout.MANIFEST, "no part was made with it: its bytes are not those that were written")


def _survey_tables(store: Store, manifest: Manifest, found: FastCheck) -> None:
    """Tables have the sizes that the manifest says, and all parts were made with the same ones."""
    names = {table.name for table in manifest.tables}
    for number, record in list(found.records.items()):
        if found.tables is None and set(record.tables) == names:
            found.tables = dict(record.tables)
        if record.tables != found.tables:
            found.problems.append(
                part_problem(number, layout.PART_RECORD, "it was made with other tables than the first part")
            )
            del found.records[number]
    digests = found.tables or {}
    expected = {
        layout.table_file(table.name): digests.get(table.name, FileRecord(bytes=table.n_bytes, sha256="0" * 64))
        for table in manifest.tables
    }
    _compare_folder(store, layout.TABLES, expected, found)

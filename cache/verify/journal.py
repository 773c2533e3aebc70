"""The journal of a cache: who made each part. No reader uses it and no digest covers it, so its problems are notes.

In: a store and the result of the fast level. Out: notes on files that are not what a writer leaves, that are of another
part, and on parts without a file where others have one. Keys of an entry are free, but `part` and `part_sha256`, which
earlier versions did not write. A cache made from others has entries for none or some of its parts.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from kdpipe.cache import layout
from kdpipe.cache.stores.protocol import Store
from kdpipe.cache.verify.fast import FastCheck
from kdpipe.schemas.errors import FileDamaged
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.strict_json import canonical, parse
from kdpipe.schemas.verify_report import Note


def journal_notes(store: Store, check: FastCheck) -> list[Note]:
    """Notes on the journal files of a cache."""
    manifest = check.manifest
    if manifest is None or any(problem.file == layout.JOURNAL for problem in check.problems):
        return []
    names = [name for name in store.names(layout.JOURNAL) if layout.JOURNAL_NAME.match(name)]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        wrong = pool.map(lambda name: _wrong_entry(store, manifest, name, check), names)
        notes = [
            Note(part=_number(name), file=f"{layout.JOURNAL}/{name}", what=what)
            for name, what in zip(names, wrong, strict=True)
            if what is not None
        ]
    if names and not manifest.history:
        notes += _missing(sorted(check.records.keys() - {_number(name) for name in names}))
    return notes


def _number(name: str) -> int:
    return int(name.removesuffix(".json"))


def _wrong_entry(store: Store, manifest: Manifest, name: str, check: FastCheck) -> str | None:
    number, path = _number(name), f"{layout.JOURNAL}/{name}"
    if path != layout.journal_file(number) or number >= manifest.plan.n_parts:
        return f"no such part: the cache has {manifest.plan.n_parts:,}"
    try:
        data = store.read(path, layout.MAX_RECORD_BYTES)
        facts = parse(data, path, layout.MAX_RECORD_BYTES)
    except FileDamaged as error:
        return error.message.removeprefix(path).lstrip(": ")
    if not isinstance(facts, dict) or canonical(facts) != data:
        return "not a JSON object in canonical form"
    # Compared as JSON text: true is not 1.
    if canonical(facts.get("part", number)) != canonical(number):
        return f"it belongs to part {ascii(facts['part'])[:40]}, expected {number}"
    row = check.rows.get(number)
    if row is not None and facts.get("part_sha256", row.sha256) != row.sha256:
        return f"part_sha256 differs: it was written for another {layout.PART_RECORD}"
    return None


def _missing(numbers: list[int]) -> Iterator[Note]:
    """One note for a range of parts without a file: a plan may have a million."""
    first = 0
    for place in range(1, len(numbers) + 1):
        if place == len(numbers) or numbers[place] != numbers[place - 1] + 1:
            more = place - first - 1
            what = "the file is missing, but other parts have one"
            what += f"; so are those of the next {more:,} parts" if more else ""
            yield Note(part=numbers[first], file=layout.journal_file(numbers[first]), what=what)
            first = place

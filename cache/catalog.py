"""The contents of a cache's folder or URL: its manifest, its index or committed parts, and what must not be there."""

from pathlib import Path

from kdpipe.cache import layout
from kdpipe.cache.parts.index import IndexRow, read_index
from kdpipe.cache.parts.part_files import read_part_record
from kdpipe.cache.stores.protocol import Store
from kdpipe.schemas.differences import differing_settings
from kdpipe.schemas.errors import CacheDamaged, CacheIncomplete, ConfigError
from kdpipe.schemas.manifest import Manifest, read_manifest
from kdpipe.schemas.strict_json import MAX_BYTES


def load_manifest(store: Store) -> Manifest:
    """The manifest of a cache."""
    if store.size(layout.MANIFEST) is None:
        raise ConfigError(f"{store.url} holds no {layout.MANIFEST}", hint="give the folder or URL of a kdpipe cache")
    return read_manifest(store.read(layout.MANIFEST, MAX_BYTES), layout.MANIFEST)


def load_index(store: Store, manifest: Manifest, allow_partial: bool) -> tuple[list[IndexRow], str | None]:
    """The parts that are there: from the index, or from their own records while it is missing."""
    if store.size(layout.INDEX) is not None:
        return read_index(store, manifest)
    return unindexed(store, manifest, allow_partial), None


def unindexed(store: Store, manifest: Manifest, allow_partial: bool) -> list[IndexRow]:
    """The parts of an unfinished cache, from their own records, when that is allowed."""
    numbers = committed_parts(store, manifest)
    missing = manifest.plan.n_parts - len(numbers)
    if not allow_partial:
        what = (
            f"{missing:,} of {manifest.plan.n_parts:,} parts are missing" if missing else f"{layout.INDEX} is missing"
        )
        raise CacheIncomplete(
            f"{store.url} is unfinished: {what}",
            hint="run stage one again to finish it, or read what is there with --allow-partial (allow_partial=True)",
        )
    return [read_part_record(store, manifest, number, None)[1] for number in numbers]


def committed_parts(store: Store, manifest: Manifest) -> list[int]:
    """The numbers of the parts that have their folder."""
    found = []
    for name in store.names(layout.PARTS):
        if (
            not layout.PART_NAME.match(name)
            or int(name) >= manifest.plan.n_parts
            or layout.part_dir(int(name)) != f"{layout.PARTS}/{name}"
        ):
            raise CacheDamaged(f"{layout.PARTS}/{name} is no part of this cache", hint="delete it")
        found.append(int(name))
    return sorted(found)


def same_manifest(store: Store, asked: Manifest, named: str) -> Manifest:
    """Give the manifest of the cache that is there, or say what differs; an empty one is only in the way."""
    found = load_manifest(store)
    # Another version of the program may go on: what it wrote itself stays in the manifest, as does what the teacher
    # was called. An earlier one did not count duplicates, and did not write the teacher's hidden size.
    plan = found.plan.with_duplicates_of(asked.plan)
    alike = found.described_as(asked).model_copy(update={"kdpipe": asked.kdpipe, "plan": plan})
    if alike.to_json() == asked.to_json():
        return found
    differing = differing_settings(alike.model_dump(mode="json"), asked.model_dump(mode="json"))
    more = " ..." if len(differing) > 5 else ""
    hint = "choose another folder, or give the settings that this cache was begun with"
    if not committed_parts(store, found):
        hint = f"no part of it is there yet: delete {named} if nobody is at work on it, or choose another folder"
    raise ConfigError(f"{named} holds another cache: {'; '.join(differing[:5])}{more}", hint=hint)


def refuse_foreign_folder(path: Path) -> None:
    """Refuse a folder that holds other things than a cache."""
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in (layout.WORK, layout.MANIFEST))
    # Another worker may have begun the cache since the first look.
    if foreign and not (path / layout.MANIFEST).exists():
        raise ConfigError(
            f"{path} holds other things and no {layout.MANIFEST}: {', '.join(foreign[:3])}",
            hint="choose a new or empty folder",
        )

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
        raise ConfigError(f"{store.url} has no {layout.MANIFEST}", hint="give the folder or URL of a kdpipe cache")
    return read_manifest(store.read(layout.MANIFEST, MAX_BYTES), layout.MANIFEST)


def load_index(store: Store, manifest: Manifest, allow_partial: bool) -> tuple[list[IndexRow], str | None]:
    """The committed parts: from the index, or from their own records while it is missing."""
    if store.size(layout.INDEX) is not None:
        return read_index(store, manifest)
    return unindexed(store, manifest, allow_partial), None


def unindexed(store: Store, manifest: Manifest, allow_partial: bool) -> list[IndexRow]:
    """The parts of an unfinished cache, from their own records, if that is allowed."""
    numbers = committed_parts(store, manifest)
    missing = manifest.plan.n_parts - len(numbers)
    if not allow_partial:
        what = (
            f"{missing:,} of {manifest.plan.n_parts:,} parts are missing" if missing else f"{layout.INDEX} is missing"
        )
        raise CacheIncomplete(
            f"{store.url} is unfinished: {what}",
            hint="run cache-teacher again to finish it, or read its parts with --allow-partial (allow_partial=True)",
        )
    return [read_part_record(store, manifest, number, None)[1] for number in numbers]


def committed_parts(store: Store, manifest: Manifest) -> list[int]:
    """The numbers of the parts with a folder."""
    numbers = []
    for name in store.names(layout.PARTS):
        if (
            not layout.PART_NAME.match(name)
            or int(name) >= manifest.plan.n_parts
            or layout.part_dir(int(name)) != f"{layout.PARTS}/{name}"
        ):
            raise CacheDamaged(f"{layout.PARTS}/{name} is not a part of this cache", hint="delete it")
        numbers.append(int(name))
    return sorted(numbers)


def same_manifest(store: Store, requested: Manifest, address: str) -> Manifest:
    """The manifest of an existing cache, which must equal the requested one; otherwise the differences are listed."""
    existing = load_manifest(store)
    # Another version of kdpipe can resume: its version and the names of the teacher stay in the manifest. An earlier
    # one did not count duplicates, and did not write the teacher's hidden size.
    plan = existing.plan.with_duplicates_of(requested.plan)
    alike = existing.described_as(requested).model_copy(update={"kdpipe": requested.kdpipe, "plan": plan})
    if alike.to_json() == requested.to_json():
        return existing
    differing = differing_settings(alike.model_dump(mode="json"), requested.model_dump(mode="json"))
    more = " ..." if len(differing) > 5 else ""
    hint = "choose another folder, or use the settings of this cache"
    if not committed_parts(store, existing):
        hint = f"it has no parts yet: delete {address} if no other process is writing to it, or choose another folder"
    raise ConfigError(f"{address} holds another cache: {'; '.join(differing[:5])}{more}", hint=hint)


def refuse_foreign_folder(path: Path) -> None:
    """Refuse a folder with other files than those of a cache."""
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in (layout.WORK, layout.MANIFEST))
    # Another worker may have created the cache since the first check.
    if foreign and not (path / layout.MANIFEST).exists():
        raise ConfigError(
            f"{path} has other files and no {layout.MANIFEST}: {', '.join(foreign[:3])}",
            hint="choose a new or empty folder",
        )

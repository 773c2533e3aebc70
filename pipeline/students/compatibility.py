"""`check_fit`: may this student learn from this cache? Same tokenizer by content, rows for all ids, enough positions.

In: what `resolve.py` found, the cache's tokenizer and manifest. Out: a `Compatibility`, or `Incompatible` (exit 4) with
what differs. `same_tokenizer` is the one place that says no to another tokenizer: training across tokenizers begins
there.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kdpipe.pipeline.models.folders import local_folder
from kdpipe.pipeline.students.cache_tokenizer import CacheTokenizer
from kdpipe.pipeline.students.resolve import ResolvedStudent
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer, has_tokenizer, load_tokenizer
from kdpipe.pipeline.tokenizers.tokenizer_difference import difference
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.train_settings import StudentSettings

ACROSS = "name a student of the teacher's family, or a fresh one: training across tokenizers is not there yet"
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compatibility:
    """The files that go beside the student's weights, and what is worth a line."""

    tokenizer_files: Mapping[str, bytes]
    notes: tuple[str, ...] = ()


def check_fit(
    found: ResolvedStudent, settings: StudentSettings, kept: CacheTokenizer, manifest: Manifest
) -> Compatibility:
    """Hold a student against a cache before its weights are loaded."""
    notes: list[str] = []
    files = kept.files
    if not found.is_fresh:
        own = _own_tokenizer(found, settings)
        if (difference := same_tokenizer(own, kept, manifest)) is not None:
            raise Incompatible(
                f"the student {found.name} has another tokenizer than the cache: {difference}", hint=ACROSS
            )
        files = own.files
        notes += _other_roles(own, kept.loaded)
    elif not files:
        notes.append("the cache keeps no tokenizer files: the student will be saved without")
    rows, ids = found.shape.vocabulary_size, manifest.vocabulary_size
    if rows < ids:
        raise Incompatible(
            f"the student {found.name} has {rows:,} rows for the cache's {ids:,} token ids",
            hint=f"state a vocab_size of {ids} or more" if found.is_fresh else ACROSS,
        )
    if rows > ids:
        notes.append(f"the student has {rows:,} rows for {ids:,} token ids: the rest is padding, and learns nothing")
    _check_positions(found, manifest.plan.sequence_length)
    return Compatibility(tokenizer_files=files, notes=tuple(notes))


def same_tokenizer(own: LoadedTokenizer, kept: CacheTokenizer, manifest: Manifest) -> str | None:
    """Say what differs between two tokenizers; None if the same text becomes the same ids in both.

    Without the cache's files only fingerprints can be compared, which count roles too (the end of a document, say).
    """
    if kept.loaded is not None:
        return difference(own, kept.loaded)
    if own.record.fingerprint == manifest.tokenizer.fingerprint:
        return None
    return f"its fingerprint is {own.record.fingerprint[:12]}, the cache's {manifest.tokenizer.fingerprint[:12]}"


def _own_tokenizer(found: ResolvedStudent, settings: StudentSettings) -> LoadedTokenizer:
    try:
        return load_tokenizer(
            found.name,
            revision=None if found.kind == "folder" else found.shape.revision or settings.revision,
            trust_remote_code=settings.trust_remote_code,
            chat_template="none",
        )
    except ConfigError as error:
        folder = local_folder(found.name)
        hint = error.hint
        if folder is not None and not has_tokenizer(str(folder)):
            hint = f"copy its tokenizer into {folder}; the cache's own lies in its folder tokenizer"
        raise ConfigError(error.message, hint=hint) from error


def _other_roles(own: LoadedTokenizer, other: LoadedTokenizer | None) -> list[str]:
    """Say which roles are given to other tokens: texts that the student writes may end otherwise."""
    if other is None:
        return []
    pairs = [(role, getattr(own.fast, role), getattr(other.fast, role)) for role in ROLES]
    told = [f"{role} {mine!r} instead of {theirs!r}" for role, mine, theirs in pairs if mine != theirs]
    return [f"same tokens, other roles in the student's tokenizer, which are kept: {', '.join(told)}"] if told else []


def _check_positions(found: ResolvedStudent, longest: int) -> None:
    most = found.shape.max_positions
    if most is not None and longest > most:
        raise Incompatible(
            f"the student {found.name} reads at most {most:,} tokens at once, the cache has sequences of {longest:,}",
            hint=f"make the cache with --seq-len {most}, or name a student that reads {longest:,}",
        )

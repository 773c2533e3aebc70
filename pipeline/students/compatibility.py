"""`check_compatibility`: whether a student can be trained from a cache.

It needs the same tokenizer by content, embedding rows for all ids and enough positions. In: a `ResolvedStudent`, the
cache's tokenizer and manifest. Out: a `Compatibility`, or `Incompatible` (exit 4). `same_tokenizer` is the only place
that refuses another tokenizer: training across tokenizers would begin there.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kdpipe.pipeline.models.folders import local_folder
from kdpipe.pipeline.students.cache_tokenizer import CacheTokenizer
from kdpipe.pipeline.students.resolve import ResolvedStudent
from kdpipe.pipeline.students.student_name import ACROSS
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer, has_tokenizer, load_tokenizer
from kdpipe.pipeline.tokenizers.tokenizer_difference import difference
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.train_settings import StudentSettings

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compatibility:
    """Tokenizer files to save with the student, and notes for the user."""

    tokenizer_files: Mapping[str, bytes]
    notes: tuple[str, ...] = ()


def check_compatibility(
    student: ResolvedStudent, settings: StudentSettings, kept: CacheTokenizer, manifest: Manifest
) -> Compatibility:
    """Check a student against a cache before its weights are loaded."""
    notes: list[str] = []
    files = kept.files
    if not student.is_fresh:
        own = _own_tokenizer(student, settings)
        if (difference := same_tokenizer(own, kept, manifest)) is not None:
            raise Incompatible(
                f"the tokenizer of student {student.name} differs from the cache's: {difference}", hint=ACROSS
            )
        files = own.files
        notes += _other_roles(own, kept.loaded)
    elif not files:
        notes.append("the cache has no tokenizer files: the student will be saved without a tokenizer")
    rows, ids = student.shape.vocabulary_size, manifest.vocabulary_size
    if rows < ids:
        raise Incompatible(
            f"student {student.name} has {rows:,} embedding rows, the cache {ids:,} token ids",
            hint=f"set vocab_size to {ids} or more" if student.is_fresh else ACROSS,
        )
    if rows > ids:
        notes.append(
            f"the student has {rows:,} embedding rows for {ids:,} token ids: the rest is padding and is not trained"
        )
    _check_positions(student, manifest.plan.sequence_length)
    return Compatibility(tokenizer_files=files, notes=tuple(notes))


def same_tokenizer(own: LoadedTokenizer, kept: CacheTokenizer, manifest: Manifest) -> str | None:
    """The first difference between two tokenizers; None if they give the same ids for the same text.

    Without the cache's files only fingerprints can be compared, which include roles (such as the end of a document).
    """
    if kept.loaded is not None:
        return difference(own, kept.loaded)
    if own.record.fingerprint == manifest.tokenizer.fingerprint:
        return None
    return f"its fingerprint is {own.record.fingerprint[:12]}, the cache's {manifest.tokenizer.fingerprint[:12]}"


def _own_tokenizer(student: ResolvedStudent, settings: StudentSettings) -> LoadedTokenizer:
    try:
        return load_tokenizer(
            student.name,
            revision=None if student.kind == "folder" else student.shape.revision or settings.revision,
            trust_remote_code=settings.trust_remote_code,
            chat_template="none",
        )
    except ConfigError as error:
        folder = local_folder(student.name)
        hint = error.hint
        if folder is not None and not has_tokenizer(str(folder)):
            hint = f"copy its tokenizer into {folder}; the cache's is in its subfolder tokenizer"
        raise ConfigError(error.message, hint=hint) from error


def _other_roles(own: LoadedTokenizer, other: LoadedTokenizer | None) -> list[str]:
    """A note on roles that the student's tokenizer gives to other tokens: generated texts may end differently."""
    if other is None:
        return []
    pairs = [(role, getattr(own.fast, role), getattr(other.fast, role)) for role in ROLES]
    changes = [f"{role} {mine!r} instead of {theirs!r}" for role, mine, theirs in pairs if mine != theirs]
    return [f"special tokens of the student's tokenizer are kept: {', '.join(changes)}"] if changes else []


def _check_positions(student: ResolvedStudent, longest: int) -> None:
    most = student.shape.max_positions
    if most is not None and longest > most:
        raise Incompatible(
            f"student {student.name} supports at most {most:,} tokens, the cache has sequences of {longest:,}",
            hint=f"make the cache with --seq-len {most}, or use a student that supports {longest:,}",
        )

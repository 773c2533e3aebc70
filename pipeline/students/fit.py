"""`check_fit`: may this student learn from this cache? Same tokenizer by content, rows for all ids, enough positions.

In: what `find.py` found, the cache's tokenizer and manifest. Out: a `Fit`, or `Incompatible` (exit 4) with what
differs. Before it: `find.py`, `kept.py`. After it: `loading.py`; `saving.py` takes the files. `same_tokenizer` is the
one place that says no to another tokenizer: training across tokenizers begins there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdpipe.pipeline.data.tokenizer import LoadedTokenizer, load_tokenizer
from kdpipe.pipeline.models.folders import local_folder
from kdpipe.pipeline.students.find import Found
from kdpipe.pipeline.students.kept import KeptTokenizer
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.stage_two import StudentSettings

ACROSS = "name a student of the teacher's family, or a fresh one: training across tokenizers is not there yet"
# The parts of a tokenizer that turn text into ids, as tokenizer.json and people call them.
STEPS = {
    "normalizer": "normaliser",
    "pre_tokenizer": "pre-tokeniser",
    "model": "merges or scores",
    "post_processor": "post-processor",
    "decoder": "decoder",
    "added_tokens": "added tokens",
}
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The files that go beside the student's weights, and what is worth a line."""

    tokenizer_files: Mapping[str, bytes]
    notes: tuple[str, ...] = ()


def check_fit(found: Found, settings: StudentSettings, kept: KeptTokenizer, manifest: Manifest) -> Fit:
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
    return Fit(tokenizer_files=files, notes=tuple(notes))


def same_tokenizer(own: LoadedTokenizer, kept: KeptTokenizer, manifest: Manifest) -> str | None:
    """Say what differs between two tokenizers; None if the same text becomes the same ids in both.

    A fingerprint also counts which tokens have a role (the end of a document, say): roles change no id, and students
    without a chat template learn from teachers with one, so that by content they may differ.
    """
    if own.record.fingerprint == manifest.tokenizer.fingerprint:
        return None
    if kept.loaded is None:
        return f"its fingerprint is {own.record.fingerprint[:12]}, the cache's {manifest.tokenizer.fingerprint[:12]}"
    mine, theirs = _state(own), _state(kept.loaded)
    if mine == theirs:
        return None
    found = [*_sizes(own, kept.loaded), *_ids(own, kept.loaded)]
    if not found:
        found = [f"another {word}" for key, word in STEPS.items() if mine.get(key) != theirs.get(key)]
    return ", ".join(found) or "it is stored otherwise"


def _own_tokenizer(found: Found, settings: StudentSettings) -> LoadedTokenizer:
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
        if folder is not None and "holds no tokenizer" in error.message:
            hint = f"copy its tokenizer into {folder}; the cache's own lies in its folder tokenizer"
        raise ConfigError(error.message, hint=hint) from error


def _state(tokenizer: LoadedTokenizer) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(tokenizer.fast.backend_tokenizer.to_str())
    return {key: state.get(key) for key in STEPS}


def _sizes(own: LoadedTokenizer, other: LoadedTokenizer) -> list[str]:
    mine, theirs = own.record.vocabulary_size, other.record.vocabulary_size
    return [] if mine == theirs else [f"{mine:,} ids instead of {theirs:,}"]


def _ids(own: LoadedTokenizer, other: LoadedTokenizer) -> list[str]:
    """Name the first id that stands for something else."""
    mine, theirs = ({id: text for text, id in each.fast.get_vocab().items()} for each in (own, other))
    differing = [id for id in sorted(mine.keys() & theirs.keys()) if mine[id] != theirs[id]]
    if not differing:
        return []
    first = differing[0]
    return [
        f"{len(differing):,} ids stand for other tokens, the first is {first}: {mine[first]!r}, not {theirs[first]!r}"
    ]


def _other_roles(own: LoadedTokenizer, other: LoadedTokenizer | None) -> list[str]:
    """Say which roles are given to other tokens: texts that the student writes may end otherwise."""
    if other is None:
        return []
    pairs = [(role, getattr(own.fast, role), getattr(other.fast, role)) for role in ROLES]
    told = [f"{role} {mine!r} instead of {theirs!r}" for role, mine, theirs in pairs if mine != theirs]
    return [f"same tokens, other roles in the student's tokenizer, which are kept: {', '.join(told)}"] if told else []


def _check_positions(found: Found, longest: int) -> None:
    most = found.shape.max_positions
    if most is not None and longest > most:
        raise Incompatible(
            f"the student {found.name} reads at most {most:,} tokens at once, the cache has sequences of {longest:,}",
            hint=f"make the cache with --seq-len {most}, or name a student that reads {longest:,}",
        )

"""Differences between two tokenizers that change token ids, and the check of a given tokenizer against the teacher's.

In: two tokenizers. Out: a description of the first difference, or None. Padding, truncation, the order of added tokens
and the roles of special tokens are ignored. With another vocabulary, a teacher's predictions look well-formed but are
meaningless.
"""

import json
from pathlib import Path
from typing import Any, Protocol

from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer
from kdpipe.pipeline.tokenizers.vocabulary_file import different_ids
from kdpipe.schemas.capture_settings import TeacherSettings
from kdpipe.schemas.errors import ConfigError, Incompatible

ALLOW = "--allow-foreign-tokenizer"
# Note on the teacher in the manifest of such a cache.
FOREIGN_NOTE = f"used with another tokenizer than its own ({ALLOW})"
# Sections of tokenizer.json that affect ids, with their names in messages.
STEPS = {
    "normalizer": "normalizer",
    "pre_tokenizer": "pre-tokenizer",
    "model": "merges or scores",
    "post_processor": "post-processor",
    "decoder": "decoder",
    "added_tokens": "added tokens",
}


class HasTokenizer(Protocol):
    """A teacher's backend, as far as its tokenizer goes."""

    def has_tokenizer(self) -> bool: ...

    def tokenizer(self, chat_template: str | None) -> LoadedTokenizer: ...


def difference(own: LoadedTokenizer, other: LoadedTokenizer) -> str | None:
    """How the first tokenizer differs from the second; None if the same text has the same ids."""
    mine, theirs = _state(own), _state(other)
    if mine == theirs:
        return None
    differences = [*_sizes(own, other), *_ids(own, other)]
    if not differences:
        differences = [f"another {name}" for key, name in STEPS.items() if mine.get(key) != theirs.get(key)]
    return ", ".join(differences)


def _state(tokenizer: LoadedTokenizer) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(tokenizer.fast.backend_tokenizer.to_str())
    return {key: state.get(key) for key in STEPS}


def _sizes(own: LoadedTokenizer, other: LoadedTokenizer) -> list[str]:
    mine, theirs = own.record.vocabulary_size, other.record.vocabulary_size
    return [] if mine == theirs else [f"{mine:,} ids instead of {theirs:,}"]


def _ids(own: LoadedTokenizer, other: LoadedTokenizer) -> list[str]:
    mine, theirs = ({id: text for text, id in tokenizer.fast.get_vocab().items()} for tokenizer in (own, other))
    text = different_ids(mine, theirs)
    return [] if text is None else [text]


def teacher_tokenizer_difference(
    settings: TeacherSettings, teacher: HasTokenizer, given: LoadedTokenizer
) -> str | None:
    """How a tokenizer differs from the teacher's own, if that is allowed; None if it does not."""
    try:
        text = difference_from_own(teacher, given)
    except ConfigError as error:
        if settings.allow_foreign_tokenizer:
            return f"the teacher's own tokenizer cannot be loaded: {error.message}"
        raise ConfigError(
            f"{given.name} cannot be compared with the tokenizer of {settings.name}: {error.message}",
            hint=f"omit --tokenizer, or use {ALLOW} if all ids have the same meaning for the teacher",
        ) from error
    if text is not None and not settings.allow_foreign_tokenizer:
        raise Incompatible(
            f"{given.name} differs from the tokenizer of {settings.name}: {text}",
            hint=f"omit --tokenizer; with {ALLOW} the teacher would see wrong tokens",
        )
    return text


def difference_from_own(teacher: HasTokenizer, given: LoadedTokenizer) -> str | None:
    """How a tokenizer differs from the teacher's own; None if it does not, or the teacher has none."""
    if not teacher.has_tokenizer():
        return None
    own = teacher.tokenizer("none")
    return None if _is_same_place(own.name, given.name) else difference(given, own)


def _is_same_place(name: str, other: str) -> bool:
    folder = Path(name).expanduser()
    return folder.is_dir() and folder.resolve() == Path(other).expanduser().resolve()

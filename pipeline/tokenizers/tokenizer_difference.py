"""What differs between two tokenizers: the same text must become the same ids in both.

In: two loaded tokenizers. Out: the first difference in words, or None. Padding, truncation and the order of added
tokens change no id and do not count; nor do roles (which token ends a document, say).
"""

import json
from pathlib import Path
from typing import Any

from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer, has_tokenizer, load_tokenizer
from kdpipe.schemas.capture_settings import TeacherSettings
from kdpipe.schemas.errors import ConfigError, Incompatible

ALLOW = "--allow-foreign-tokenizer"
# Note on the teacher in the manifest of such a cache.
FOREIGN_NOTE = f"its tokenizer is not its own ({ALLOW})"
# The parts of a tokenizer that turn text into ids, as tokenizer.json and people call them.
STEPS = {
    "normalizer": "normalizer",
    "pre_tokenizer": "pre-tokenizer",
    "model": "merges or scores",
    "post_processor": "post-processor",
    "decoder": "decoder",
    "added_tokens": "added tokens",
}


def difference(own: LoadedTokenizer, other: LoadedTokenizer) -> str | None:
    """Say what the first has instead of what the second has; None where the same text becomes the same ids."""
    mine, theirs = _state(own), _state(other)
    if mine == theirs:
        return None
    found = [*_sizes(own, other), *_ids(own, other)]
    if not found:
        found = [f"another {word}" for key, word in STEPS.items() if mine.get(key) != theirs.get(key)]
    return ", ".join(found)


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


def teacher_tokenizer_difference(settings: TeacherSettings, given: LoadedTokenizer) -> str | None:
    """What a tokenizer has instead of the teacher's own; refused unless that is allowed, None where nothing differs."""
    try:
        found = difference_from_own(settings, given)
    except ConfigError as error:
        if settings.allow_foreign_tokenizer:
            return f"the teacher's own cannot be loaded: {error.message}"
        raise ConfigError(
            f"{given.name} cannot be compared with the tokenizer of {settings.name}: {error.message}",
            hint=f"leave --tokenizer out, or give {ALLOW} if you know that every id means the same to the teacher",
        ) from error
    if found is not None and not settings.allow_foreign_tokenizer:
        raise Incompatible(
            f"{given.name} is another tokenizer than that of {settings.name}: {found}",
            hint=f"leave --tokenizer out; {ALLOW} caches predictions for ids that mean other tokens to the teacher",
        )
    return found


def difference_from_own(settings: TeacherSettings, given: LoadedTokenizer) -> str | None:
    """What a tokenizer has instead of the teacher's own, by content; None where the teacher comes without one."""
    assert settings.name is not None, "a teacher whose tokenizer is compared is named"
    if _is_same_place(settings.name, given.name) or not has_tokenizer(settings.name, settings.revision):
        return None
    own = load_tokenizer(
        settings.name,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        chat_template="none",
    )
    return difference(given, own)


def _is_same_place(one: str, other: str) -> bool:
    folder = Path(one).expanduser()
    return folder.is_dir() and folder.resolve() == Path(other).expanduser().resolve()

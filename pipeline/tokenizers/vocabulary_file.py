"""Tokenizer files without transformers: which files a tokenizer has, and the token of each id in tokenizer.json.

In: a folder, or the bytes of tokenizer.json. Out: an error for a folder without a tokenizer; the first difference
between two vocabularies.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdpipe.schemas.errors import ConfigError

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
)
# Files each of which is sufficient for a tokenizer.
VOCABULARIES = (*FILES[:1], *FILES[4:10])
# Further files that belong to a tokenizer.
PATTERNS = ("*.model", "*.tiktoken", "vocab.*", "additional_chat_templates/*.jinja")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The tokens of tokenizer.json by id; those that are `added`, which other files can change, have no text here."""

    tokens: Mapping[int, str]
    added: frozenset[int]

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max({*self.tokens, *self.added}, default=-1) + 1


def folder_has_tokenizer(folder: Path) -> bool:
    return any((folder / file).is_file() for file in VOCABULARIES) or any(
        next(folder.glob(pattern), None) for pattern in PATTERNS[:2]
    )


def check_tokenizer_name(name: str) -> None:
    """Refuse a folder without a tokenizer, and a path that does not exist; a Hub id is looked up later."""
    folder = Path(name).expanduser()
    try:
        if folder.is_dir():
            _check_folder(folder)
        elif folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise ConfigError(f"{name} is neither a folder nor a Hub id", hint="expected a folder or OWNER/NAME")
    except OSError as error:
        raise ConfigError(
            f"the tokenizer {name} cannot be read: {error.strerror}", hint="check its permissions, or use another"
        ) from None


def _check_folder(folder: Path) -> None:
    if folder_has_tokenizer(folder):
        return
    names = sorted(entry.name for entry in folder.iterdir())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
    raise ConfigError(
        f"no tokenizer in {folder}: expected tokenizer.json, found {shown}",
        hint="set --tokenizer to the folder or Hub id of its tokenizer",
    )


def vocabulary_of(data: bytes) -> Vocabulary | None:
    """The vocabulary of a tokenizer.json; None if it cannot be read, which is reported when it is loaded."""
    try:
        state = json.loads(data)
        entries = state["model"]["vocab"]
        pairs = entries.items() if isinstance(entries, dict) else ((entry[0], id) for id, entry in enumerate(entries))
        tokens = {int(id): str(text) for text, id in pairs}
        added = {int(token["id"]) for token in state.get("added_tokens") or ()}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    kept = {id: text for id, text in tokens.items() if id not in added}
    return Vocabulary(tokens=kept, added=frozenset(added))


def vocabulary_difference(mine: Vocabulary, theirs: Vocabulary) -> str | None:
    """Other tokens or missing ids of the first vocabulary; None if it may be the same."""
    differing = different_ids(mine.tokens, theirs.tokens)
    missing = theirs.tokens.keys() - mine.tokens.keys() - mine.added
    sizes = f"{mine.size:,} ids instead of {theirs.size:,}" if mine.size != theirs.size else ""
    parts = [part for part in (sizes, differing) if part]
    return ", ".join(parts) if differing or (missing and sizes) else None


def different_ids(mine: Mapping[int, str], theirs: Mapping[int, str]) -> str | None:
    """The number of ids with different tokens, and the first of them."""
    differing = [id for id in sorted(mine.keys() & theirs.keys()) if mine[id] != theirs[id]]
    if not differing:
        return None
    first = differing[0]
    return (
        f"{len(differing):,} ids have other tokens, the first is {first}: {mine[first]!r} instead of {theirs[first]!r}"
    )

"""A tokenizer by its content: the fingerprint in the manifest, worked out from the tokenizer's own files.

In: the files of `tokenizer/`. Out: the fingerprint of docs/cache-format.md, and the text of each id. The
standard library alone does it, so that a fingerprint stays what it is whatever version of other libraries is there,
and verification needs none of them.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.strict_json import canonical, sha256_hex

TOKENIZER: Final = "tokenizer.json"
# Where roles (end of a document, padding ...) are stated; the later file counts.
ROLE_FILES: Final = ("special_tokens_map.json", "tokenizer_config.json")
ROLE: Final = "_token"
# 256,000 ids with their merges take 34 MB and 3 million values; a value takes 64 bytes as a Python object.
MAX_BYTES: Final = 64 << 20
MAX_VALUES: Final = 8 << 20


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerContent:
    """What makes a tokenizer; `texts` are those of the ids that tokenizer.json names."""

    fingerprint: str
    texts: Mapping[int, str]

    def differing(self, ids: Mapping[str, int]) -> list[int]:
        """The ids for which a vocabulary (ids by text) differs; a text that two ids share proves nothing."""
        counts = Counter(self.texts.values())
        return sorted(n for n, text in self.texts.items() if counts[text] == 1 and ids.get(text) != n)


def tokenizer_content(files: Mapping[str, bytes]) -> TokenizerContent:
    """Read a tokenizer's files; tokenizer.json must be among them."""
    if TOKENIZER not in files:
        raise CacheDamaged(f"{TOKENIZER} is missing, its fingerprint cannot be worked out", hint="copy the cache again")
    try:
        state = _object(files[TOKENIZER], TOKENIZER)
        roles: dict[str, str] = {}
        for name in ROLE_FILES:
            if name in files:
                roles |= _roles(_object(files[name], name))
        normal = _normal(state)
        return TokenizerContent(
            fingerprint=sha256_hex(canonical({"backend": normal, "special": roles})), texts=_texts(normal)
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise CacheDamaged(f"{TOKENIZER} is not what the tokenizers library writes ({what[:200]})") from None


def _object(data: bytes, what: str) -> dict[str, Any]:
    """Parse an object, within bounds on the memory that it may take."""
    if len(data) > MAX_BYTES or sum(data.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise CacheDamaged(f"{what} holds {len(data):,} bytes, more values than a tokenizer of {MAX_VALUES:,} has")
    value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    if not isinstance(value, dict):
        raise CacheDamaged(f"{what} holds no object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {name[:100]!r} is there twice in one object")
    return values


def _roles(config: Mapping[str, Any]) -> dict[str, str]:
    """The texts of the tokens that have a role, by its name."""
    texts = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in config.items()
        if name.endswith(ROLE)
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _normal(state: Mapping[str, Any]) -> dict[str, Any]:
    """One spelling for what means the same: no padding or truncation, added tokens by id, merges as pairs."""
    normal = {**state, "padding": None, "truncation": None}
    normal["added_tokens"] = sorted(state.get("added_tokens") or [], key=lambda token: int(token["id"]))
    model = dict(state.get("model") or {})
    if "merges" in model:
        model["merges"] = [merge.split(" ") if isinstance(merge, str) else list(merge) for merge in model["merges"]]
    normal["model"] = model
    return normal


def _texts(state: Mapping[str, Any]) -> dict[int, str]:
    vocabulary = state["model"].get("vocab") or {}
    if isinstance(vocabulary, dict):
        texts = {int(number): str(text) for text, number in vocabulary.items()}
        if len(texts) != len(vocabulary):
            raise ValueError("two texts have one id")
    else:
        texts = {number: str(entry[0]) for number, entry in enumerate(vocabulary)}
    return texts | {int(token["id"]): str(token["content"]) for token in state["added_tokens"]}

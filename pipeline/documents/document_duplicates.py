"""Duplicates in the data, counted for the plan.

In: the text of each document, or its segments. Out: the number of documents per split that may have the tokens of an
earlier one. The count must never be too low, or verification would report a copied part. If tokens determine the
normalized text, normalized texts are compared, without tokenizing. Otherwise (chat templates, other tokenizers) tokens
are compared, as in verification, unless the data are too large.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, Final
from unicodedata import is_normalized

import numpy as np
import numpy.typing as npt
from tokenizers.pre_tokenizers import ByteLevel

from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer
from kdpipe.schemas.choices import SplitName

KEY_BYTES: Final = 8
# Most bytes to tokenize for the count alone: about a minute on one core.
MAX_TOKENIZED_BYTES: Final = 32 << 20


def text_key(tokenizer: LoadedTokenizer, append_stop: bool) -> Callable[[str], int] | None:
    """A hash of texts that is equal for texts of equal tokens; None if tokens do not determine the text."""
    backend = tokenizer.fast.backend_tokenizer
    described = json.loads(backend.to_str())
    if not _keeps_text(described):
        return None
    normalizer = backend.normalizer if described["normalizer"] is not None else None
    stop = tokenizer.token_text(tokenizer.stop) if append_stop and tokenizer.stop is not None else ""

    def key(text: str) -> int:
        if normalizer is not None and not is_normalized("NFC", text):  # the normalizer itself does 11 MB/s
            text = normalizer.normalize_str(text)
        # A stop token is appended only to texts without one.
        digest = hashlib.blake2b(text.removesuffix(stop).encode(), digest_size=KEY_BYTES)
        return int.from_bytes(digest.digest(), "big")

    return key


def count_duplicates(
    keys: Sequence[int] | npt.NDArray[np.uint64], in_validation: npt.NDArray[np.bool_]
) -> dict[SplitName, int]:
    """The number of documents per split with the key of an earlier one."""
    values = np.asarray(keys, np.uint64)
    by_split: dict[SplitName, npt.NDArray[np.uint64]] = {
        "train": values[~in_validation],
        "validation": values[in_validation],
    }
    return {split: len(mine) - len(np.unique(mine)) for split, mine in by_split.items()}


def n_repeated(segments: Iterable[Segment]) -> int:
    """The number of documents whose segment digests add up to those of an earlier one."""
    seen, n = set[tuple[int, int]](), 0
    for _, group in groupby(segments, key=lambda segment: segment.document):
        halves = np.array([np.frombuffer(segment.digest, "<u8") for segment in group]).sum(axis=0)
        n += (key := (int(halves[0]), int(halves[1]))) in seen
        seen.add(key)
    return n


def _keeps_text(described: dict[str, Any]) -> bool:
    """Whether tokens determine the normalized text: a lossless byte-level BPE, with NFC or no normalizer."""
    model, normalizer = described["model"], described["normalizer"]
    whole = model["type"] == "BPE" and not any(
        model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    )
    return (
        whole
        and (normalizer is None or normalizer["type"] == "NFC")
        and _splits_bytes(described["pre_tokenizer"])
        and set(ByteLevel.alphabet()) <= model["vocab"].keys()
        and not any(token["lstrip"] or token["rstrip"] for token in described["added_tokens"])
    )


def _splits_bytes(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Whether the pre-tokenizer maps text to bytes without adding or removing any."""
    steps = [] if pre_tokenizer is None else pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    last = steps[-1] if steps else {}
    return (
        last.get("type") == "ByteLevel"
        and not last["add_prefix_space"]
        and all(
            step["type"] == "Digits" or (step["type"] == "Split" and step["behavior"] != "Removed")
            for step in steps[:-1]
        )
    )

"""Write a cache of your own targets and read it back: two sentences, six words, top-3 targets written by hand.

In: an output directory. Out: a finished cache in it, and the targets of its first sequence on stdout.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

from kdpipe.cache import open_cache
from kdpipe.cache.format.rows import Block, Sequence
from kdpipe.cache.opening import create_cache
from kdpipe.cache.order import SequenceOrder
from kdpipe.schemas.arrays import default_arrays
from kdpipe.schemas.cache_plan import CachePlan, SplitPlan
from kdpipe.schemas.manifest import Data, Manifest, TeacherRecord, Tokenizer, expected_tables
from kdpipe.schemas.target_kinds import TopK
from kdpipe.schemas.targets import HiddenSpec, TargetSpec

WORDS = ["the", "cat", "dog", "sat", "ran", "."]
DOCUMENTS = ["the cat sat .", "the dog ran ."]


def manifest() -> Manifest:
    """Teacher, tokenizer, data and targets of the cache."""
    targets, hidden = TargetSpec(keep=TopK(k=3), temperatures=(2.0,)), HiddenSpec()
    return Manifest(
        kdpipe="example",
        seed=0,
        teacher=TeacherRecord(name="a table written by hand", license="Apache-2.0"),
        tokenizer=Tokenizer(fingerprint=digest(WORDS).hex(), vocabulary_size=len(WORDS)),
        data=Data(fingerprint=digest(DOCUMENTS).hex(), source="two sentences"),
        plan=CachePlan(splits=(SplitPlan(name="train", bounds=(0, len(DOCUMENTS))),), sequence_length=4),
        targets=targets,
        hidden=hidden,
        tables=expected_tables(targets, hidden, len(WORDS)),
        arrays=default_arrays(targets, hidden, len(WORDS)),
    )


def digest(texts: list[str]) -> bytes:
    """A fingerprint of some texts."""
    return hashlib.sha256("\0".join(texts).encode()).digest()


def sequence(number: int) -> Sequence:
    """One document as a sequence; its last token has no target."""
    words = DOCUMENTS[number].split()
    return Sequence(
        tokens=np.array([WORDS.index(word) for word in words]),
        loss_mask=np.array([True] * (len(words) - 1) + [False]),
        token_bytes=np.array([len(word) for word in words]),
        document_starts=np.array([0]),
        documents=np.array([number]),
        digests=np.frombuffer(digest([DOCUMENTS[number]])[:16], np.uint8).reshape(1, 16),
    )


def block(tokens: np.ndarray) -> Block:
    """Targets with 0.7 for the next word, 0.1 for each of two neighbors, and 0.1 for the rest."""
    n = len(tokens) - 1
    top = np.stack([tokens[1:], (tokens[1:] + 1) % 6, (tokens[1:] + 2) % 6], axis=1)
    p = np.array([0.7, 0.1, 0.1] + [0.1 / 3] * 3)
    ones_and_nan = np.append(np.ones(n), np.nan)
    return Block(
        n_exact=np.append(np.full(n, 3), 0),
        n_draws=np.zeros(n + 1, np.int64),
        ids=top.ravel(),
        logprobs=np.tile(np.log(p[:3]), n).astype(np.float32),
        log_tail=(np.log(0.1) * ones_and_nan).astype(np.float32),
        entropy=(-(p * np.log(p)).sum() * ones_and_nan).astype(np.float32),
        label_logprob=(np.log(0.7) * ones_and_nan).astype(np.float32),
        log_z={2.0: (np.log(np.sqrt(p).sum()) * ones_and_nan).astype(np.float32)},
    )


def main(folder: Path) -> None:
    """Write a cache, seal it, read it."""
    writer = create_cache(folder, manifest())
    if not writer.has_tables:
        writer.publish_tables({"ids_by_rank": np.arange(len(WORDS), dtype=np.uint32)})
    for number in writer.missing():
        with writer.part(number) as part:
            for document in range(len(DOCUMENTS)):
                part.add(sequence(document), block(sequence(document).tokens))
    print("cache_id", writer.seal())

    cache = open_cache(folder, split="train")
    order = SequenceOrder(cache.sequences_by_part, seed=0)
    for t, token in enumerate(cache[0].tokens):
        entries = cache[0].count[:t].sum() + np.arange(cache[0].count[t])
        targets = [f"{WORDS[cache[0].ids[k]]} {np.exp(cache[0].logprobs[k]):.2f}" for k in entries]
        print(f"after {WORDS[token]!r}: {', '.join(targets) or 'nothing'}")
    print("training order of two epochs", order.share(position=0, count=4))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example-cache"))

"""Documents all the way into a cache: tokens, masks, texts and columns come back as they went in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.cache.format.rows import Block
from kdpipe.cache.opening import create_cache, open_cache
from kdpipe.cache.verify import verify_cache
from kdpipe.pipeline.documents.corpus import Corpus
from kdpipe.pipeline.documents.open_corpus import open_corpus
from kdpipe.pipeline.documents.segments import Segment, pack, to_sequence
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer, load_tokenizer
from kdpipe.schemas.arrays import default_arrays
from kdpipe.schemas.capture_settings import DataSettings
from kdpipe.schemas.manifest import Data, Manifest, expected_tables
from kdpipe.schemas.target_kinds import NoTargets
from kdpipe.schemas.targets import HiddenSpec, TargetSpec
from support.corpora import CHATML, chat_rows, pair_rows, small_tokenizer, text_rows, write_jsonl

LENGTH = 64


def manifest_of(corpus: Corpus, tokenizer: LoadedTokenizer) -> Manifest:
    targets = TargetSpec(keep=NoTargets(), temperatures=(), entropy=False)
    n_ids = tokenizer.record.vocabulary_size
    data = Data(
        fingerprint=corpus.fingerprint,
        source=corpus.source,
        columns=corpus.columns,
        text=True,
        train_on=corpus.train_on,
    )
    return Manifest(
        kdpipe="test",
        seed=0,
        teacher=None,
        tokenizer=tokenizer.record,
        data=data,
        plan=corpus.plan(LENGTH),
        targets=targets,
        tables=expected_tables(targets, HiddenSpec(), n_ids),
        arrays=default_arrays(targets, HiddenSpec(), n_ids),
    )


def blank(n_rows: int) -> Block:
    none = np.zeros(n_rows, np.int32)
    return Block(n_exact=none, n_draws=none, ids=np.zeros(0, np.int32), logprobs=np.zeros(0, np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("make", [text_rows, pair_rows, chat_rows])
def test_a_cache_holds_the_documents_as_they_were_read(make: Any, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(small_tokenizer(tmp_path / "tokenizer", chat_template=CHATML)))
    path = write_jsonl(tmp_path / "corpus.jsonl", make(30))
    corpus = open_corpus(DataSettings(path=str(path), val_fraction=0.2), tokenizer)
    manifest = manifest_of(corpus, tokenizer)
    writer = create_cache(tmp_path / "cache", manifest)
    writer.publish_tokenizer(tokenizer.files)
    counts = corpus.token_counts(tokenizer.record.vocabulary_size)
    writer.publish_tables({"ids_by_rank": np.argsort(-counts, kind="stable").astype(np.uint32)})
    packed: list[list[Segment]] = []
    for number in range(manifest.plan.n_parts):
        planned = manifest.plan.part(number)
        segments = list(corpus.segments(planned.split, planned.first_document, planned.n_documents, LENGTH))
        with writer.part(number) as part:
            for group in pack(segments, LENGTH):
                packed.append([segments[i] for i in group])
                sequence = to_sequence(packed[-1], {}, manifest)
                part.add(sequence, blank(len(sequence.tokens)))
    writer.seal()
    assert verify_cache(tmp_path / "cache", "deep").problems == ()
    cache = open_cache(tmp_path / "cache")
    assert len(cache) == len(packed)
    for i, group in enumerate(packed):
        rows = cache[i]
        assert rows.tokens.tolist() == np.concatenate([segment.tokens for segment in group]).tolist()
        assert rows.loss_mask.tolist() == np.concatenate([segment.loss_mask for segment in group]).tolist()
        assert rows.documents.tolist() == [segment.document for segment in group]

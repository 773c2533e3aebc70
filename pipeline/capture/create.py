"""Create or reopen a cache: its manifest, tokenizer and tables, and what the teacher predicts for all parts.

In: a folder, the manifest, documents and teacher. Out: the `CacheWriter` and the `TargetRequest`. A table that another
worker published first is kept.
"""

from dataclasses import replace

from kdpipe.cache.opening import create_cache
from kdpipe.cache.reshape.sources import SourceCache
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.pipeline.capture.cache_manifest import ids_by_rank, unigram
from kdpipe.pipeline.capture.capture_teacher import CaptureTeacher, fitted_tables
from kdpipe.pipeline.capture.inputs import Inputs
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.schemas.manifest import Manifest

# Documents whose states a projection is fitted to.
FITTED_DOCUMENTS = 200
# Every n-th position is compared with its full distribution.
FIDELITY_EVERY = 16


def begin_cache(
    folder: str,
    manifest: Manifest,
    inputs: Inputs,
    teacher: CaptureTeacher,
    source: SourceCache | None = None,
    retry_policy: RetryPolicy | None = None,
) -> tuple[CacheWriter, TargetRequest]:
    """Publish what is missing, from the `source` cache where one is extended; a folder with another cache is
    refused.
    """
    # Reads documents: before the folder is created, so that a refused document leaves no folder behind.
    counts = inputs.corpus.token_counts(manifest.vocabulary_size)
    cache = create_cache(folder, manifest, retry_policy)
    stated, n_ids = cache.manifest, cache.manifest.vocabulary_size
    cache.publish_tokenizer(inputs.tokenizer.files if source is None else source.tokenizer_files())
    request = TargetRequest(
        targets=stated.targets,
        hidden=stated.hidden,
        vocabulary_size=n_ids,
        seed=stated.seed,
        starts_word=inputs.tokenizer.starts_word if stated.targets.boundary else None,
        unigram=unigram(counts),
        fidelity_every=FIDELITY_EVERY,
    )
    if source is not None:
        cache.publish_tables({table.name: source.cache.table(table.name) for table in stated.tables})
    elif not cache.has_tables:
        segments = inputs.corpus.sample_segments("train", FITTED_DOCUMENTS, stated.plan.sequence_length)
        cache.publish_tables({"ids_by_rank": ids_by_rank(counts), **fitted_tables(teacher, segments, request)})
    # Copies: torch does not take memory-mapped arrays.
    fitted = [table.name for table in stated.tables if table.name.startswith("pca_")]
    projections = {name: cache.table(name).copy() for name in fitted}
    return cache, replace(request, tables=projections)

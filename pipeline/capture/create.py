"""A cache begun or found: its manifest, tokenizer and tables are there, and the teacher knows what it is asked.

In: a folder, the manifest, documents and teacher. Out: the `CacheWriter`, and the `TargetRequest` of every part. A
table that another worker published first is the one that holds.
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

# Documents to whose states a projection is fitted.
FITTED_DOCUMENTS = 200
# Of all positions, those that are compared with their full distribution.
FIDELITY_EVERY = 16


def begin_cache(
    folder: str,
    manifest: Manifest,
    inputs: Inputs,
    speaker: CaptureTeacher,
    old: SourceCache | None = None,
    retry_policy: RetryPolicy | None = None,
) -> tuple[CacheWriter, TargetRequest]:
    """Publish what is not there yet, of the old cache where one is extended; another cache in the folder is refused."""
    # Before the folder is there: this reads documents, and one that is refused should not leave a folder behind.
    counts = inputs.corpus.token_counts(manifest.vocabulary_size)
    cache = create_cache(folder, manifest, retry_policy)
    stated, n_ids = cache.manifest, cache.manifest.vocabulary_size
    cache.publish_tokenizer(inputs.tokenizer.files if old is None else old.tokenizer_files())
    asked = TargetRequest(
        targets=stated.targets,
        hidden=stated.hidden,
        vocabulary_size=n_ids,
        seed=stated.seed,
        starts_word=inputs.tokenizer.starts_word if stated.targets.boundary else None,
        unigram=unigram(counts),
        fidelity_every=FIDELITY_EVERY,
    )
    if old is not None:
        cache.publish_tables({table.name: old.cache.table(table.name) for table in stated.tables})
    elif not cache.has_tables:
        pieces = inputs.corpus.sample_segments("train", FITTED_DOCUMENTS, stated.plan.sequence_length)
        cache.publish_tables({"ids_by_rank": ids_by_rank(counts), **fitted_tables(speaker, pieces, asked)})
    # Copies: torch takes no array that lies in a file.
    fitted = [table.name for table in stated.tables if table.name.startswith("pca_")]
    projections = {name: cache.table(name).copy() for name in fitted}
    return cache, replace(asked, tables=projections)

"""The tokenizer that the cache keeps, as stage two needs it: files for fresh students, content for the comparison.

In: the place of a cache and its manifest. Out: a `CacheTokenizer`, whose files are of the tokenizer that they claim.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kdpipe.cache.reader import Cache
from kdpipe.pipeline.students.presets import TokenIds
from kdpipe.pipeline.tokenizers.cached_tokenizer import load_cached_tokenizer
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheTokenizer:
    """Files, the tokenizer they make (None where the cache keeps no files), and what a fresh student is made for."""

    files: Mapping[str, bytes]
    loaded: LoadedTokenizer | None
    ids: TokenIds


def kept_tokenizer(cache: Cache) -> CacheTokenizer:
    """Read the tokenizer of a cache."""
    files, loaded = load_cached_tokenizer(cache)
    count, longest = cache.manifest.vocabulary_size, cache.manifest.plan.sequence_length
    if loaded is None:
        return CacheTokenizer(files=files, loaded=None, ids=TokenIds(count=count, longest=longest))
    fast = loaded.fast
    ids = TokenIds(count=count, longest=longest, begin=fast.bos_token_id, end=loaded.stop, padding=fast.pad_token_id)
    return CacheTokenizer(files=files, loaded=loaded, ids=ids)

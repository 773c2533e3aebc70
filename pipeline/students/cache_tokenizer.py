"""The tokenizer in a cache: files for students with random init, content for the comparison with others.

In: a cache. Out: a `CacheTokenizer`, whose files have been checked against the manifest.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kdpipe.cache.reader import Cache
from kdpipe.pipeline.students.presets import TokenIds
from kdpipe.pipeline.tokenizers.cached_tokenizer import load_cached_tokenizer
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheTokenizer:
    """Tokenizer files, the loaded tokenizer (None without files), and the ids that a new student needs."""

    files: Mapping[str, bytes]
    loaded: LoadedTokenizer | None
    ids: TokenIds


def read_cache_tokenizer(cache: Cache) -> CacheTokenizer:
    files, loaded = load_cached_tokenizer(cache)
    count, longest = cache.manifest.vocabulary_size, cache.manifest.plan.sequence_length
    if loaded is None:
        return CacheTokenizer(files=files, loaded=None, ids=TokenIds(count=count, longest=longest))
    fast = loaded.fast
    ids = TokenIds(count=count, longest=longest, begin=fast.bos_token_id, end=loaded.stop, padding=fast.pad_token_id)
    return CacheTokenizer(files=files, loaded=loaded, ids=ids)

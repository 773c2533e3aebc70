"""The tokenizer that a cache keeps, loaded as students load it, and checked to be the one whose fingerprint is stated.

In: the place of a cache and its manifest. Out: its files and the loaded tokenizer. The fingerprint is worked out from
the files by the cache; here the vocabulary that transformers makes of the same files is compared with them, since
other files than tokenizer.json have a say in that.
"""

from collections.abc import Mapping
from pathlib import Path

from kdpipe.cache.retries import Patience
from kdpipe.cache.scratch import scratch_folder
from kdpipe.cache.tokenizer_content import TOKENIZER, tokenizer_content
from kdpipe.cache.tokenizer_files import read_tokenizer_files
from kdpipe.pipeline.data.tokenizer import LoadedTokenizer, load_tokenizer
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import Manifest


def load_cached_tokenizer(
    url: str, manifest: Manifest, patience: Patience | None = None
) -> tuple[Mapping[str, bytes], LoadedTokenizer | None]:
    """Load the tokenizer of a cache, which runs no code of its own; None where the cache keeps no files."""
    files = read_tokenizer_files(url, manifest, patience)
    if not files:
        return files, None
    n_bytes = sum(map(len, files.values()))
    with scratch_folder("kdpipe-tokenizer-", "unpacking the cache's tokenizer", n_bytes) as folder:
        write_files(folder, files)
        loaded = load_tokenizer(str(folder), chat_template="none")
    content = tokenizer_content(files)
    if wrong := content.differing(loaded.fast.get_vocab()):
        raise CacheDamaged(
            f"{url}: transformers loads another tokenizer than tokenizer/{TOKENIZER} holds: {len(wrong):,} ids differ, "
            f"the first is {wrong[0]}, {content.texts[wrong[0]]!r}",
            hint="use another copy of the cache, or the version of transformers that made it",
        )
    if loaded.record.vocabulary_size > manifest.vocabulary_size:
        raise CacheDamaged(
            f"{url}: transformers loads a tokenizer of {loaded.record.vocabulary_size:,} ids from its files, the cache "
            f"has {manifest.vocabulary_size:,}",
            hint="use another copy of the cache, or the version of transformers that made it",
        )
    return files, loaded


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files by their path within a folder, which is one deep at most."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

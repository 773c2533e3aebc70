"""The tokenizer's files as the cache keeps them, byte for byte, each held against the digest in the manifest.

In: the place of a cache and its manifest. Out: bytes by path within tokenizer/. Before it: `store.py`, `writer.py`,
which published them. After it: stage two's students, which take them or are held against them.
"""

from kdpipe.cache import layout
from kdpipe.cache.retries import Patience
from kdpipe.cache.store import open_store
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.strict_json import sha256_hex


def read_tokenizer_files(url: str, manifest: Manifest, patience: Patience | None = None) -> dict[str, bytes]:
    """Read all of them; none where the cache was made without."""
    store = open_store(url, patience)
    found = {}
    for name, file in sorted(manifest.tokenizer.files.items()):
        path = f"{layout.TOKENIZER}/{name}"
        size = store.size(path)
        data = store.read(path, file.bytes) if size == file.bytes else None
        if data is None or sha256_hex(data) != file.sha256:
            what = "is missing" if size is None else "is not what the manifest says"
            raise CacheDamaged(f"{url}: {path} {what}", hint="copy the cache again, or run cache-teacher again")
        found[name] = data
    return found

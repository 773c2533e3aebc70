"""The tokenizer's files as the cache keeps them, byte for byte, checked against their digests and the fingerprint.

In: the place of a cache and its manifest. Out: bytes by path within tokenizer/. Students take these files or are
compared with them: files of another tokenizer than the manifest claims never leave this module.
"""

from collections.abc import Mapping

from kdpipe.cache import layout
from kdpipe.cache.retries import Patience
from kdpipe.cache.store import open_store
from kdpipe.cache.tokenizer_content import TOKENIZER, tokenizer_content
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
    if found and (wrong := fingerprint_problem(found, manifest.tokenizer.fingerprint)) is not None:
        raise CacheDamaged(f"{url}: {layout.TOKENIZER}/{TOKENIZER}: {wrong}", hint="use another copy of the cache")
    return found


def fingerprint_problem(files: Mapping[str, bytes], stated: str) -> str | None:
    """What is wrong with the fingerprint that a manifest states for a tokenizer's files."""
    try:
        own = tokenizer_content(files).fingerprint
    except CacheDamaged as error:
        return error.message.removeprefix(TOKENIZER).lstrip(": ")
    if own != stated:
        return f"it is another tokenizer than the manifest states: fingerprint {own[:12]}, expected {stated[:12]}"
    return None

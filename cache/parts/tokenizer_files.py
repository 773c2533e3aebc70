"""The tokenizer's files as the cache keeps them, byte for byte, checked against their digests and the fingerprint.

In: the store of a cache and its manifest. Out: bytes by path within tokenizer/. Students take these files or are
compared with them: files of another tokenizer than the manifest claims never leave this module.
"""

from collections.abc import Mapping

from kdpipe.cache import layout
from kdpipe.cache.parts.tokenizer_content import TOKENIZER, TokenizerContent, tokenizer_content
from kdpipe.cache.stores.protocol import Store
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.strict_json import sha256_hex


def read_tokenizer(store: Store, manifest: Manifest) -> tuple[dict[str, bytes], TokenizerContent | None]:
    """Read all of them with their content, which takes seconds to work out where a tokenizer is large."""
    found = {}
    for name, file in sorted(manifest.tokenizer.files.items()):
        path = f"{layout.TOKENIZER}/{name}"
        size = store.size(path)
        data = store.read(path, file.bytes) if size == file.bytes else None
        if data is None or sha256_hex(data) != file.sha256:
            what = "is missing" if size is None else "differs from the manifest"
            raise CacheDamaged(f"{store.url}: {path} {what}", hint="copy the cache again, or run cache-teacher again")
        found[name] = data
    if not found:
        return found, None
    try:
        return found, _content_of(found, manifest.tokenizer.fingerprint)
    except CacheDamaged as error:
        what = f"{store.url}: {layout.TOKENIZER}/{TOKENIZER}: {error.message}"
        raise CacheDamaged(what, hint="use another copy of the cache") from None


def fingerprint_problem(files: Mapping[str, bytes], stated: str) -> str | None:
    """What is wrong with the fingerprint that a manifest states for a tokenizer's files."""
    try:
        _content_of(files, stated)
    except CacheDamaged as error:
        return error.message
    return None


def _content_of(files: Mapping[str, bytes], stated: str) -> TokenizerContent:
    """The content of a tokenizer's files, which must be of the fingerprint that is stated."""
    try:
        content = tokenizer_content(files)
    except CacheDamaged as error:
        raise CacheDamaged(error.message.removeprefix(TOKENIZER).lstrip(": ")) from None
    if (own := content.fingerprint) != stated:
        raise CacheDamaged(
            f"it is another tokenizer than the manifest states: fingerprint {own[:12]}, expected {stated[:12]}"
        )
    return content

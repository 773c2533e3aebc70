"""The tokenizer's files as the cache keeps them, byte for byte, checked against their digests and the fingerprint.

In: the store of a cache and its manifest. Out: bytes by path within tokenizer/. Students take these files or are
compared with them: files of another tokenizer than the manifest claims never leave this module.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdpipe.cache import layout
from kdpipe.cache.durable.scratch import scratch_folder
from kdpipe.cache.parts.tokenizer_content import TOKENIZER, TokenizerContent, tokenizer_content
from kdpipe.cache.stores.protocol import Store
from kdpipe.schemas.errors import CacheDamaged, UsageError
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.strict_json import sha256_hex

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def read_tokenizer(store: Store, manifest: Manifest) -> tuple[dict[str, bytes], TokenizerContent | None]:
    """Read all of them with their content, which takes seconds to work out where a tokenizer is large."""
    contents = {}
    for name, file in sorted(manifest.tokenizer.files.items()):
        path = f"{layout.TOKENIZER}/{name}"
        size = store.size(path)
        data = store.read(path, file.bytes) if size == file.bytes else None
        if data is None or sha256_hex(data) != file.sha256:
            what = "is missing" if size is None else "differs from the manifest"
            raise CacheDamaged(f"{store.url}: {path} {what}", hint="copy the cache again, or run cache-teacher again")
        contents[name] = data
    if not contents:
        return contents, None
    try:
        return contents, _content_of(contents, manifest.tokenizer.fingerprint)
    except CacheDamaged as error:
        what = f"{store.url}: {layout.TOKENIZER}/{TOKENIZER}: {error.message}"
        raise CacheDamaged(what, hint="use another copy of the cache") from None


def load_tokenizer_files(url: str, files: Mapping[str, bytes]) -> "PreTrainedTokenizerFast":
    """Load a tokenizer from its files with transformers, without torch and without remote code."""
    from transformers import PreTrainedTokenizerFast

    if not files:
        raise UsageError(f"{url} stores no tokenizer", hint="load the teacher's tokenizer with transformers")
    with scratch_folder(
        "kdpipe-tokenizer-", "unpacking the cache's tokenizer", sum(map(len, files.values()))
    ) as folder:
        write_files(folder, files)
        try:
            loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
        except Exception as error:  # transformers and tokenizers raise unrelated classes
            line = next(iter(str(error).splitlines()), type(error).__name__)[:200]
            raise CacheDamaged(f"{url}: the tokenizer cannot be loaded: {line}") from None
    return loaded


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files to a folder; paths have at most one subfolder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


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

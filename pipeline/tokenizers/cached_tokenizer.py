"""The tokenizer of a cache, loaded as students load it and checked against the fingerprint in the manifest.

In: the URL of a cache and its manifest. Out: its files and the loaded tokenizer. The cache computes the fingerprint
from the files; here the tokenizer that transformers loads from them is compared with tokenizer.json, since other files
affect it too. `cache-teacher` writes only files that pass this check.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace

from kdpipe.cache.durable.scratch import scratch_folder
from kdpipe.cache.parts.tokenizer_content import TOKENIZER, tokenizer_content
from kdpipe.cache.parts.tokenizer_files import write_files
from kdpipe.cache.reader import Cache
from kdpipe.pipeline.tokenizers.backend_state import differing_section
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer, file_records, load_fast, load_tokenizer
from kdpipe.schemas.errors import CacheDamaged, ConfigError, Incompatible

CONFIG = "tokenizer_config.json"
HINT = "use another copy of the cache, or the version of transformers that made it"
# Keys that make transformers rebuild sections of tokenizer.json.
REBUILDING = ("add_bos_token", "add_eos_token", "auto_map", "fix_mistral_regex")


def load_cached_tokenizer(cache: Cache) -> tuple[Mapping[str, bytes], LoadedTokenizer | None]:
    """Load the files and the tokenizer of a cache, without remote code; None if the cache has no tokenizer files."""
    url, (files, content) = cache.url, cache.tokenizer_content()
    if content is None:
        return files, None
    n_bytes = sum(map(len, files.values()))
    with scratch_folder("kdpipe-tokenizer-", "unpacking the cache's tokenizer", n_bytes) as folder:
        write_files(folder, files)
        loaded = load_tokenizer(str(folder), chat_template="none")
    if wrong := content.differing(loaded.fast.get_vocab()):
        raise CacheDamaged(
            f"{url}: the tokenizer that transformers loads differs from tokenizer/{TOKENIZER} in {len(wrong):,} ids, "
            f"the first is {wrong[0]}, {content.texts[wrong[0]]!r}",
            hint=HINT,
        )
    if loaded.record.vocabulary_size > cache.manifest.vocabulary_size:
        raise CacheDamaged(
            f"{url}: transformers loads a tokenizer of {loaded.record.vocabulary_size:,} ids from its files, the cache "
            f"has {cache.manifest.vocabulary_size:,}",
            hint=HINT,
        )
    # What was loaded is compared there, and stated where it differs: a comparison takes seconds for a large tokenizer.
    if loaded.files[TOKENIZER] != files[TOKENIZER]:
        section = differing_section(files[TOKENIZER], loaded.fast)
        raise CacheDamaged(
            f"{url}: the {section} that transformers loads differs from tokenizer/{TOKENIZER}", hint=HINT
        )
    return files, loaded


def with_reloadable_files(loaded: LoadedTokenizer) -> LoadedTokenizer:
    """The tokenizer with files from which it can be reloaded, even without the model's config.json."""
    for files in _candidates(loaded):
        if _is_reloaded(files, loaded):
            record = loaded.record.model_copy(
                update={"files": file_records(files), "fingerprint": tokenizer_content(files).fingerprint}
            )
            return replace(loaded, files=files, record=record)
    raise Incompatible(
        f"the tokenizer {loaded.name} cannot be stored: loading its files gives a different tokenizer",
        hint="load it with transformers, save it with save_pretrained, and pass that folder to --tokenizer",
    )


def _candidates(loaded: LoadedTokenizer) -> Iterator[dict[str, bytes]]:
    """Its files, and the same with a configuration that uses tokenizer.json unchanged."""
    yield loaded.files
    config = json.loads(loaded.files.get(CONFIG, b"{}"))
    config |= loaded.template_values | {"tokenizer_class": "PreTrainedTokenizerFast"}
    kept = {key: value for key, value in config.items() if key not in REBUILDING}
    yield {**loaded.files, CONFIG: json.dumps(kept, ensure_ascii=False, indent=2).encode()}


def _is_reloaded(files: Mapping[str, bytes], loaded: LoadedTokenizer) -> bool:
    n_bytes = sum(map(len, files.values()))
    with scratch_folder("kdpipe-tokenizer-", "checking the tokenizer's files", n_bytes) as folder:
        write_files(folder, files)
        try:
            fast = load_fast(str(folder))
        except ConfigError:  # its class is stated in config.json only, or is remote code
            return False
    return differing_section(files[TOKENIZER], fast) is None

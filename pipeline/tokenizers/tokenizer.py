"""The tokenizer: loaded by transformers, identified by content, stored byte for byte.

In: a folder or a Hub id. Out: `LoadedTokenizer`: its manifest record, its files, and encoding of text with offsets.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file, list_repo_templates

from kdpipe.cache.parts.tokenizer_content import TOKENIZER, TokenizerContent, tokenizer_content
from kdpipe.pipeline.tokenizers.backend_state import differing_section
from kdpipe.pipeline.tokenizers.vocabulary_file import (
    FILES,
    PATTERNS,
    VOCABULARIES,
    check_tokenizer_name,
    folder_has_tokenizer,
)
from kdpipe.schemas.errors import CacheDamaged, ConfigError, Incompatible, first_line
from kdpipe.schemas.manifest import MAX_VOCABULARY, TOKENIZER_FILE, FileRecord, Tokenizer
from kdpipe.schemas.strict_json import sha256_hex


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTokenizer:
    """A tokenizer in memory.

    `record` goes into the manifest, `files` into the cache. `starts_word[id]`: the id's text begins a new word.
    `template` is the chat template, selected by `template_name`; `template_values` are its variables. `turn_ends` are
    ids that may end a turn, `stop` is the one that ends a document.
    """

    name: str
    record: Tokenizer
    files: dict[str, bytes]
    starts_word: npt.NDArray[np.bool_]
    template: str | None
    template_name: str | None
    template_values: dict[str, str]
    stop: int | None
    turn_ends: frozenset[int]
    fast: PreTrainedTokenizerFast

    def encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[Encoding]:
        """Encode texts, with the character offsets of each id."""
        return list(self.fast.backend_tokenizer.encode_batch(list(texts), add_special_tokens=add_special_tokens))

    def token_text(self, token: int) -> str:
        """The vocabulary entry of an id."""
        return str(self.fast.convert_ids_to_tokens(token))


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False, chat_template: str | None = None
) -> LoadedTokenizer:
    """Load from a folder or the Hub; `chat_template` is a file, the name of one of its templates, "none", or
    default.
    """
    fast = load_fast(name, revision, trust_remote_code)
    if fast.backend_tokenizer.encode_special_tokens:
        raise Incompatible(
            f"the tokenizer {name} splits special tokens in text, which tokenizer.json cannot represent",
            hint="set split_special_tokens to false in its tokenizer_config.json",
        )
    vocabulary = fast.get_vocab()
    size = max(vocabulary.values(), default=-1) + 1
    if not 0 < size <= MAX_VOCABULARY:
        raise ConfigError(f"the tokenizer {name} has {size:,} ids, supported: 1 to {MAX_VOCABULARY:,}")
    template = _template(fast, name, chat_template)
    files, content = _with_content(_files(fast, name, revision), fast, name)
    record = Tokenizer(
        fingerprint=content.fingerprint,
        vocabulary_size=size,
        chat_template_sha256=None if template is None else sha256_hex(template.encode()),
        files=file_records(files),
    )
    return LoadedTokenizer(
        name=name,
        record=record,
        files=files,
        starts_word=_starts_word(fast, vocabulary, size),
        template=template,
        template_name=chat_template,
        template_values={key: str(value) for key, value in fast.special_tokens_map.items() if isinstance(value, str)},
        stop=None if fast.eos_token is None else int(vocabulary[fast.eos_token]),
        turn_ends=_turn_ends(fast),
        fast=fast,
    )


def file_records(files: Mapping[str, bytes]) -> dict[str, FileRecord]:
    """The manifest record of each file."""
    return {path: FileRecord(bytes=len(data), sha256=sha256_hex(data)) for path, data in files.items()}


def load_fast(name: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """Load with transformers, and disable padding and truncation, which must not apply to documents."""
    folder = Path(name).expanduser()
    check_tokenizer_name(name)
    try:
        fast = AutoTokenizer.from_pretrained(
            str(folder) if folder.is_dir() else name, revision=revision, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # transformers, tokenizers (a bare Exception) and the Hub raise unrelated classes
        raise ConfigError(
            f"the tokenizer {name} cannot be loaded: {first_line(error)}", hint=_advice(error, folder.is_dir())
        ) from error
    if not isinstance(fast, PreTrainedTokenizerFast):
        raise ConfigError(
            f"the tokenizer {name} has no fast version ({type(fast).__name__}), which is needed for character offsets",
            hint="save one with a tokenizer.json, and pass its folder to --tokenizer",
        )
    fast.backend_tokenizer.no_padding()
    fast.backend_tokenizer.no_truncation()
    return fast


def has_tokenizer(name: str, revision: str | None = None) -> bool:
    """Whether a folder or a Hub repository has a tokenizer."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder_has_tokenizer(folder)
    return any(_hub_file(name, file, revision) is not None for file in VOCABULARIES)


def _advice(error: Exception, is_folder: bool) -> str:
    if "trust_remote_code" in str(error):
        return "it needs remote code: review that code, then set teacher.trust_remote_code or student.trust_remote_code"
    if is_folder:
        return "the folder may be incomplete: download it again"
    return "check the name, the network and your access, or use a local folder"


def _template(fast: PreTrainedTokenizerFast, name: str, chosen: str | None) -> str | None:
    own = fast.chat_template
    templates: dict[str, str] = own if isinstance(own, dict) else {} if own is None else {"default": own}
    if chosen == "none":
        return None
    if chosen is None:
        return templates.get("default")
    if chosen in templates:
        return templates[chosen]
    try:
        return Path(chosen).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        others = f"; templates of {name}: {', '.join(sorted(templates))}" if len(templates) > 1 else ""
        why = getattr(error, "strerror", None) or first_line(error)
        raise ConfigError(
            f"the chat template {chosen} cannot be read: {why}{others}",
            hint='give a file, or "none" for no template',
        ) from None


def _files(fast: PreTrainedTokenizerFast, name: str, revision: str | None) -> dict[str, bytes]:
    """Its files, by their path in the folder or repository."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        names = {path for path in FILES if (folder / path).is_file()}
        for pattern in PATTERNS:
            names |= {path.relative_to(folder).as_posix() for path in folder.glob(pattern) if path.is_file()}
        paths = {path: str(folder / path) for path in names}
    else:
        listed = list_repo_templates(name, local_files_only=False, revision=revision)
        templates = [f"additional_chat_templates/{template.removesuffix('.jinja')}.jinja" for template in listed]
        wanted = {*FILES, *fast.vocab_files_names.values(), *templates}
        places = {path: _hub_file(name, path, revision) for path in wanted}
        paths = {path: place for path, place in places.items() if place is not None}
    odd = sorted(path for path in paths if not re.match(TOKENIZER_FILE, path))
    if odd:
        raise ConfigError(
            f"the tokenizer {name} has a file with an unsupported name: {odd[0]!r}",
            hint="rename it: letters, digits, . _ -",
        )
    return {path: Path(paths[path]).read_bytes() for path in sorted(paths)}


def _with_content(
    files: dict[str, bytes], fast: PreTrainedTokenizerFast, name: str
) -> tuple[dict[str, bytes], TokenizerContent]:
    """The files with a tokenizer.json of the loaded tokenizer: a folder may have none, or one that differs."""
    try:
        if TOKENIZER in files:
            content = tokenizer_content(files)
            if differing_section(files[TOKENIZER], fast) is None:
                return files, content
        whole = {**files, TOKENIZER: fast.backend_tokenizer.to_str().encode()}
        return whole, tokenizer_content(whole)
    except CacheDamaged as error:
        raise ConfigError(f"the tokenizer {name} cannot be stored: {error.message}") from None


def _hub_file(name: str, path: str, revision: str | None) -> str | None:
    place: str | None = cached_file(
        name,
        path,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return place


def _starts_word(fast: PreTrainedTokenizerFast, vocabulary: dict[str, int], size: int) -> npt.NDArray[np.bool_]:
    """Ids that begin a new word: their text starts with white space, or they are special tokens.

    Some decoders drop the leading space of a single id, so each is decoded after another one.
    """
    starts = np.zeros(size, bool)
    decode = fast.backend_tokenizer.decode_batch
    anchor = _anchor(fast, vocabulary)
    ids = sorted(vocabulary.values())
    before = fast.backend_tokenizer.decode([anchor], skip_special_tokens=False)
    texts = decode([[anchor, i] for i in ids], skip_special_tokens=False)
    for i, text in zip(ids, texts, strict=True):
        starts[i] = text[len(before) :][:1].isspace()
    added = fast.added_tokens_decoder
    for i in {*(i for i, token in added.items() if token.special), *fast.all_special_ids}:
        starts[i] = True
    return starts


def _anchor(fast: PreTrainedTokenizerFast, vocabulary: dict[str, int]) -> int:
    """The id of a plain letter: ids decoded after it keep their leading space."""
    special = set(fast.all_special_ids)
    for token in ("a", "e", "0", "▁a"):
        if vocabulary.get(token) is not None and vocabulary[token] not in special:
            return int(vocabulary[token])
    return min(vocabulary.values())


def _turn_ends(fast: PreTrainedTokenizerFast) -> frozenset[int]:
    special = {i for i, token in fast.added_tokens_decoder.items() if token.special} | set(fast.all_special_ids)
    return frozenset(special - {fast.bos_token_id} | ({fast.eos_token_id} - {None}))

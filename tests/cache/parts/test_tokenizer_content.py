"""The fingerprint of a tokenizer, worked out from its files: what counts, what does not, and what is refused."""

import json
from typing import Any

import pytest

from kdpipe.cache.parts.tokenizer_content import MAX_VALUES, tokenizer_content
from kdpipe.schemas.errors import CacheDamaged
from support.limits import in_limits

STATE: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [{"id": 0, "content": "<s>", "special": True}, {"id": 4, "content": "</s>", "special": True}],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "BPE", "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]},
}


def files(**changes: Any) -> dict[str, bytes]:
    """A tokenizer's files, with changes at the top of tokenizer.json."""
    return {"tokenizer.json": json.dumps(STATE | changes).encode(), "tokenizer_config.json": b'{"eos_token":"</s>"}'}


PLAIN = tokenizer_content(files())


@pytest.mark.parametrize(
    "changes",
    [
        {"padding": {"pad_id": 3}},
        {"truncation": {"max_length": 9}},
        {"added_tokens": STATE["added_tokens"][::-1]},
        {"model": STATE["model"] | {"merges": ["a b"]}},
    ],
    ids=str,
)
def test_what_changes_no_id_does_not_count(changes: dict[str, Any]) -> None:
    assert tokenizer_content(files(**changes)).fingerprint == PLAIN.fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"model": STATE["model"] | {"vocab": {"<s>": 0, "a": 2, "b": 1, "ab": 3}}},
        {"model": STATE["model"] | {"merges": []}},
        {"added_tokens": STATE["added_tokens"][:1]},
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {"post_processor": {"type": "ByteLevel"}},
    ],
    ids=str,
)
def test_what_changes_an_id_counts(changes: dict[str, Any]) -> None:
    assert tokenizer_content(files(**changes)).fingerprint != PLAIN.fingerprint


def test_roles_count_as_the_files_state_them() -> None:
    other = files() | {"tokenizer_config.json": b'{"eos_token":"<s>"}'}
    assert tokenizer_content(other).fingerprint != PLAIN.fingerprint
    spelled = files() | {"tokenizer_config.json": b'{"eos_token":{"content":"</s>"},"add_bos_token":false}'}
    assert tokenizer_content(spelled).fingerprint == PLAIN.fingerprint
    older = files() | {"tokenizer_config.json": b"{}", "special_tokens_map.json": b'{"eos_token":"</s>"}'}
    assert tokenizer_content(older).fingerprint == PLAIN.fingerprint


def test_texts_are_those_of_vocabulary_and_added_tokens() -> None:
    assert PLAIN.texts == {0: "<s>", 1: "a", 2: "b", 3: "ab", 4: "</s>"}
    scored = {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.5]]}
    assert tokenizer_content(files(model=scored)).texts == {0: "<s>", 1: "a", 4: "</s>"}
    ids = {text: number for number, text in PLAIN.texts.items()}
    assert PLAIN.differing(ids) == []
    assert PLAIN.differing(ids | {"a": 2, "b": 1}) == [1, 2]
    assert PLAIN.differing({**ids, "more": 5}) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"model":1}',
        b'{"model":{"vocab":{"a":"x"}}}',
        b'{"model":{"vocab":{"a":1,"b":1}}}',
        b'{"model":{"vocab":{"a":1,"a":2}}}',
        b'{"model":{"vocab":7}}',
        b'{"model":{"vocab":[[]]}}',
        b'{"model":{"merges":[3]}}',
        b'{"added_tokens":[{}]}',
        b'{"added_tokens":{"a":1}}',
        b'{"a":NaN}',
        b'{"a":"\\ud800"}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=lambda data: repr(data[:40]),
)
def test_what_is_no_tokenizer_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(CacheDamaged, match=r"tokenizer\.json"):
        tokenizer_content({"tokenizer.json": data})


def test_a_tokenizer_without_its_main_file_is_refused() -> None:
    with pytest.raises(CacheDamaged, match=r"tokenizer\.json is missing"):
        tokenizer_content({"vocab.json": b"{}"})


@pytest.mark.parametrize("piece", [b"[],", b"{},", b'"",', b"1,"])
def test_files_that_would_take_much_memory_are_refused_before_they_are_read(piece: bytes) -> None:
    data = b'{"a":[' + piece * MAX_VALUES + b"1]}"

    def read() -> str:
        with pytest.raises(CacheDamaged, match="more values than"):
            tokenizer_content({"tokenizer.json": data})
        return "refused"

    assert in_limits(read, memory_bytes=64 << 20, seconds=10).output == "refused"

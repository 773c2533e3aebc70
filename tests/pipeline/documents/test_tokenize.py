"""Tokens: loss masks, bytes of text, stop tokens, and cutting of long documents."""

import functools
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kdpipe.pipeline.documents import tokenize as module
from kdpipe.pipeline.documents.columns import Document
from kdpipe.pipeline.documents.render import Rendered, Renderer
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.documents.tokenize import DocumentCounts, DocumentTokens, byte_places, cut, marked, tokenize
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer, load_tokenizer
from kdpipe.schemas.capture_settings import DataSettings
from kdpipe.schemas.errors import ConfigError
from support.corpora import CHATML, END, ENDLESS, small_tokenizer

TEXT = st.text(st.sampled_from("the a\n\t é🙂👩‍💻中 \u3000xyzTHE.<|im_end|>"), min_size=1, max_size=60)


@functools.cache
def byte_level(template: str | None = None) -> LoadedTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return load_tokenizer(str(small_tokenizer(Path(folder), chat_template=template)))


@functools.cache
def sentence_piece() -> LoadedTokenizer:
    """As Llama 2: a mark before the first word, a normalizer, single bytes for what is rare, <s> in front."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        "▁the",
        "the",
        "a",
        "é",
        "x",
        "▁a",
        "t",
    ]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return _saved(tokenizer, bos_token="<s>", eos_token="</s>")


@functools.cache
def stripping() -> LoadedTokenizer:
    """A tokenizer that strips white space and appends an end token."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "the": 2, "a": 3}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Strip()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return _saved(tokenizer, eos_token="</s>", unk_token="<unk>")


def _saved(tokenizer: Tokenizer, **special: str) -> LoadedTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
        return load_tokenizer(folder)


EVERY = [byte_level, sentence_piece, stripping]


def plain(text: str, spans: tuple[tuple[int, int], ...] | None = None, stop: bool = True) -> Rendered:
    return Rendered(text=text, spans=spans, templated=False, stop_wanted=stop)


def one(rendered: Rendered, tokenizer: LoadedTokenizer) -> DocumentTokens:
    return tokenize([rendered], ["corpus.jsonl:7"], tokenizer)[0]


@given(TEXT)
def test_byte_offsets_of_characters_are_those_of_utf8(text: str) -> None:
    assert byte_places(text).tolist() == [len(text[:i].encode()) for i in range(len(text) + 1)]


@pytest.mark.parametrize("make", EVERY)
@given(text=TEXT.filter(lambda text: bool(text.strip())))
def test_bytes_of_tokens_add_up_to_the_text(make: Callable[[], LoadedTokenizer], text: str) -> None:
    tokens = one(plain(text), make())
    sizes = tokens.byte_counts()
    assert sizes.dtype == np.uint32
    assert len(sizes) == len(tokens.ids) == len(tokens.trained)
    assert int(sizes.sum()) == len(text.encode())


@given(TEXT)
def test_the_bytes_of_ascii_tokens_are_those_of_their_spelling(text: str) -> None:
    text = "".join(letter for letter in text if letter.isascii()) or "a"
    tokens = one(plain(text), byte_level())
    spelled = [len(byte_level().token_text(i)) for i in tokens.ids.tolist()]
    assert tokens.byte_counts().tolist() == [*spelled[:-1], 0]


def slow_mask(tokens: DocumentTokens, spans: list[tuple[int, int]], starts: list[int]) -> list[bool]:
    """Character by character: a token is trained on if its first letter, or else its first space, is in a span."""
    ends = [0, *tokens.ends.tolist()]
    mask = []
    for i, start in enumerate(starts):
        end = max(ends[i + 1], start + 1)
        letters = [place for place in range(start, end) if not tokens.text[place : place + 1].isspace()]
        begin = letters[0] if letters else end - 1
        mask.append(any(first <= begin < last for first, last in spans))
    return mask


@given(prompt=TEXT.filter(lambda text: bool(text.strip())), response=TEXT.filter(lambda text: bool(text.strip())))
def test_masks_of_pairs_equal_the_slow_reference(prompt: str, response: str) -> None:
    tokenizer = byte_level()
    text = f"{prompt}\n{response}"
    spans = ((len(prompt) + 1, len(text)),)
    tokens = one(plain(text, spans), tokenizer)
    starts = [start for start, _ in tokenizer.encode([text], True)[0].offsets]
    assert tokens.trained.tolist() == [*slow_mask(tokens, list(spans), starts), True]
    assert tokens.ids[-1] == tokenizer.stop


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
def test_masks_of_conversations_equal_the_slow_reference(turns: list[tuple[str, str]]) -> None:
    """Text and spans are built by hand here, without the template."""
    turns = [(user.replace("<", "."), reply.replace("<", ".") + "a") for user, reply in turns]
    text, spans, messages = "", [], []
    for user, reply in turns:
        text += f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
        spans.append((len(text), len(text) + len(reply) + len("<|im_end|>")))
        text += f"{reply}<|im_end|>\n"
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]
    tokenizer = byte_level(CHATML)
    renderer = Renderer({"messages"}, DataSettings(), tokenizer)
    tokens = one(renderer.render(Document(messages=tuple(messages), columns={}), "x"), tokenizer)
    assert tokens.text == text
    starts = [start for start, _ in tokenizer.encode([text], False)[0].offsets]
    assert tokens.trained.tolist() == slow_mask(tokens, spans, starts)
    assert tokens.trained.sum() >= 2 * len(turns)
    assert all(
        int(tokens.ids[i]) in tokenizer.turn_ends for i in np.flatnonzero(np.diff(tokens.trained.astype(int)) < 0)
    )


def test_the_stop_token_is_appended_once_and_only_when_wanted() -> None:
    stop = byte_level().stop
    assert one(plain("the"), byte_level()).ids.tolist()[-1] == stop
    assert one(plain(f"the{END}"), byte_level()).ids.tolist().count(stop) == 1
    assert stop not in one(plain("the", stop=False), byte_level()).ids.tolist()
    assert one(plain("the a"), stripping()).ids.tolist() == [2, 3, 1]


def test_a_stop_token_added_by_the_tokenizer_is_trained_on() -> None:
    assert one(plain("the a", ((4, 5),)), stripping()).trained.tolist() == [False, True, True]
    tokens = one(plain("the a", ((4, 5),)), sentence_piece())
    assert tokens.ids[0] == 1
    assert not tokens.trained[0]
    assert tokens.trained[-1]
    assert tokens.ids[-1] == 2


def test_a_multi_byte_character_is_covered_by_its_first_token() -> None:
    tokens = one(plain("🙂a", stop=False), byte_level())
    assert tokens.byte_counts().tolist() == [4, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("spans", "named"),
    [
        (((0, 5),), "every token: the document contains only responses"),
        (((5, 5),), "no token: no response was found"),
    ],
)
def test_a_mask_that_is_not_partial_is_refused_with_its_document(spans: tuple[tuple[int, int]], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"corpus\.jsonl:7: .*{named}") as caught:
        one(plain("the a", spans, stop=False), byte_level())
    assert "data.train_on=all" in str(caught.value.hint)


def chat(template: str, **settings: bool) -> DocumentTokens:
    tokenizer = byte_level(template)
    renderer = Renderer({"messages"}, DataSettings(**settings), tokenizer)
    messages = [
        {"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Ho"), ("user", "?"), ("assistant", "!"))
    ]
    return one(renderer.render(Document(messages=tuple(messages), columns={}), "corpus.jsonl:7"), tokenizer)


def test_a_template_that_marks_nothing_is_refused_with_its_document() -> None:
    marks = "{% if m.never %}{% generation %}{% endgeneration %}{% endif %}"
    unmarked = "{% for m in messages %}{{ m.content }}" + marks + "{% endfor %}"
    with pytest.raises(ConfigError, match=r"corpus\.jsonl:7: .* no token: no response was found"):
        chat(unmarked)


def test_a_turn_without_a_stop_token_is_refused_with_its_document() -> None:
    named = r"corpus\.jsonl:7: assistant turn 1 .*assistant\\nHo'"
    with pytest.raises(ConfigError, match=named) as caught:
        chat(ENDLESS)
    assert "append_stop=false" in str(caught.value.hint)


def test_append_stop_false_accepts_turns_without_a_stop_token() -> None:
    tokens = chat(ENDLESS, append_stop=False)
    assert [text for text, trained in marked(tokens, byte_level(ENDLESS)) if trained] == ["Ho", "!"]


def test_a_turn_is_trained_on_up_to_its_stop_token() -> None:
    assert [text for text, trained in marked(chat(CHATML), byte_level(CHATML)) if trained] == [
        "Ho<|im_end|>",
        "!<|im_end|>",
    ]


def test_a_token_that_covers_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOKEN_BYTES", 8)
    with pytest.raises(ConfigError, match=r"corpus\.jsonl:7: one token covers 12 bytes of text, at most 8"):
        one(plain("the" + " " * 9), stripping())


def segments(tokens: DocumentTokens, length: int, how: str = "split") -> tuple[list[Segment], DocumentCounts]:
    counts = DocumentCounts()
    known = {"split": "train", "document": 3, "columns": {}}
    return list(cut(tokens, length, how, counts, **known)), counts


def tokens_of(trained: str) -> DocumentTokens:
    """Tokens of one letter each; an x is trained on."""
    n = len(trained)
    return DocumentTokens(
        ids=np.arange(n, dtype=np.int32),
        trained=np.array([c == "x" for c in trained], bool),
        ends=np.arange(1, n + 1),
        text=trained,
    )


def masks(found: list[Segment]) -> list[list[int]]:
    return [segment.loss_mask.astype(int).tolist() for segment in found]


def test_a_row_is_trained_on_if_its_next_token_is() -> None:
    found, counts = segments(tokens_of("..xx."), 8)
    assert masks(found) == [[0, 1, 1, 0, 0]]
    assert (counts.documents, counts.segments, counts.tokens, counts.positions) == (1, 1, 5, 2)
    assert found[0].digest == hashlib.sha256(np.arange(5).astype("<u4").tobytes()).digest()[:16]
    assert (found[0].document, found[0].offset, found[0].text) == (3, 0, "..xx.")


def test_a_long_document_is_split_and_counted() -> None:
    found, counts = segments(tokens_of("x" * 7), 3)
    assert [(segment.offset, segment.tokens.tolist(), segment.text) for segment in found] == [
        (0, [0, 1, 2], "xxx"),
        (3, [3, 4, 5], "xxx"),
    ]
    assert masks(found) == [[1, 1, 0], [1, 1, 0]]
    assert counts == DocumentCounts(
        documents=1, segments=2, tokens=6, positions=4, split_documents=1, masked_segments=1, masked_tokens=1
    )


def test_a_long_document_is_truncated_and_counted() -> None:
    found, counts = segments(tokens_of("x" * 7), 3, "truncate")
    assert [segment.tokens.tolist() for segment in found] == [[0, 1, 2]]
    assert counts == DocumentCounts(
        documents=1, segments=1, tokens=3, positions=2, truncated_documents=1, truncated_tokens=4
    )


def test_fully_masked_segments_of_a_long_document_are_skipped_and_counted() -> None:
    found, counts = segments(tokens_of("....xxx"), 3)
    assert [segment.offset for segment in found] == [3]
    assert (counts.masked_segments, counts.masked_tokens) == (2, 4)
    found, counts = segments(tokens_of("....xxx"), 3, "truncate")
    assert (found, counts.masked_segments, counts.truncated_documents) == ([], 1, 1)


def test_a_document_of_one_token_has_no_positions() -> None:
    found, counts = segments(tokens_of("x"), 3)
    assert masks(found) == [[0]]
    assert counts.positions == 0


def test_a_document_without_tokens_is_counted() -> None:
    tokens = one(plain(" ", stop=False), byte_level())
    nothing = DocumentTokens(ids=tokens.ids[:0], trained=tokens.trained[:0], ends=tokens.ends[:0], text="")
    found, counts = segments(nothing, 3)
    assert (found, counts) == ([], DocumentCounts(documents=1, empty_documents=1))


@given(TEXT.filter(lambda text: bool(text.strip())), st.integers(2, 9))
def test_texts_of_segments_are_those_of_their_tokens(text: str, length: int) -> None:
    found, _ = segments(one(plain(text, stop=False), byte_level()), length)
    assert all(len((segment.text or "").encode()) == int(segment.token_bytes.sum()) for segment in found)
    # What is left out is a last token alone.
    assert text.startswith("".join(segment.text or "" for segment in found))


def test_no_documents_have_no_tokens() -> None:
    assert tokenize([], [], byte_level()) == []


def test_special_tokens_are_spelled_out_in_samples() -> None:
    assert marked(one(plain("the"), byte_level()), byte_level()) == [(f"the{END}", True)]
    runs = marked(one(plain("the a", ((4, 5),)), sentence_piece()), sentence_piece())
    assert runs == [("<s>the ", False), ("a</s>", True)]

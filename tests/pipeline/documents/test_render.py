"""Rendering: the trained spans under chat templates of many kinds, and templates that hide them."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.documents.columns import ColumnMapping, Document
from kdpipe.pipeline.documents.render import Rendered, Renderer
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer, load_tokenizer
from kdpipe.schemas.capture_settings import DataSettings
from kdpipe.schemas.errors import ConfigError
from support.corpora import CHATML, ENDLESS, GENERATION, UNSTABLE, small_tokenizer

# As Qwen 3: thoughts are written in the last turn alone, empty ones too.
THINKING = (
    "{% for m in messages %}{% set reply = m.content.split('</think>')[-1].lstrip() %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ reply }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Like Llama 2: no generation prompt, a space before the assistant's reply.
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)
# As Phi 3: the stop token of documents closes a conversation that is not to be continued.
CLOSED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}<|endoftext|>{% endif %}"
)
# As the distilled DeepSeek R1: the generation prompt begins a thought that a finished turn does not show.
PROMPTED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# A header, no generation prompt.
HEADERS = "{% for m in messages %}### {{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
# No two conversations begin alike, and no generation prompt.
FORGETFUL = "{{ messages[-1].content }}\n" + HEADERS
# Later turns are shortened once others follow.
SHORTENED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if loop.last or m.role == 'user' else '...' }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PICKY = "{% if messages[0].role != 'system' %}{{ raise_exception('begin with a system message') }}{% endif %}" + CHATML

TALK = (
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "A model.\nNo more. 🙂"},
)
FORMS: dict[str, ColumnMapping] = {
    "text": ColumnMapping(form="text", text="text"),
    "pair": ColumnMapping(form="pair", prompt="prompt", response="response"),
    "messages": ColumnMapping(form="messages", messages="messages"),
}


@functools.cache
def tokenizer(template: str | None = None, **special: str | None) -> LoadedTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return load_tokenizer(str(small_tokenizer(Path(folder), chat_template=template, **special)))


def render(form: str, document: Document, template: str | None = None, **settings: Any) -> Rendered:
    renderer = Renderer({FORMS[form].form}, DataSettings(**settings), tokenizer(template))
    return renderer.render(document, "corpus.jsonl:7")


def talk(*messages: dict[str, Any]) -> Document:
    return Document(messages=messages or TALK, columns={})


def trained(rendered: Rendered) -> list[str]:
    assert rendered.spans is not None
    return [rendered.text[start:end] for start, end in rendered.spans]


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        (CHATML, ["Hello.<|im_end|>\n", "A model.\nNo more. 🙂<|im_end|>\n"]),
        (GENERATION, ["Hello.<|im_end|>", "A model.\nNo more. 🙂<|im_end|>"]),
        (THINKING, ["Hello.<|im_end|>", "<think>\n\n</think>\n\nA model.\nNo more. 🙂<|im_end|>\n"]),
        (BRACKETS, [" Hello.<|im_end|>", " A model.\nNo more. 🙂<|im_end|>"]),
        (CLOSED, ["Hello.<|im_end|>", "A model.\nNo more. 🙂<|im_end|>\n<|endoftext|>"]),
        (PROMPTED, ["Hello.<|im_end|>", "A model.\nNo more. 🙂<|im_end|>"]),
        (HEADERS, [" Hello.<|im_end|>\n", " A model.\nNo more. 🙂<|im_end|>\n"]),
    ],
    ids=["chatml", "generation", "thinking", "brackets", "closed", "prompted", "headers"],
)
def test_the_assistants_replies_are_located(template: str, parts: list[str]) -> None:
    assert trained(render("messages", talk(), template)) == parts


def test_a_turn_is_located_if_the_template_drops_its_thinking() -> None:
    thought = talk(TALK[0], TALK[1] | {"content": "<think>Hm.</think>\n\nHello."}, *TALK[2:])
    assert trained(render("messages", thought, THINKING))[0] == "Hello.<|im_end|>"


def test_equal_replies_are_located_separately() -> None:
    same = talk(*TALK[:2], *TALK[:2])
    rendered = render("messages", same, THINKING)
    assert trained(rendered) == ["Hello.<|im_end|>", "<think>\n\n</think>\n\nHello.<|im_end|>\n"]
    assert rendered.spans is not None
    assert rendered.spans[0][1] < rendered.spans[1][0]


def test_a_reply_equal_to_its_header_is_located() -> None:
    named = talk(TALK[0], TALK[1] | {"content": "assistant"})
    assert trained(render("messages", named, HEADERS)) == [" assistant<|im_end|>\n"]
    assert trained(render("messages", named, PROMPTED)) == ["assistant<|im_end|>"]


def test_a_template_that_uses_the_date_gets_the_same_one_every_day() -> None:
    dated = (
        "{% if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}{% endif %}Today is {{ today }}, "
        "{{ strftime_now('%Y-%m-%d %H:%M') }}.\n" + CHATML
    )
    rendered = render("messages", talk(), dated)
    assert rendered.text.startswith("Today is 26 Jul 2024, 2024-07-26 12:00.\n<|im_start|>user")
    assert trained(rendered)[0] == "Hello.<|im_end|>\n"


def test_a_conversation_may_begin_with_a_system_message_or_the_assistant() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert trained(render("messages", talk(system, *TALK), CHATML))[0] == "Hello.<|im_end|>\n"
    assert trained(render("messages", talk(*TALK[1:]), CHATML))[0] == "Hello.<|im_end|>\n"


def test_train_on_all_trains_on_the_whole_conversation() -> None:
    rendered = render("messages", talk(), UNSTABLE, train_on="all")
    assert rendered.spans is None
    assert rendered.text.startswith("4 messages\n<|im_start|>user\nHi there<|im_end|>")


@pytest.mark.parametrize(
    ("template", "named"),
    [
        (UNSTABLE, "adding it changes how earlier messages are rendered"),
        (FORGETFUL, "adding it changes how earlier messages are rendered"),
        (SHORTENED, "later turns change how it is rendered"),
    ],
)
def test_a_template_whose_turns_cannot_be_located_is_refused(template: str, named: str) -> None:
    message = rf"corpus\.jsonl:7: .* message 2 .*{named}"
    with pytest.raises(ConfigError, match=message) as caught:
        render("messages", talk(), template)
    assert "{% generation %}" in str(caught.value.hint)


def test_a_turn_that_is_hidden_by_a_later_one_is_refused() -> None:
    """The first answer is rendered as dots, and its text is that of the second one."""
    twice = talk(*TALK[:2], *TALK[:2])
    with pytest.raises(ConfigError, match=r"message 4 .*previous turn"):
        render("messages", twice, SHORTENED)


def test_a_conversation_that_the_template_rejects_is_named() -> None:
    with pytest.raises(ConfigError, match=r"corpus\.jsonl:7: .*: begin with a system message"):
        render("messages", talk(), PICKY)


def test_a_template_that_rejects_a_shorter_conversation_is_refused() -> None:
    whole = "{% if messages | length < 4 %}{{ raise_exception('four at least') }}{% endif %}" + CHATML
    with pytest.raises(ConfigError, match="it rejects the messages up to there: four at least"):
        render("messages", talk(), whole)


@pytest.mark.parametrize("template", ["{{ messages[0].nothing.more }}", "{{ messages[0] + 1 }}", "{{ 1 / 0 }}"])
def test_a_broken_template_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="the chat template rejects this conversation"):
        render("messages", talk(), template)


def test_an_invalid_template_is_refused_with_its_line() -> None:
    with pytest.raises(ConfigError, match=r"not valid jinja2: .* in line 2") as caught:
        render("messages", talk(), "{# a comment #}\n{% if")
    assert "data.chat_template=FILE" in str(caught.value.hint)


def test_conversations_need_a_template() -> None:
    with pytest.raises(
        ConfigError, match=r"conversations need a chat template, but the tokenizer .* has none"
    ) as caught:
        render("messages", talk())
    assert "data.chat_template=FILE" in str(caught.value.hint)
    with pytest.raises(ConfigError, match=r"data\.chat_template=none"):
        render("messages", talk(), CHATML, chat_template="none")


PAIR = Document(messages=({"role": "user", "content": "Say a"}, {"role": "assistant", "content": "a!"}), columns={})


def test_prompt_and_response_use_the_chat_template_of_the_tokenizer() -> None:
    rendered = render("pair", PAIR, CHATML)
    assert rendered.text == "<|im_start|>user\nSay a<|im_end|>\n<|im_start|>assistant\na!<|im_end|>\n"
    assert trained(rendered) == ["a!<|im_end|>\n"]


@pytest.mark.parametrize("template", [None, CHATML])
def test_prompt_and_response_are_on_two_lines_without_a_template(template: str | None) -> None:
    rendered = render("pair", PAIR, template, chat_template="none")
    assert (rendered.text, trained(rendered)) == ("Say a\na!", ["a!"])
    assert (rendered.templated, rendered.stop_wanted) == (False, True)
    assert render("pair", PAIR, chat_template="none", train_on="all").spans is None


@pytest.mark.parametrize(("prompt", "response"), [("Q: b ", "c"), ("Q: b", " c"), ("Q: b\n", "\tc")])
def test_white_space_between_prompt_and_response_is_unchanged(prompt: str, response: str) -> None:
    pair = Document(messages=({"role": "user", "content": prompt}, {"role": "a", "content": response}), columns={})
    rendered = render("pair", pair)
    assert (rendered.text, trained(rendered)) == (prompt + response, [response])


def test_a_conversation_among_pairs_needs_a_template() -> None:
    with pytest.raises(ConfigError, match=r"corpus\.jsonl:7: a conversation needs a chat template"):
        render("pair", talk())


def test_text_is_rendered_unchanged() -> None:
    rendered = render("text", Document(text=" a\n", columns={}), CHATML)
    assert (rendered.text, rendered.spans, rendered.templated) == (" a\n", None, False)


def test_text_has_no_responses() -> None:
    with pytest.raises(ConfigError, match=r"data\.train_on=assistant"):
        render("text", Document(text="a", columns={}), train_on="assistant")


def test_responses_without_a_stop_token_are_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match="has no stop token") as caught:
        Renderer({"pair"}, DataSettings(), tokenizer(eos_token=None))
    assert "append_stop=false" in str(caught.value.hint)
    assert Renderer({"pair"}, DataSettings(append_stop=False), tokenizer(eos_token=None)).train_on == "assistant"


@pytest.mark.parametrize("template", [CHATML, GENERATION, THINKING, BRACKETS, CLOSED, HEADERS, ENDLESS, PICKY])
def test_no_rendered_document_is_larger_than_its_bound(template: str) -> None:
    renderer = Renderer({"messages"}, DataSettings(train_on="all"), tokenizer(template))
    for n in (1, 2, 3, 40):
        document = talk({"role": "system", "content": "é"}, *TALK * n)
        rendered = renderer.render(document, "x")
        assert len(rendered.text.encode()) <= renderer.max_bytes(document)


def test_no_plain_document_is_larger_than_its_bound() -> None:
    renderer = Renderer({"pair"}, DataSettings(), tokenizer())
    assert len(renderer.render(PAIR, "x").text.encode()) == renderer.max_bytes(PAIR)

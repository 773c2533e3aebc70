"""Column roles: detected and given names, and the reasons of unusable rows."""

from typing import Any

import pytest

from kdpipe.pipeline.documents.columns import BadRow, Document, detect
from kdpipe.schemas.capture_settings import Columns
from kdpipe.schemas.errors import ConfigError

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}


def roles(row: dict[str, Any], given: Columns | None = None) -> dict[str, str]:
    return detect([[*row]], given or Columns(), "corpus.jsonl")[0].describe()


def read(row: dict[str, Any], given: Columns | None = None) -> Document:
    return detect([[*row]], given or Columns(), "corpus.jsonl")[0].document(row)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("text", {"text": "text"}),
        ("id content", {"text": "content"}),
        ("text language category url", {"text": "text", "kept": "category, language"}),
        ("prompt response category", {"prompt": "prompt", "response": "response", "kept": "category"}),
        ("prompt completion", {"prompt": "prompt", "response": "completion"}),
        ("input output", {"prompt": "input", "response": "output"}),
        ("question answer", {"prompt": "question", "response": "answer"}),
        (
            "instruction input output text",
            {"prompt": "instruction", "context": "input", "response": "output"},
        ),
        (
            "instruction context response category",
            {"prompt": "instruction", "context": "context", "response": "response", "kept": "category"},
        ),
        ("prompt prompt_id messages", {"messages": "messages"}),
        ("id conversations", {"messages": "conversations"}),
    ],
)
def test_default_column_names_are_detected(names: str, found: dict[str, str]) -> None:
    assert roles(dict.fromkeys(names.split(), "x")) == found


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (Columns(text="b"), {"text": "b"}),
        (Columns(prompt="a", response="b"), {"prompt": "a", "response": "b"}),
        (Columns(prompt="a"), {"prompt": "a", "response": "output"}),
        (Columns(response="b"), {"prompt": "prompt", "response": "b"}),
        (Columns(messages="b"), {"messages": "b"}),
        (Columns(keep=("a", "b")), {"messages": "messages", "kept": "a, b"}),
        (Columns(text="a", keep=("a", "b")), {"text": "a", "kept": "b"}),
    ],
)
def test_given_columns_take_precedence(given: Columns, found: dict[str, str]) -> None:
    assert roles(dict.fromkeys(("a", "b", "prompt", "output", "messages", "text"), "x"), given) == found


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (Columns(text="body"), "'body' for the role text; columns: title, score"),
        (Columns(keep=("language",)), "'language' to keep; columns: title, score"),
        (Columns(prompt="title"), "no column for the response; columns: title, score"),
        (Columns(response="title"), "no column for the prompt; columns: title, score"),
        (Columns(), "no column text, prompt with response, or messages; columns: title, score"),
        (Columns(text="title", messages="score"), "names more than one of text, prompt with response, and messages"),
    ],
)
def test_a_missing_column_is_refused_with_the_existing_ones(given: Columns, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        roles({"title": 1, "score": 2}, given)
    assert caught.value.hint is not None


def test_columns_are_detected_in_each_file() -> None:
    files = [["id"], ["text", "category"], None, ["prompt", "response", "text"], ["body"]]
    text, pair = {"text": "text", "kept": "category"}, {"prompt": "prompt", "response": "response", "kept": "category"}
    described = [mapping.describe() for mapping in detect(files, Columns(), "x")]
    assert described == [text, text, text, pair, text]


def test_a_given_column_counts_in_the_files_that_have_it() -> None:
    files = [["body", "text"], ["messages"], None]
    described = [mapping.describe() for mapping in detect(files, Columns(text="body"), "x")]
    assert described == [{"text": "body"}, {"messages": "messages"}, {"text": "text"}]


def test_no_rows_have_no_columns() -> None:
    with pytest.raises(ConfigError, match="columns: none"):
        detect([], Columns(), "x")


def test_a_context_is_appended_to_its_prompt() -> None:
    row = {"instruction": "Sum up.", "input": "A long text.", "output": "Short."}
    assert [m["content"] for m in read(row).messages] == ["Sum up.\n\nA long text.", "Short."]
    assert [m["content"] for m in read(row | {"input": " "}).messages] == ["Sum up.", "Short."]
    assert [m["content"] for m in read(row | {"input": None}).messages] == ["Sum up.", "Short."]


def test_conversations_of_either_spelling_are_the_same() -> None:
    one = read({"messages": [USER, ASSISTANT]})
    other = read({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]})
    blocks = read({"messages": [USER | {"content": [{"type": "text", "text": "H"}, "i"]}, ASSISTANT | {"name": None}]})
    lists = read({"prompt": [USER], "completion": [ASSISTANT]})
    assert one.messages == other.messages == blocks.messages == lists.messages == (USER, ASSISTANT)
    assert one.digest() == other.digest()


def test_a_system_message_and_tools_are_unchanged() -> None:
    call = {"role": "assistant", "tool_calls": [{"name": "f"}]}
    messages = read({"messages": [{"role": "system", "content": ""}, USER, call]}).messages
    assert messages[2] == call
    assert read({"messages": [USER, call]}).n_bytes > len("Hi")


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"text": None}, "text is missing"),
        ({"text": 3}, "text is a number"),
        ({"text": " \n"}, "text is empty"),
        ({"prompt": "a", "response": ""}, "response is empty"),
        ({"prompt": "", "response": "b"}, "prompt is empty"),
        ({"prompt": "a", "response": ["b"]}, "response is a list"),
        ({"prompt": [], "response": [ASSISTANT]}, "prompt is empty"),
        ({"prompt": [USER], "response": []}, "response is empty"),
        ({"instruction": "a", "input": 3, "output": "b"}, "input is a number"),
        ({"messages": None}, "messages is missing"),
        ({"messages": "a"}, "messages is text"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [USER]}, "no assistant message"),
        ({"messages": [USER, "b"]}, "message 2 is text"),
        ({"messages": [{"content": "a"}]}, "message 1 has no role"),
        ({"messages": [USER, ASSISTANT | {"content": " "}]}, r"message 2 \(assistant\) is empty"),
        ({"messages": [USER, ASSISTANT | {"content": 1.5}]}, "the content of message 2 is a number"),
        ({"messages": [USER | {"content": [{"type": "image"}]}]}, "message 1 contains blocks"),
        ({"messages": [USER | {"content": b"a"}]}, "message 1 is of type bytes"),
    ],
)
def test_an_unusable_row_has_a_reason(row: dict[str, Any], named: str) -> None:
    with pytest.raises(BadRow, match=named):
        read(row)


def test_the_digest_of_a_document_ignores_kept_columns() -> None:
    given = Columns(text="text", keep=("id",))
    one, other = ({"text": "a", "id": i} for i in (1, 2))
    assert read(one, given).digest() == read(other, given).digest() != read(one | {"text": "b"}, given).digest()


def test_nan_in_a_kept_column_is_missing() -> None:
    assert read({"text": "a", "category": float("nan")}).columns == {"category": None}


def test_the_size_of_a_document_is_counted_in_bytes() -> None:
    assert read({"text": "é🙂"}).n_bytes == 6
    assert read({"prompt": "é", "response": "a"}).n_bytes == 3

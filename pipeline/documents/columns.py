"""Which column plays which role, and a row read accordingly: text, prompt and response, or a conversation.

In: the first rows and what a person said of the columns. Out: `ColumnMapping`, which turns rows into `Document`s.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from kdpipe.schemas.capture_settings import Columns
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.strict_json import canonical

Form = Literal["text", "pair", "messages"]
Message = dict[str, Any]
# The usual names, the most usual first.
TEXT = ("text", "content")
PROMPT = ("prompt", "instruction", "question", "query", "input")
RESPONSE = ("response", "completion", "output", "answer")
MESSAGES = ("messages", "conversations", "conversation")
# What Alpaca and Dolly put beside an instruction.
CONTEXT = ("input", "context")
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant"}


class BadRow(ValueError):
    """A row that is no document, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A row as it will be rendered: `text` alone, or messages. `columns` is what is kept beside it.

    Of a range of a text `has_end` says whether it is the last: no stop token belongs behind any other.
    """

    text: str | None = None
    messages: tuple[Message, ...] = ()
    columns: dict[str, Any]
    has_end: bool = True

    @property
    def n_bytes(self) -> int:
        """The size of what was written, without what a template adds."""
        return len(self.text.encode()) if self.text is not None else sum(len(_content(m)) for m in self.messages)

    def part(self, start: int, end: int) -> "Document":
        """A range of a text as a document of its own."""
        assert self.text is not None
        return replace(self, text=self.text[start:end], has_end=end == len(self.text))

    def digest(self) -> bytes:
        """The sha256 of what will be rendered: equal for equal documents, whatever is kept beside them."""
        return hashlib.sha256(canonical(self.text if self.text is not None else list(self.messages))).digest()


def _content(message: Message) -> bytes:
    """A message's text; what else it may have (tool calls, names) is counted as its JSON."""
    content = message.get("content")
    if isinstance(content, str) and message.keys() <= {"role", "content"}:
        return content.encode()
    return canonical(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnMapping:
    """Roles and the columns that play them; `context` goes between prompt and response."""

    form: Form
    text: str | None = None
    prompt: str | None = None
    context: str | None = None
    response: str | None = None
    messages: str | None = None
    keep: tuple[str, ...] = ()

    def describe(self) -> dict[str, str]:
        """Role to column, for people and for the data's fingerprint."""
        roles = ("text", "prompt", "context", "response", "messages")
        named = {role: getattr(self, role) for role in roles if getattr(self, role) is not None}
        return named | ({"kept": ", ".join(self.keep)} if self.keep else {})

    def names(self) -> set[str]:
        """The columns that are read."""
        roles = {self.text, self.prompt, self.context, self.response, self.messages}
        return {name for name in (*roles, *self.keep) if name is not None}

    def document(self, row: dict[str, Any]) -> Document:
        """Read a row, or raise `BadRow`."""
        columns = {name: None if (value := row.get(name)) != value else value for name in self.keep}  # NaN is nothing
        if self.text is not None:
            return Document(text=_string(row, self.text), columns=columns)
        if self.messages is not None:
            return Document(messages=_conversation(row, self.messages), columns=columns)
        assert self.prompt is not None and self.response is not None
        if isinstance(row.get(self.prompt), list) and isinstance(row.get(self.response), list):
            return Document(messages=_two_lists(row, self.prompt, self.response), columns=columns)
        prompt, response = _string(row, self.prompt), _string(row, self.response)
        context = row.get(self.context) if self.context is not None else None
        if context is not None and not isinstance(context, str):
            raise BadRow(f"its {self.context} is {_kind(context)} and no text")
        if context and context.strip():
            prompt = f"{prompt}\n\n{context}"
        return Document(
            messages=({"role": "user", "content": prompt}, {"role": "assistant", "content": response}), columns=columns
        )


def _string(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        raise BadRow(f"it has no {name}")
    if not isinstance(value, str):
        raise BadRow(f"its {name} is {_kind(value)} and no text")
    if not value.strip():
        raise BadRow(f"its {name} is empty")
    return value


def _kind(value: Any) -> str:
    names = {
        str: "a text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"of type {type(value).__name__}")


def _conversation(row: dict[str, Any], name: str) -> tuple[Message, ...]:
    turns = row.get(name)
    if turns is None:
        raise BadRow(f"it has no {name}")
    if not isinstance(turns, list):
        raise BadRow(f"its {name} are {_kind(turns)} and no list of messages")
    if not turns:
        raise BadRow(f"its {name} are empty")
    messages = tuple(_message(turn, i + 1) for i, turn in enumerate(turns))
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRow(f"its {name} have no turn of the assistant")
    return messages


def _two_lists(row: dict[str, Any], prompt: str, response: str) -> tuple[Message, ...]:
    """Prompt and response that are messages themselves: one conversation."""
    if not row[prompt] or not row[response]:
        raise BadRow(f"its {prompt if not row[prompt] else response} is empty")
    return _conversation({prompt: row[prompt] + row[response]}, prompt)


def _message(turn: Any, number: int) -> Message:
    """A message of either usual spelling, without what is missing."""
    if not isinstance(turn, dict):
        raise BadRow(f"its message {number} is {_kind(turn)} and no object")
    message = {key: value for key, value in turn.items() if value is not None}
    if "role" not in message and "from" in message:
        message["role"] = message.pop("from")
        message["content"] = message.pop("value", message.get("content", ""))
    if not isinstance(message.get("role"), str):
        raise BadRow(f"its message {number} has no role")
    message["role"] = ROLES.get(message["role"], message["role"])
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = content = _joined(content, number)
    if content is not None and not isinstance(content, str):
        raise BadRow(f"the content of its message {number} is {_kind(content)} and no text")
    if message["role"] in ("user", "assistant") and not (content or "").strip() and "tool_calls" not in message:
        raise BadRow(f"its message {number} ({message['role']}) is empty")
    return message


def _joined(blocks: list[Any], number: int) -> str:
    """The texts of a content that comes in blocks."""
    texts = [block.get("text") if isinstance(block, dict) else block for block in blocks]
    found = [text for text in texts if isinstance(text, str)]
    if len(found) < len(texts):
        raise BadRow(f"its message {number} holds something else than text")
    return "".join(found)


def detect(rows: Iterable[Iterable[str]], asked: Columns, what: str) -> ColumnMapping:
    """Find the roles in the first rows, as far as a person did not say them."""
    there = list(dict.fromkeys(name for row in rows for name in row))
    for role in ("text", "prompt", "response", "messages"):
        named = getattr(asked, role)
        if named is not None and named not in there:
            raise _missing(f"{named!r} for the role {role}", there, what)
    keep = tuple(name for name in asked.keep if name in there)
    if "keep" in asked.model_fields_set and len(keep) < len(asked.keep):
        lost = next(name for name in asked.keep if name not in there)
        raise _missing(f"{lost!r} to be kept", there, what, "data.columns.keep")
    found = _roles(there, asked, what)
    roles = {found.text, found.prompt, found.context, found.response, found.messages}
    return ColumnMapping(
        form=found.form,
        text=found.text,
        prompt=found.prompt,
        context=found.context,
        response=found.response,
        messages=found.messages,
        keep=tuple(name for name in keep if name not in roles),
    )


def _roles(there: list[str], asked: Columns, what: str) -> ColumnMapping:
    """What a person named decides the form; otherwise conversations come before pairs, pairs before text."""
    pair = asked.prompt is not None or asked.response is not None
    if (asked.text is not None) + pair + (asked.messages is not None) > 1:
        raise ConfigError(
            "data.columns names more than one of text, prompt with response, and messages", hint="name one of them"
        )
    if asked.text is not None:
        return ColumnMapping(form="text", text=asked.text)
    messages = asked.messages or _first(MESSAGES, there)
    if messages is not None and not pair:
        return ColumnMapping(form="messages", messages=messages)
    prompt = asked.prompt or _first(PROMPT, there)
    response = asked.response or _first(RESPONSE, there)
    if prompt is not None and response is not None:
        context = None if asked.prompt is not None else _first(CONTEXT, there, but=prompt)
        return ColumnMapping(form="pair", prompt=prompt, context=context, response=response)
    if pair:
        raise _missing(f"for the {'prompt' if prompt is None else 'response'}", there, what)
    text = _first(TEXT, there)
    if text is not None:
        return ColumnMapping(form="text", text=text)
    raise _missing("text, prompt with response, or messages", there, what)


def _first(names: tuple[str, ...], there: list[str], but: str = "") -> str | None:
    return next((name for name in names if name in there and name != but), None)


def _missing(wanted: str, there: list[str], what: str, setting: str = "data.columns.text") -> ConfigError:
    listed = ", ".join(there[:20]) if there else "none"
    return ConfigError(
        f"{what} has no column {wanted}: its columns are {listed}",
        hint=f"say which is which, for instance --set {setting}=NAME",
    )

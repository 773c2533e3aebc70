"""Column roles, and rows as documents: text, prompt and response, or a conversation.

In: the column names of the first rows, and `data.columns`. Out: `ColumnMapping`, which turns rows into `Document`s.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from kdpipe.pipeline.documents.row_files import CONTINUES
from kdpipe.schemas.capture_settings import Columns
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.strict_json import canonical

Form = Literal["text", "pair", "messages"]
Message = dict[str, Any]
# Default column names of each role, in order of preference.
TEXT = ("text", "content")
PROMPT = ("prompt", "instruction", "question", "query", "input")
RESPONSE = ("response", "completion", "output", "answer")
MESSAGES = ("messages", "conversations", "conversation")
ROLE_NAMES: tuple[Literal["text", "prompt", "response", "messages"], ...] = ("text", "prompt", "response", "messages")
# The additional input of an instruction in Alpaca and Dolly.
CONTEXT = ("input", "context")
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant"}


class BadRow(ValueError):
    """A row that cannot be used, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A row to be rendered: `text` or messages; `columns` are its kept columns.

    `has_end` is false for a range of a text that is not the last: it gets no stop token.
    """

    text: str | None = None
    messages: tuple[Message, ...] = ()
    columns: dict[str, Any]
    has_end: bool = True

    @property
    def n_bytes(self) -> int:
        """The size before rendering, without what a template adds."""
        return len(self.text.encode()) if self.text is not None else sum(len(_content(m)) for m in self.messages)

    def part(self, start: int, end: int) -> "Document":
        """A range of the text as a separate document."""
        assert self.text is not None
        return replace(self, text=self.text[start:end], has_end=self.has_end and end == len(self.text))

    def digest(self) -> bytes:
        """The sha256 of text or messages, without the kept columns."""
        return hashlib.sha256(canonical(self.text if self.text is not None else list(self.messages))).digest()


def _content(message: Message) -> bytes:
    """A message's text, or its JSON if it has other keys (tool calls, names)."""
    content = message.get("content")
    if isinstance(content, str) and message.keys() <= {"role", "content"}:
        return content.encode()
    return canonical(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnMapping:
    """The column of each role; `context` goes between prompt and response."""

    form: Form
    text: str | None = None
    prompt: str | None = None
    context: str | None = None
    response: str | None = None
    messages: str | None = None
    keep: tuple[str, ...] = ()

    def describe(self) -> dict[str, str]:
        """Role to column, for messages and for the data's fingerprint."""
        roles = ("text", "prompt", "context", "response", "messages")
        named = {role: getattr(self, role) for role in roles if getattr(self, role) is not None}
        return named | ({"kept": ", ".join(self.keep)} if self.keep else {})

    def names(self) -> set[str]:
        """All columns that are read."""
        roles = {self.text, self.prompt, self.context, self.response, self.messages}
        return {name for name in (*roles, *self.keep) if name is not None}

    def document(self, row: dict[str, Any]) -> Document:
        """Parse a row, or raise `BadRow`."""
        columns = {name: None if (value := row.get(name)) != value else value for name in self.keep}  # NaN is missing
        if self.text is not None:
            return Document(text=_string(row, self.text), columns=columns, has_end=CONTINUES not in row)
        if self.messages is not None:
            return Document(messages=_conversation(row, self.messages), columns=columns)
        assert self.prompt is not None and self.response is not None
        if isinstance(row.get(self.prompt), list) and isinstance(row.get(self.response), list):
            return Document(messages=_two_lists(row, self.prompt, self.response), columns=columns)
        prompt, response = _string(row, self.prompt), _string(row, self.response)
        context = row.get(self.context) if self.context is not None else None
        if context is not None and not isinstance(context, str):
            raise BadRow(f"{self.context} is {_kind(context)}, expected text")
        if context and context.strip():
            prompt = f"{prompt}\n\n{context}"
        return Document(
            messages=({"role": "user", "content": prompt}, {"role": "assistant", "content": response}), columns=columns
        )


def _string(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        raise BadRow(f"{name} is missing")
    if not isinstance(value, str):
        raise BadRow(f"{name} is {_kind(value)}, expected text")
    if not value.strip():
        raise BadRow(f"{name} is empty")
    return value


def _kind(value: Any) -> str:
    names = {
        str: "text",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"of type {type(value).__name__}")


def _conversation(row: dict[str, Any], name: str) -> tuple[Message, ...]:
    turns = row.get(name)
    if turns is None:
        raise BadRow(f"{name} is missing")
    if not isinstance(turns, list):
        raise BadRow(f"{name} is {_kind(turns)}, expected a list of messages")
    if not turns:
        raise BadRow(f"{name} is empty")
    messages = tuple(_message(turn, i + 1) for i, turn in enumerate(turns))
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRow(f"{name} has no assistant message")
    return messages


def _two_lists(row: dict[str, Any], prompt: str, response: str) -> tuple[Message, ...]:
    """Prompt and response as lists of messages: one conversation."""
    if not row[prompt] or not row[response]:
        raise BadRow(f"{prompt if not row[prompt] else response} is empty")
    return _conversation({prompt: row[prompt] + row[response]}, prompt)


def _message(turn: Any, number: int) -> Message:
    """A message with role and content, from these keys or from `from` and `value`."""
    if not isinstance(turn, dict):
        raise BadRow(f"message {number} is {_kind(turn)}, expected an object")
    message = {key: value for key, value in turn.items() if value is not None}
    if "role" not in message and "from" in message:
        message["role"] = message.pop("from")
        message["content"] = message.pop("value", message.get("content", ""))
    if not isinstance(message.get("role"), str):
        raise BadRow(f"message {number} has no role")
    message["role"] = ROLES.get(message["role"], message["role"])
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = content = _joined(content, number)
    if content is not None and not isinstance(content, str):
        raise BadRow(f"the content of message {number} is {_kind(content)}, expected text")
    if message["role"] in ("user", "assistant") and not (content or "").strip() and "tool_calls" not in message:
        raise BadRow(f"message {number} ({message['role']}) is empty")
    return message


def _joined(blocks: list[Any], number: int) -> str:
    """Concatenate the text blocks of a content."""
    values = [block.get("text") if isinstance(block, dict) else block for block in blocks]
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values):
        raise BadRow(f"message {number} contains blocks that are not text")
    return "".join(texts)


def detect(files: Sequence[Collection[str] | None], given: Columns, what: str) -> list[ColumnMapping]:
    """Map roles to columns for each file, from the columns of its first rows (None: a file of plain text).

    `given` roles take precedence in files that have such a column. A file without usable columns has the mapping of
    the first file that has some, so that its rows are bad rows.
    """
    names = list(dict.fromkeys(name for file in files for name in file or ()))
    for role in ROLE_NAMES:
        column = getattr(given, role)
        if column is not None and column not in names:
            raise _missing(f"{column!r} for the role {role}", names, what)
    keep = tuple(name for name in given.keep if name in names)
    if "keep" in given.model_fields_set and len(keep) < len(given.keep):
        lost = next(name for name in given.keep if name not in names)
        raise _missing(f"{lost!r} to keep", names, what, "data.columns.keep")
    found = [
        ColumnMapping(form="text", text=TEXT[0]) if file is None else _of_file(file, given, what) for file in files
    ]
    default = next((mapping for mapping in found if mapping is not None), None) or _roles(names, given, what)
    mappings = [mapping or default for mapping in found]
    return [replace(one, keep=tuple(name for name in keep if name not in one.names())) for one in mappings]


def _of_file(names: Collection[str], given: Columns, what: str) -> ColumnMapping | None:
    here = {role: column for role in ROLE_NAMES if (column := getattr(given, role)) in names}
    try:
        return _roles(list(names), Columns(**here), what)
    except ConfigError:
        if len(here) > 1:  # contradictory roles, not missing columns
            raise
        return None


def _roles(names: list[str], given: Columns, what: str) -> ColumnMapping:
    """Given roles decide the form; otherwise conversations come before pairs, and pairs before text."""
    pair = given.prompt is not None or given.response is not None
    if (given.text is not None) + pair + (given.messages is not None) > 1:
        raise ConfigError(
            "data.columns names more than one of text, prompt with response, and messages", hint="name only one"
        )
    if given.text is not None:
        return ColumnMapping(form="text", text=given.text)
    messages = given.messages or _first(MESSAGES, names)
    if messages is not None and not pair:
        return ColumnMapping(form="messages", messages=messages)
    prompt = given.prompt or _first(PROMPT, names)
    response = given.response or _first(RESPONSE, names)
    if prompt is not None and response is not None:
        context = None if given.prompt is not None else _first(CONTEXT, names, but=prompt)
        return ColumnMapping(form="pair", prompt=prompt, context=context, response=response)
    if pair:
        raise _missing(f"for the {'prompt' if prompt is None else 'response'}", names, what)
    text = _first(TEXT, names)
    if text is not None:
        return ColumnMapping(form="text", text=text)
    raise _missing("text, prompt with response, or messages", names, what)


def _first(candidates: tuple[str, ...], names: list[str], but: str = "") -> str | None:
    return next((name for name in candidates if name in names and name != but), None)


def _missing(wanted: str, names: list[str], what: str, setting: str = "data.columns.text") -> ConfigError:
    return ConfigError(
        f"{what} has no column {wanted}; columns: {', '.join(names[:20]) or 'none'}",
        hint=f"set the column of each role, e.g. --set {setting}=NAME",
    )

"""Chat templates: messages to text, rendered in the jinja2 sandbox of transformers.

In: a template and messages. Out: the text, and the spans that the template marks as generated. The only module that
imports jinja2, for its errors.
"""

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

from kdpipe.pipeline.documents.columns import Message
from kdpipe.schemas.errors import ConfigError, Untrainable

MARKS_TURNS = re.compile(r"\{%-?\s*generation\s*-?%\}")
Marked = list[tuple[int, int]]
# Upper bounds for templates that reject the messages of `_measure`, and slack for roles with longer names.
UNKNOWN_DOCUMENT_BYTES, UNKNOWN_MESSAGE_BYTES, SLACK_BYTES = 4096, 256, 16

# Templates that use today's date get the fallback date of Llama 3, so that a document is rendered equally every day.
CALENDAR = (
    "{%- macro strftime_now(format) -%}{{ format | replace('%d', '26') | replace('%b', 'Jul') | replace('%B', 'July')"
    " | replace('%m', '07') | replace('%Y', '2024') | replace('%y', '24') | replace('%A', 'Friday')"
    " | replace('%a', 'Fri') | replace('%H', '12') | replace('%M', '00') | replace('%S', '00') }}{%- endmacro -%}"
)


class RenderError(Exception):
    """A template rejects some messages."""


class ChatTemplate:
    """A template with the tokenizer's values.

    `turn_ends` are the texts of tokens that may end a turn; `opens_turns`: the template has a generation prompt.
    `document_bytes` and `message_bytes` are the bytes that it adds to a document and to each message.
    """

    def __init__(self, source: str, values: dict[str, str], turn_ends: Sequence[str] = ()) -> None:
        self.source, self.turn_ends = source, turn_ends
        self._values = values
        self._dated = CALENDAR + source if "strftime_now" in source else source
        self.marks_turns = MARKS_TURNS.search(source) is not None
        self.opens_turns = True
        self.document_bytes, self.message_bytes = UNKNOWN_DOCUMENT_BYTES, UNKNOWN_MESSAGE_BYTES
        self._measure()

    def text(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        return self._render(messages, add_generation_prompt, False)[0]

    def render(self, messages: Sequence[Message], place: str) -> tuple[str, Marked | None]:
        """The text of a whole conversation, and the spans that the template marks, if it has {% generation %} marks."""
        try:
            text, marked = self._render(messages, False, self.marks_turns)
        except RenderError as error:
            raise Untrainable(
                f"{place}: the chat template rejects this conversation: {error}",
                hint="remove the document, or set another data.chat_template",
            ) from None
        return text, marked if self.marks_turns else None

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, mark: bool) -> tuple[str, Marked]:
        try:
            arguments: dict[str, Any] = {
                **self._values,
                "conversations": [[dict(message) for message in messages]],
                "chat_template": self._dated,
                "add_generation_prompt": add_generation_prompt,
                "return_assistant_tokens_mask": mark,
            }
            result: Any = render_jinja_template(**arguments)  # annotated as str, returns texts and spans
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"the chat template is not valid jinja2: {error.message} in line {error.lineno}",
                hint="fix it, or use another with --set data.chat_template=FILE",
            ) from None
        # Templates access messages freely and may raise any of these.
        except (TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
            raise RenderError(f"{str(error) or type(error).__name__}"[:300]) from None
        texts, marked = result
        return str(texts[0]), [(int(start), int(end)) for start, end in marked[0]] if mark else []

    def _measure(self) -> None:
        turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user", "assistant")]
        try:
            one, two, four = (len(self.text(turns[:n], True).encode()) for n in (1, 2, 4))
            self.opens_turns = self.text(turns[:1], True) != self.text(turns[:1])
        except RenderError:
            return
        self.document_bytes = one + SLACK_BYTES
        self.message_bytes = max(two - one, four - two, 0) + SLACK_BYTES

"""Rendering: a document as one text, and the spans of it to train on.

In: a document, the chat template and `data.train_on`. Out: `Rendered`.
"""

from collections.abc import Collection
from dataclasses import dataclass

from kdpipe.pipeline.documents.assistant_turns import Span, assistant_spans
from kdpipe.pipeline.documents.chat_template import ChatTemplate
from kdpipe.pipeline.documents.columns import Document, Form
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer
from kdpipe.schemas.capture_settings import DataSettings
from kdpipe.schemas.choices import TrainOn
from kdpipe.schemas.errors import ConfigError, Untrainable


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A text, and the character spans to train on (None: all of it).

    A `templated` text contains its special tokens; the tokenizer adds them to others. With `stop_wanted`, a stop token
    is appended to the latter, and each turn of the former must end with one.
    """

    text: str
    spans: tuple[Span, ...] | None
    templated: bool
    stop_wanted: bool


class Renderer:
    """Renders documents of some forms; `train_on` is that of conversations and pairs, if there are any."""

    def __init__(self, forms: Collection[Form], settings: DataSettings, tokenizer: LoadedTokenizer) -> None:
        form: Form = next(form for form in ("messages", "pair", "text") if form in forms)
        self.train_on: TrainOn = resolve_train_on(form, settings)
        if form == "text" and settings.chat_template not in (None, "none"):
            raise ConfigError(
                f"data.chat_template is {settings.chat_template}, but the data are plain text",
                hint="omit it, or set the columns of a conversation with data.columns",
            )
        self._chat = None if form == "text" else _template(form, settings, tokenizer)
        self.stop_wanted = settings.append_stop
        responses = self.train_on == "assistant"
        if responses and self._chat is None and settings.append_stop and tokenizer.stop is None:
            raise ConfigError(
                f"the tokenizer {tokenizer.name} has no stop token (eos_token) to end a response with",
                hint="set its eos_token, or --set data.append_stop=false to train without stop tokens",
            )

    @property
    def template(self) -> str | None:
        return None if self._chat is None else self._chat.source

    def max_bytes(self, document: Document) -> int:
        """An upper bound of the bytes of the rendered document."""
        n_bytes = document.n_bytes + (1 if document.messages else 0)
        if self._chat is not None and document.messages:
            n_bytes += self._chat.document_bytes + self._chat.message_bytes * len(document.messages)
        return n_bytes

    def render(self, document: Document, place: str) -> Rendered:
        """Render a document; `place` names it in errors."""
        if document.text is not None:
            stop = self.stop_wanted and document.has_end
            return Rendered(text=document.text, spans=None, templated=False, stop_wanted=stop)
        if self._chat is None:
            return self._plain(document, place)
        text, marked = self._chat.render(document.messages, place)
        spans = None
        if self.train_on == "assistant":
            spans = tuple(marked) if marked is not None else assistant_spans(self._chat, document.messages, text, place)
        return Rendered(text=text, spans=spans, templated=True, stop_wanted=self.stop_wanted)

    def _plain(self, document: Document, place: str) -> Rendered:
        """Prompt and response, separated by a line break unless there is white space already."""
        if len(document.messages) != 2:
            raise Untrainable(f"{place}: a conversation needs a chat template", hint="set one with data.chat_template")
        prompt, response = (str(message["content"]) for message in document.messages)
        if not (prompt[-1].isspace() or response[0].isspace()):
            prompt += "\n"
        spans = ((len(prompt), len(prompt) + len(response)),) if self.train_on == "assistant" else None
        return Rendered(text=prompt + response, spans=spans, templated=False, stop_wanted=self.stop_wanted)


def resolve_train_on(form: Form, settings: DataSettings) -> TrainOn:
    """Resolve `auto` to all of a text, or to the responses of anything else."""
    if settings.train_on == "auto":
        return "all" if form == "text" else "assistant"
    if settings.train_on == "assistant" and form == "text":
        raise ConfigError(
            "data.train_on=assistant needs responses, but the data are plain text",
            hint="use data with prompt and response or with messages, or set data.train_on=all",
        )
    return settings.train_on


def _template(form: Form, settings: DataSettings, tokenizer: LoadedTokenizer) -> ChatTemplate | None:
    assert settings.chat_template in (tokenizer.template_name, "none"), "the tokenizer was loaded for another template"
    if settings.chat_template == "none" and form == "messages":
        raise ConfigError(
            "conversations need a chat template, but data.chat_template=none", hint="omit data.chat_template"
        )
    if tokenizer.template is not None and settings.chat_template != "none":
        ends = [tokenizer.token_text(token) for token in sorted(tokenizer.turn_ends)]
        return ChatTemplate(tokenizer.template, tokenizer.template_values, ends)
    if form == "messages":
        raise ConfigError(
            f"conversations need a chat template, but the tokenizer {tokenizer.name} has none",
            hint="set a template with --set data.chat_template=FILE, or --tokenizer to that of a chat model",
        )
    return None

"""A document as the teacher reads it: one text, and which parts of it are to be learnt.

In: a document, the chat template, what is to be learnt. Out: `Rendered`.
"""

from dataclasses import dataclass

from kdpipe.pipeline.documents.assistant_turns import Span, assistant_spans
from kdpipe.pipeline.documents.chat import ChatTemplate
from kdpipe.pipeline.documents.columns import ColumnMapping, Document, Form
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer
from kdpipe.schemas.capture_settings import DataSettings
from kdpipe.schemas.choices import TrainOn
from kdpipe.schemas.errors import ConfigError, Untrainable


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A text, and the spans of its characters that are to be learnt (None: all of it).

    `templated` texts have every special token written out; others are given the tokenizer's own. With `stop_wanted`
    a stop token is appended to the latter, and each turn of the former must end with one.
    """

    text: str
    spans: tuple[Span, ...] | None
    templated: bool
    stop_wanted: bool


class Renderer:
    """Renders documents of one form, always the same way."""

    def __init__(self, mapping: ColumnMapping, settings: DataSettings, tokenizer: LoadedTokenizer) -> None:
        self._tokenizer = tokenizer
        self.train_on: TrainOn = resolve_train_on(mapping.form, settings)
        if mapping.form == "text" and settings.chat_template not in (None, "none"):
            raise ConfigError(
                f"data.chat_template is {settings.chat_template}, and text is read as it is",
                hint="leave it out, or name the columns of a conversation with data.columns",
            )
        self._chat = None if mapping.form == "text" else _template(mapping.form, settings, tokenizer)
        self.stop_wanted = settings.append_stop
        responses = self.train_on == "assistant"
        if responses and self._chat is None and settings.append_stop and tokenizer.stop is None:
            raise ConfigError(
                f"the tokenizer {tokenizer.name} has no stop token (eos_token) to end a response with",
                hint="give it one, or --set data.append_stop=false if students need not learn to stop",
            )

    @property
    def template(self) -> str | None:
        """The chat template that documents are rendered with, if any."""
        return None if self._chat is None else self._chat.source

    def most_bytes(self, document: Document) -> int:
        """At least as many bytes as the rendered document has."""
        n_bytes = document.n_bytes + (1 if document.messages else 0)
        if self._chat is not None:
            n_bytes += self._chat.document_bytes + self._chat.message_bytes * len(document.messages)
        return n_bytes

    def render(self, document: Document, place: str) -> Rendered:
        """Render a document; `place` names it in a refusal."""
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
        """Prompt and response behind each other, on lines of their own unless white space is there already."""
        if len(document.messages) != 2:
            raise Untrainable(
                f"{place} is a conversation, and there is no chat template", hint="name one with data.chat_template"
            )
        prompt, response = (str(message["content"]) for message in document.messages)
        if not (prompt[-1].isspace() or response[0].isspace()):
            prompt += "\n"
        spans = ((len(prompt), len(prompt) + len(response)),) if self.train_on == "assistant" else None
        return Rendered(text=prompt + response, spans=spans, templated=False, stop_wanted=self.stop_wanted)


def resolve_train_on(form: Form, settings: DataSettings) -> TrainOn:
    """What is to be learnt: all of a text, responses of anything else, unless a person said otherwise."""
    if settings.train_on == "auto":
        return "all" if form == "text" else "assistant"
    if settings.train_on == "assistant" and form == "text":
        raise ConfigError(
            "only responses are to be learnt (data.train_on=assistant), and the data are plain text",
            hint="use data with prompt and response or with messages, or set data.train_on=all",
        )
    return settings.train_on


def _template(form: Form, settings: DataSettings, tokenizer: LoadedTokenizer) -> ChatTemplate | None:
    assert settings.chat_template in (tokenizer.template_name, "none"), "the tokenizer was loaded for another template"
    if settings.chat_template == "none" and form == "messages":
        raise ConfigError("conversations need a chat template, and data.chat_template is none", hint="leave it away")
    if tokenizer.template is not None and settings.chat_template != "none":
        ends = [tokenizer.token_text(token) for token in sorted(tokenizer.turn_ends)]
        return ChatTemplate(tokenizer.template, tokenizer.template_values, ends)
    if form == "messages":
        raise ConfigError(
            f"conversations need a chat template, and the tokenizer {tokenizer.name} has none",
            hint="name a template file with --set data.chat_template=FILE, or a tokenizer that chats with --tokenizer",
        )
    return None

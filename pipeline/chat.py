"""`kdpipe chat`: a conversation with a model, in its chat template.

In: a loaded model and what the user writes. Out: its replies, token by token. Each reply is generated from the whole
conversation so far.
"""

from collections.abc import Callable
from typing import final

from kdpipe.pipeline.documents.chat_template import ChatTemplate, RenderError
from kdpipe.pipeline.documents.columns import Message
from kdpipe.pipeline.generation.text_generator import TextGenerator
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.sample_report import SamplingSettings


@final
class Conversation:
    """The messages so far; `system` is the first of them, if given."""

    def __init__(self, generator: TextGenerator, settings: SamplingSettings, name: str, system: str | None) -> None:
        self._generator, self._settings, self._system = generator, settings, system
        self._template = _template(generator, name)
        self._messages: list[Message] = []
        self.reset()

    def reset(self) -> None:
        """Forget all messages but the system's."""
        self._messages = [] if self._system is None else [{"role": "system", "content": self._system}]

    def reply(self, text: str, show: Callable[[str], None]) -> str:
        """The model's reply to a message; `show` receives it in pieces. A message that is refused is forgotten."""
        messages: list[Message] = [*self._messages, {"role": "user", "content": text}]
        try:
            prompt = self._template.text(messages, add_generation_prompt=True)
        except RenderError as error:
            raise ConfigError(f"the chat template rejects the conversation: {error}") from None
        ids = self._generator.encode(prompt, add_special_tokens=False)
        (generated,) = self._generator.generate([ids], self._settings, show=show)
        self._messages = [*messages, {"role": "assistant", "content": generated.text}]
        return generated.text


def _template(generator: TextGenerator, name: str) -> ChatTemplate:
    own = generator.tokenizer.chat_template
    source = own.get("default") if isinstance(own, dict) else own
    if not isinstance(source, str):
        raise ConfigError(
            f"{name} has no chat template: it was not trained on conversations",
            hint=f"continue texts with it: kdpipe sample {name} --prompt TEXT",
        )
    special = generator.tokenizer.special_tokens_map
    return ChatTemplate(source, {key: value for key, value in special.items() if isinstance(value, str)})

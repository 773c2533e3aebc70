"""Conversations: what the model sees, and what a refused message leaves."""

from pathlib import Path

import pytest

from kdpipe.pipeline.chat import Conversation
from kdpipe.pipeline.generation.text_generator import TextGenerator
from kdpipe.pipeline.sample import ModelRequest, loaded_model
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.progress import SilentProgress
from kdpipe.schemas.sample_report import SamplingSettings
from support.corpora import CHATML, PICKY, small_tokenizer
from support.models import tiny_llama

SETTINGS = SamplingSettings(temperature=0.0, max_new_tokens=8)


def loaded(folder: Path, template: str | None = CHATML) -> TextGenerator:
    small_tokenizer(tiny_llama(folder), chat_template=template)
    with loaded_model(ModelRequest(name=str(folder), devices="cpu"), SilentProgress()) as (generator, _):
        return generator


def ignore(text: str) -> None:
    pass


def test_a_reply_continues_the_whole_conversation_in_the_template(tmp_path: Path) -> None:
    generator = loaded(tmp_path)
    conversation, pieces = Conversation(generator, SETTINGS, "m", "Be short."), list[str]()
    first = conversation.reply("Hello", pieces.append)
    second = conversation.reply("And then?", ignore)
    assert "".join(pieces) == first
    text = "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    follow = f"{text}{first}<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n"
    for prompt, reply in ((text, first), (follow, second)):
        ids = generator.encode(prompt, add_special_tokens=False)
        assert generator.generate([ids], SETTINGS)[0].text == reply


def test_a_reset_conversation_begins_like_a_new_one(tmp_path: Path) -> None:
    conversation = Conversation(loaded(tmp_path), SETTINGS, "m", None)
    first = conversation.reply("Hello", ignore)
    conversation.reply("And then?", ignore)
    conversation.reset()
    assert conversation.reply("Hello", ignore) == first


def test_a_refused_message_is_forgotten(tmp_path: Path) -> None:
    generator = loaded(tmp_path)
    generator.max_positions = 60
    conversation = Conversation(generator, SETTINGS, "m", None)
    with pytest.raises(ConfigError, match="60 positions"):
        conversation.reply("long " * 60, ignore)
    assert conversation.reply("Hi", ignore) == Conversation(generator, SETTINGS, "m", None).reply("Hi", ignore)


def test_a_message_that_the_template_rejects_is_refused(tmp_path: Path) -> None:
    conversation = Conversation(loaded(tmp_path, PICKY), SETTINGS, "m", "Be short.")
    with pytest.raises(ConfigError, match="no system message"):
        conversation.reply("Hello", ignore)


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="chat template") as caught:
        Conversation(loaded(tmp_path, None), SETTINGS, "models/a", None)
    assert "kdpipe sample models/a" in str(caught.value.hint)

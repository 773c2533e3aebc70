"""Small real tokenizers and corpora: English that comes with Python, byte-level BPE trained on it in 0.2 seconds.

In: a folder. Out: a tokenizer saved there, with or without a chat template, or files of documents.
"""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END, TURN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END, TURN, TURN_END)

# About 250 documents of 200 to 1,500 characters.
TEXTS: list[str] = [
    "\n\n".join(paragraphs[first : first + 4])
    for paragraphs in (topics[name].split("\n\n") for name in sorted(topics))
    for first in range(0, min(len(paragraphs), 16), 4)
    if 200 <= len("\n\n".join(paragraphs[first : first + 4])) <= 1500
]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The number of messages comes first: no conversation begins like a shorter one.
UNSTABLE = "{{ messages | length }} messages\n" + CHATML
GENERATION = (
    "{{ messages | length }} messages\n{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Its turns have no stop token.
ENDLESS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# It refuses a conversation with a system message.
PICKY = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}" + CHATML


@cache
def _trained(vocabulary: int) -> str:
    """A byte-level BPE as JSON, trained once a process."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return str(tokenizer.to_str())


def small_tokenizer(
    folder: Path, vocabulary: int = 512, chat_template: str | None = None, **special: str | None
) -> Path:
    """Save a fast tokenizer into a folder; its stop token is <|endoftext|>, <|im_end|> where it chats."""
    roles: dict[str, Any] = {"eos_token": END if chat_template is None else TURN_END, "pad_token": END, **special}
    roles = {role: token for role, token in roles.items() if token is not None}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_trained(vocabulary)), **roles)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """One object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return path


def text_rows(n: int = 40) -> list[dict[str, Any]]:
    """Rows of plain text with a category and a language."""
    return [
        {"text": TEXTS[i % len(TEXTS)], "category": ("docs", "code")[i % 2], "language": "en", "number": i}
        for i in range(n)
    ]


def pair_rows(n: int = 20) -> list[dict[str, Any]]:
    """Rows of prompt and response."""
    return [{"prompt": f"What about {i}?", "response": TEXTS[i % len(TEXTS)][:120], "category": "qa"} for i in range(n)]


def with_system(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same conversation after a system message."""
    return {"messages": [{"role": "system", "content": "Be short."}, *row["messages"]]}


def chat_rows(n: int = 20) -> list[dict[str, Any]]:
    """Conversations of two turns each."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Question {i}: {TEXTS[i % len(TEXTS)][:60]}"},
                {"role": "assistant", "content": TEXTS[i % len(TEXTS)][60:120]},
                {"role": "user", "content": "And then?"},
                {"role": "assistant", "content": f"Then {i}. 🙂"},
            ]
        }
        for i in range(n)
    ]

"""Inputs of the stage one benchmarks: text that ships with Python, a large random teacher, a small trained one.

In: a folder and sizes. Out: teachers as folders, made once and reused; documents as JSON lines.
"""

import hashlib
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from kdpipe.pipeline.models.model_info import quiet
from kdpipe.pipeline.small_teacher import (
    SOURCES,
    TeacherSizes,
    documents,
    make_teacher,
    source_code,
    train_tokenizer,
    write_corpus,
)

# Share of help topics and source code that is unseen by the trained teacher.
UNSEEN_SHARE = 0.3
SHARPENED_DOCUMENTS = 16
QUICK_TEXTS = 80
# Entropy of a trained model on unseen text; about 3.4 for a very small one.
ENTROPY_NATS = 2.75


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSizes:
    """A Llama with random init: 110 M parameters in layers and head."""

    vocabulary: int = 32_000
    width: int = 768
    layers: int = 12
    heads: int = 12


def texts() -> list[dict[str, str]]:
    """Help topics and source code in a fixed shuffled order."""
    rows = [*documents(), *source_code()]
    return sorted(rows, key=lambda row: hashlib.sha256(row["text"].encode()).digest())


def trained_teacher(
    work: Path, sizes: TeacherSizes, entropy_nats: float | None, progress: Callable[[str], None], *, quick: bool = False
) -> tuple[Path, list[dict[str, str]]]:
    """A teacher trained on most of the text and other modules, and the rest of the text.

    Its logits can be scaled to the lower entropy of large models. `quick` uses a small part of the text.
    """
    rows = texts()[: QUICK_TEXTS if quick else None]
    n_seen = round(len(rows) * (1 - UNSEEN_SHARE))
    others = [] if quick else other_modules()
    seen = [*rows[:n_seen], *({"text": text} for module in others for text in module.split("\n\n\n"))]
    name = f"trained-{sizes.vocabulary}-{sizes.width}-{sizes.layers}-{sizes.steps}"
    name += "" if sizes.table_rate is None else f"-tables-{sizes.table_rate:g}"
    corpus = work / f"{name}.jsonl"
    write_corpus(corpus, (row for row in seen if row["text"].strip()))
    make_teacher(corpus, work / name, sizes, progress)
    teacher = work / name
    return (teacher if entropy_nats is None else with_entropy(teacher, rows[n_seen:], entropy_nats)), rows[n_seen:]


def random_teacher(work: Path, sizes: RandomSizes) -> Path:
    """A teacher with random init whose logits are scaled to the entropy of a trained one."""
    folder = work / f"random-{sizes.vocabulary}-{sizes.width}-{sizes.layers}"
    if folder.is_dir():
        return folder
    quiet()
    tokenizer = train_tokenizer(
        [*(row["text"] for row in texts()), *other_modules()], TeacherSizes(vocabulary=sizes.vocabulary)
    )
    if len(tokenizer) != sizes.vocabulary:
        raise SystemExit(f"the text yields only {len(tokenizer):,} ids; use a vocabulary below {sizes.vocabulary:,}")
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(_config(sizes)).eval()
    ids_BT = torch.tensor(tokenizer(texts()[0]["text"])["input_ids"][:256])[None]
    with torch.inference_mode():
        logits = model(ids_BT, use_cache=False).logits[0]
        model.lm_head.weight.mul_(factor_for(logits, ENTROPY_NATS))
    work_folder = folder.with_name(f"{folder.name}.tmp")
    model.save_pretrained(work_folder)
    tokenizer.save_pretrained(work_folder)
    os.replace(work_folder, folder)
    return folder


def with_entropy(folder: Path, rows: list[dict[str, str]], entropy_nats: float) -> Path:
    """The same teacher with its logits scaled to a given entropy on some text."""
    other = folder.with_name(f"{folder.name}-at-{entropy_nats}")
    if other.is_dir():
        return other
    quiet()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = dense_model(folder)
    with torch.inference_mode():
        read = (torch.tensor(tokenizer(row["text"])["input_ids"][:1024])[None] for row in rows[:SHARPENED_DOCUMENTS])
        logits_RV = torch.cat([model(ids_BT, use_cache=False).logits[0] for ids_BT in read])
        model.lm_head.weight.mul_(factor_for(logits_RV, entropy_nats))
    work = other.with_name(f"{other.name}.tmp")
    model.save_pretrained(work)
    tokenizer.save_pretrained(work)
    os.replace(work, other)
    return other


def factor_for(logits_RV: torch.Tensor, entropy_nats: float) -> float:
    """The factor of logits for a mean entropy, by bisection."""
    low, high = 0.0, 1000.0
    for _ in range(50):
        middle = (low + high) / 2
        entropy = torch.distributions.Categorical(logits=logits_RV * middle).entropy().mean().item()
        low, high = (middle, high) if entropy > entropy_nats else (low, middle)
    return (low + high) / 2


def other_modules() -> list[str]:
    """The source of the library's other modules."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return [path.read_text("utf-8") for path in paths if path.stem not in SOURCES]


def _config(sizes: RandomSizes) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.width * 8 // 3,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )


def write_documents(path: Path, rows: list[dict[str, str]], teacher: Path, n_tokens: int) -> None:
    """Write documents until there are about so many tokens, repeating them if necessary."""
    tokenizer: Any = AutoTokenizer.from_pretrained(teacher)

    def enough() -> Iterator[dict[str, str]]:
        left = n_tokens
        for row in cycle(rows):
            n = len(tokenizer(row["text"])["input_ids"])
            text = row["text"]
            if n > left:
                text = text[: max(1, len(text) * left // n)]
            yield {**row, "text": text}
            left -= n
            if left <= 0:
                return

    path.write_text("".join(json.dumps(row) + "\n" for row in enough()), encoding="utf-8")


def dense_model(teacher: Path) -> Any:
    """The teacher as transformers loads it, in float32."""
    return AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()

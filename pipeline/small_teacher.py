"""A small teacher for demos and benchmarks: text that comes with Python, a tokenizer and a Llama trained on it.

In: a folder and sizes. Out: `corpus.jsonl`, a tokenizer and a model folder that transformers loads, the same for the
same sizes.
"""

import importlib
import inspect
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kdpipe.pipeline.models.model_info import quiet

STOP = "<|end|>"
# Modules of the standard library whose source is long, plain and imports nothing unusual.
SOURCES = (
    "argparse",
    "inspect",
    "tarfile",
    "typing",
    "subprocess",
    "zipfile",
    "datetime",
    "ast",
    "doctest",
    "optparse",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSizes:
    """Sizes of the teacher and of its training."""

    vocabulary: int = 512
    width: int = 128
    layers: int = 2
    context: int = 128
    batch: int = 16
    steps: int = 300
    rate: float = 3e-3
    # Learning rate of embeddings and head; that of the other parameters if None.
    table_rate: float | None = None
    seed: int = 0


def documents() -> Iterator[dict[str, str]]:
    """Python's own help topics (PSF license), as rows with a text and a category."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    for name in sorted(topics):
        yield {"text": topics[name].strip(), "category": "statement" if name.islower() else "concept", "topic": name}


def source_code() -> Iterator[dict[str, str]]:
    """Functions and classes of the standard library, for a larger text."""
    for name in SOURCES:
        for part in inspect.getsource(importlib.import_module(name)).split("\n\n\n"):
            if part.strip():
                yield {"text": part.strip(), "category": name}


def write_corpus(path: Path, rows: Iterator[dict[str, str]]) -> None:
    """Write rows as JSON lines, at once."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    work = path.with_name(f"{path.name}.tmp")
    work.write_text(text, encoding="utf-8")
    os.replace(work, path)


def texts_of(corpus: Path) -> list[str]:
    return [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]


def make_tokenizer(corpus: Path, folder: Path, sizes: TeacherSizes) -> None:
    """Train a tokenizer on a corpus and save it."""
    work = folder.with_name(f"{folder.name}.tmp")
    _save_tokenizer(train_tokenizer(texts_of(corpus), sizes), work)
    os.replace(work, folder)


def make_teacher(corpus: Path, folder: Path, sizes: TeacherSizes, report: Callable[[str], None]) -> None:
    """Train tokenizer and model on a corpus and save both; an existing folder is kept."""
    if folder.is_dir():
        return
    quiet()
    texts = texts_of(corpus)
    tokenizer = train_tokenizer(texts, sizes)
    model = train_model(texts, tokenizer, sizes, report)
    work = folder.with_name(f"{folder.name}.tmp")
    model.save_pretrained(work)
    _save_tokenizer(tokenizer, work)
    os.replace(work, folder)


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save it under a class name that transformers 4 knows too: students copy these files."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def train_tokenizer(texts: list[str], sizes: TeacherSizes) -> PreTrainedTokenizerFast:
    """A byte-level BPE: every text can be spelled."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=sizes.vocabulary,
        special_tokens=[STOP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    fast: Any = PreTrainedTokenizerFast
    wrapped: PreTrainedTokenizerFast = fast(tokenizer_object=backend, eos_token=STOP, pad_token=STOP)
    return wrapped


def train_model(
    texts: list[str], tokenizer: PreTrainedTokenizerFast, sizes: TeacherSizes, report: Callable[[str], None]
) -> LlamaForCausalLM:
    """Plain next-token training on random windows of the text, AdamW with warm-up and a cosine."""
    torch.manual_seed(sizes.seed)
    model: Any = LlamaForCausalLM(_config(sizes, tokenizer))
    ids = [token for text in tokenizer(texts)["input_ids"] for token in (*text, tokenizer.eos_token_id)]
    tokens = torch.tensor(ids)
    optimizer = torch.optim.AdamW(_groups(model, sizes), betas=(0.9, 0.95), weight_decay=0.01)
    warm_up = max(1, sizes.steps // 10)
    for step in range(sizes.steps):
        for group in optimizer.param_groups:
            late = max(0.0, (step - warm_up) / (sizes.steps - warm_up))
            group["lr"] = group["peak_lr"] * min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * late)))
        starts = torch.randint(len(tokens) - sizes.context, (sizes.batch,))
        batch = torch.stack([tokens[start : start + sizes.context] for start in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % max(1, sizes.steps // 5) == 0:
            report(f"  step {step + 1} of {sizes.steps}: {loss.item():.2f} nats per token")
    trained: LlamaForCausalLM = model.eval()
    return trained


def _groups(model: Any, sizes: TeacherSizes) -> list[dict[str, Any]]:
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    ids = {id(table) for table in tables}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    table_rate = sizes.rate if sizes.table_rate is None else sizes.table_rate
    return [{"params": rest, "peak_lr": sizes.rate}, {"params": tables, "peak_lr": table_rate}]


def shape(sizes: TeacherSizes) -> dict[str, int | bool]:
    """Config values of a Llama of these sizes."""
    return {
        "hidden_size": sizes.width,
        "intermediate_size": sizes.width * 8 // 3 // 16 * 16,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": max(1, sizes.width // 32),
        "num_key_value_heads": max(1, sizes.width // 32),
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }


def _config(sizes: TeacherSizes, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    kind: Any = LlamaConfig
    config: LlamaConfig = kind(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape(sizes),
    )
    return config

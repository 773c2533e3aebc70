"""Inputs of the stage two benchmarks: synthetic caches of full sequences, students with random init, a peer's teacher.

In: a `Case`. Out: caches as folders, made once; settings of `kdpipe train`; the same batches for a Trainer.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from kdpipe.cache import open_cache
from kdpipe.cache.format.blocks import cut
from kdpipe.cache.format.rows import Block, Sequence
from kdpipe.cache.opening import create_cache
from kdpipe.pipeline.batches.batch_order import ordering
from kdpipe.pipeline.models.devices import usable_cpus
from kdpipe.pipeline.models.model_info import quiet
from kdpipe.pipeline.students.presets import TokenIds, preset_config
from kdpipe.schemas.cache_plan import PlannedPart
from kdpipe.schemas.train_settings import TrainSettings

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.synthetic import Recipe, synthetic_manifest, synthetic_tables
from support.synthetic.documents import Packing, make_sequence
from support.synthetic.targets import make_targets

IGNORED_LABEL = -100
RATE = 1e-4
# kdpipe's defaults, also set for the peers.
BETAS, DECAY, CLIP = (0.9, 0.95), 0.01, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A student and its batches: `documents` of about equal length fill each sequence, all trained on.

    kdpipe uses micro-batches of `portion` sequences (automatic by default); peers use the whole batch.
    """

    vocabulary: int = 32_000
    preset: str = "100m"
    batch: int = 8
    portion: int | None = None
    length: int = 512
    documents: int = 2
    sequences: int = 256
    threads: int | None = None

    @property
    def recipe(self) -> Recipe:
        """Targets of the standard profile, without hidden states."""
        return Recipe(
            vocabulary_size=self.vocabulary,
            documents={"train": self.sequences * self.documents},
            documents_per_part=32 * self.documents,
            sequence_length=self.length,
            hidden=False,
        )


def make_cache(work: Path, case: Case) -> Path:
    """The cache of a case, reused by name."""
    path = work / f"synthetic-{case.vocabulary}-{case.sequences}-{case.length}-{case.documents}"
    if path.is_dir():
        return path
    made = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    recipe = case.recipe
    manifest = synthetic_manifest(recipe)
    writer = create_cache(made, manifest)
    writer.publish_tables(synthetic_tables(recipe))
    for number in writer.missing():
        with writer.part(number) as part:
            for sequence, block in _full(case, manifest.plan.part(number)):
                part.add(sequence, block)
    writer.seal()
    os.replace(made, path)
    return path


def _full(case: Case, part: PlannedPart) -> Iterator[tuple[Sequence, Block]]:
    """The sequences of a part, without prompts and completely filled."""
    recipe = case.recipe
    rng = recipe.generator(11, part.first_document)
    packing = _packing(case, part, rng)
    for number in range(packing.n_sequences):
        first, end = packing.sequence_starts[number : number + 2].tolist()
        tokens, block = make_targets(recipe, packing, packing.rows(first, end), rng)
        (whole,) = cut(block, np.array([len(tokens)]))
        yield make_sequence(recipe, packing, number, tokens), whole


def _packing(case: Case, part: PlannedPart, rng: np.random.Generator) -> Packing:
    n, per_sequence = part.n_documents, case.documents
    n_sequences, mean = n // per_sequence, case.length // per_sequence
    lengths = np.full((n_sequences, per_sequence), mean)
    for left in range(0, per_sequence - 1, 2):
        moved = rng.integers(-mean // 2, mean // 2, n_sequences)
        lengths[:, left] += moved
        lengths[:, left + 1] -= moved
    lengths[:, -1] += case.length - lengths.sum(axis=1)
    columns: dict[str, list[Any]] = {
        "category": ["web"] * n,
        "language": ["en"] * n,
        "quality": [None] * n,
        "is_code": [False] * n,
        "year": [2020] * n,
    }
    return Packing(
        first_document=part.first_document,
        lengths=lengths.ravel(),
        prompts=np.zeros(n, np.int64),
        topics=rng.integers(0, case.vocabulary, n),
        sequence_starts=np.arange(0, n + 1, per_sequence),
        columns=columns,
    )


def settings_for(case: Case, cache: Path, out: Path, **sections: dict[str, Any]) -> TrainSettings:
    """A default hybrid run in float32 on the CPU, without evaluations and checkpoints while timed."""
    own: dict[str, dict[str, Any]] = {
        "cache": {"path": str(cache)},
        "student": {"name": case.preset},
        "optimizer": {
            "kind": "adamw",
            "lr": RATE,
            "rates": {"tables": RATE},
            "beta1": BETAS[0],
            "beta2": BETAS[1],
            "weight_decay": DECAY,
            "clip": CLIP,
        },
        "run": {"max_steps": 100_000, "batch_size": case.batch},
        "evaluation": {"every": 1_000_000},
        "saving": {"every": 1_000_000},
        "machine": {
            "device": "cpu",
            "precision": "fp32",
            "threads": case.threads or usable_cpus(),
            "portion": case.portion,
        },
    }
    given = {name: own.get(name, {}) | values for name, values in sections.items()}
    return TrainSettings.model_validate({**own, **given, "out": str(out)})


def rows_of(cache: Path, n: int) -> list[dict[str, list[int]]]:
    """The first sequences in kdpipe's order as rows for a Trainer; labels are not shifted."""
    opened = open_cache(str(cache), "train")
    rows = []
    for number in ordering(opened, "shuffled", 0).at(np.arange(n)).tolist():
        sequence = opened.tokens(number)
        labels = np.full(len(sequence.tokens), IGNORED_LABEL)
        trained = np.flatnonzero(sequence.loss_mask) + 1
        labels[trained] = sequence.tokens[trained]
        rows.append({"input_ids": sequence.tokens.tolist(), "labels": labels.tolist()})
    return rows


def student_config(case: Case) -> LlamaConfig:
    """The config of a case's student."""
    return preset_config(case.preset, TokenIds(count=case.vocabulary, longest=case.length))


def fresh_model(config: LlamaConfig) -> Any:
    """kdpipe's initial weights for seed 0, in its model class."""
    quiet()
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    return auto.from_config(config, dtype=torch.float32)


def teacher_config(case: Case, times: float) -> LlamaConfig:
    """A teacher twice as wide as the student, with the depth for so many times its size."""
    small = student_config(case)
    wide: dict[str, Any] = small.to_diff_dict() | {
        "hidden_size": 2 * small.hidden_size,
        "intermediate_size": 2 * small.intermediate_size,
        "num_attention_heads": 2 * small.num_attention_heads,
        "num_key_value_heads": 2 * small.num_key_value_heads,
    }
    rows, two = (n_parameters(LlamaConfig(**{**wide, "num_hidden_layers": n})) for n in (1, 2))
    layers = -(-int(times * n_parameters(small) - rows) // (two - rows)) + 1
    return LlamaConfig(**{**wide, "num_hidden_layers": max(1, layers)})


def n_parameters(config: LlamaConfig) -> int:
    """Number of parameters of a model, without allocating it."""
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        return sum(per_sequence.numel() for per_sequence in auto.from_config(config).parameters())

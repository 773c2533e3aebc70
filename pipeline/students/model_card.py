"""The model card: where a student comes from, on what terms, and what it was measured to be.

In: a `ModelCard`. Out: the text of README.md. What the front matter says is what the hub reads; values are written as
JSON, which YAML reads.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What licenses ask of models that learn from a model's answers, as their texts read in 2026; the first that fits.
TERMS: tuple[tuple[str, str], ...] = (
    (
        r"llama-?3[.-][1-9]|llama-?4",
        "The Llama 3.1 and later licenses ask that models trained on their outputs have names that begin with Llama, "
        "say 'Built with Llama', and come with the license.",
    ),
    (
        r"llama",
        "The Llama 2 and Llama 3 licenses do not allow their outputs to improve other language models than Llama.",
    ),
    (r"gemma", "The Gemma terms count models trained on Gemma's outputs as derivatives: the same terms go with them."),
    (r"(^|[-_ ])nc([-_ ]|$)|non-?commercial|research", "The teacher's license allows no commercial use."),
    (r"^other", "The teacher has a license of its own: read whether it allows models to be trained on outputs."),
)
HUB_ID = r"[\w.-]+/[\w.-]+"
# Lines of an adapter's card, and what they become when it is merged.
MERGED = {
    'base_model_relation: "adapter"': 'base_model_relation: "finetune"',
    'library_name: "peft"': 'library_name: "transformers"',
    "\nAn adapter of ": "\nAn adapter, merged, of ",
}
UNKNOWN = "The teacher's license is not known: find out whether it allows models to be trained on outputs."


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What is known at the end of a run; `base` is the student's name before, None where it was fresh.

    `losses` are weights by name, `optimizer` says which one with its learning rates, `metrics` are numbers by name,
    `versions` those of libraries; `is_adapter` where LoRA was used.
    """

    name: str
    teacher: str | None
    teacher_revision: str | None
    teacher_license: str | None
    base: str | None
    base_license: str | None
    cache_id: str | None
    losses: Mapping[str, float]
    temperature: float
    optimizer: str
    steps: int
    positions: int
    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    is_adapter: bool = False


def terms_of(license: str | None) -> str | None:
    """What a teacher's license asks of its students, where it is known to ask something."""
    if license is None:
        return UNKNOWN
    return next((words for pattern, words in TERMS if re.search(pattern, license.lower())), None)


def rendered(card: ModelCard) -> str:
    """The whole of README.md."""
    return "\n".join([*_front(card), "", f"# {card.name}", "", *_body(card), ""])


def of_merged(text: str) -> str:
    """The card of an adapter that has become part of its base; other texts stay as they are."""
    for adapter, merged in MERGED.items():
        text = text.replace(adapter, merged, 1)
    return text


def _front(card: ModelCard) -> list[str]:
    base = card.base if card.base is not None and re.fullmatch(HUB_ID, card.base) else None
    values: dict[str, Any] = {
        "license": _tag(card.base_license or card.teacher_license),
        "base_model": base,
        "base_model_relation": None if base is None else "adapter" if card.is_adapter else "finetune",
        "library_name": "peft" if card.is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["knowledge-distillation", "kdpipe"],
        "distillation": _distillation(card),
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items() if value is not None]
    return ["---", *lines, "---"]


def _tag(license: str | None) -> str | None:
    """The license as the hub takes it: a word, else `other`."""
    if license is None:
        return None
    return license if re.fullmatch(r"[a-z0-9.-]+", license) else "other"


def _distillation(card: ModelCard) -> dict[str, Any]:
    found = {
        "teacher": card.teacher,
        "teacher_revision": card.teacher_revision,
        "teacher_license": card.teacher_license,
        "cache_id": card.cache_id,
        "losses": dict(card.losses),
        "temperature": card.temperature,
        "optimizer": card.optimizer,
        "steps": card.steps,
        "positions": card.positions,
        "seed": card.seed,
        "metrics": dict(card.metrics),
        "versions": dict(card.versions),
    }
    return {key: value for key, value in found.items() if value not in (None, {})}


def _body(card: ModelCard) -> list[str]:
    # A folder is called by its name: where it lies is nobody's business.
    base = card.base if card.base is None or re.fullmatch(HUB_ID, card.base) else Path(card.base).expanduser().name
    who = "A fresh model" if base is None else f"An adapter of {base}" if card.is_adapter else base
    if card.teacher is None:
        lines = [f"{who}, trained with kdpipe on labels alone."]
    else:
        at = f" ({card.teacher_revision})" if card.teacher_revision else ""
        lines = [f"{who}, trained with kdpipe from a cache of what {card.teacher}{at} said."]
        lines += ["", f"License of the teacher: {card.teacher_license or 'not known'}."]
        if (terms := terms_of(card.teacher_license)) is not None:
            lines += ["", f"**{terms}**"]
    lines += ["", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _rows(card))]
    if card.metrics:
        lines += [
            "",
            "On the cache's validation split, in nats where it is one:",
            "",
            "| metric | value |",
            "|---|---|",
        ]
        lines += [f"| {name} | {value:.4g} |" for name, value in card.metrics.items()]
    return lines


def _rows(card: ModelCard) -> list[tuple[str, str]]:
    losses = ", ".join(f"{weight:g} x {name}" for name, weight in card.losses.items())
    rows = [
        ("cache", card.cache_id or "unfinished"),
        ("losses", losses),
        ("temperature", f"{card.temperature:g}"),
        ("optimizer", card.optimizer),
        ("optimizer steps", f"{card.steps:,}"),
        ("positions", f"{card.positions:,}"),
        ("seed", str(card.seed)),
        ("versions", ", ".join(f"{name} {version}" for name, version in card.versions.items())),
    ]
    return [(name, value) for name, value in rows if value]

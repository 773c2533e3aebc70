"""The model card: a student's origin, licenses, training and metrics.

In: a `ModelCard`. Out: the text of README.md. The Hub reads the front matter; its values are JSON, which is valid YAML.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Terms of licenses for models trained on a model's outputs, as of 2026; the first match applies.
TERMS: tuple[tuple[str, str], ...] = (
    (
        r"llama-?3[.-][1-9]|llama-?4",
        "The Llama 3.1 and later licenses require that models trained on their outputs have names that begin with "
        "Llama, state 'Built with Llama', and include the license.",
    ),
    (
        r"llama",
        "The Llama 2 and Llama 3 licenses do not allow their outputs to improve other language models than Llama.",
    ),
    (r"gemma", "The Gemma terms treat models trained on Gemma's outputs as derivatives, under the same terms."),
    (r"(^|[-_ ])nc([-_ ]|$)|non-?commercial|research", "The teacher's license does not allow commercial use."),
    (r"^other", "The teacher has a custom license: check whether it allows training models on its outputs."),
)
HUB_ID = r"[\w.-]+/[\w.-]+"
# Lines of an adapter's card and their replacements after merging.
MERGED = {
    'base_model_relation: "adapter"': 'base_model_relation: "finetune"',
    'library_name: "peft"': 'library_name: "transformers"',
    "\nAn adapter of ": "\nA merged adapter of ",
}
UNKNOWN = "The teacher's license is unknown: check whether it allows training models on its outputs."


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Facts about a finished run; `base` is the pretrained student's name, None with random init.

    `losses` are weights by name, `optimizer` includes its learning rates, `versions` are those of libraries;
    `is_adapter` with LoRA.
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
    """Terms of a teacher's license for models trained on its outputs, if any are known."""
    if license is None:
        return UNKNOWN
    return next((words for pattern, words in TERMS if re.search(pattern, license.lower())), None)


def rendered(card: ModelCard) -> str:
    """The text of README.md."""
    return "\n".join([*_front_matter(card), "", f"# {card.name}", "", *_body(card), ""])


def of_merged(text: str) -> str:
    """The card of an adapter after merging; other cards are unchanged."""
    for adapter, merged in MERGED.items():
        text = text.replace(adapter, merged, 1)
    return text


def _front_matter(card: ModelCard) -> list[str]:
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
    """The license as a Hub tag: a word, else `other`."""
    if license is None:
        return None
    return license if re.fullmatch(r"[a-z0-9.-]+", license) else "other"


def _distillation(card: ModelCard) -> dict[str, Any]:
    facts = {
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
    return {key: value for key, value in facts.items() if value not in (None, {})}


def _body(card: ModelCard) -> list[str]:
    # The name of a folder without its path, which is private.
    base = card.base if card.base is None or re.fullmatch(HUB_ID, card.base) else Path(card.base).expanduser().name
    description = (
        "A randomly initialized model" if base is None else f"An adapter of {base}" if card.is_adapter else base
    )
    if card.teacher is None:
        lines = [f"{description}, trained with kdpipe on labels only."]
    else:
        at = f" ({card.teacher_revision})" if card.teacher_revision else ""
        lines = [f"{description}, distilled with kdpipe from cached predictions of {card.teacher}{at}."]
        lines += ["", f"License of the teacher: {card.teacher_license or 'unknown'}."]
        if (terms := terms_of(card.teacher_license)) is not None:
            lines += ["", f"**{terms}**"]
    lines += ["", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _rows(card))]
    if card.metrics:
        lines += [
            "",
            "Metrics on the cache's validation split (cross-entropy and KL in nats):",
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

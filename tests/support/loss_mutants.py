"""Copies of `pipeline/losses` with one planted error each, and the comparison with the twin that must find it.

In: a file, the text to replace, its replacement. Out: the package with that error, under another name.
"""

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch

from kdpipe.pipeline.batches.micro_batch import Targets
from kdpipe.pipeline.losses.terms import LossOptions
from kdpipe.schemas.losses import LOGIT_LOSSES
from support.loss_twins import Answer, Asked, World, answer, every_id_drawn, largest_ids, targets, world
from support.losses import distance, ours
from support.source import ROOT

# In an order in which each imports only those before it.
MODULES = (
    *("terms", "workspace", "row_statistics", "exactness", "teacher_bins", "divergences", "sparse_chunk"),
    *("dense_chunk", "fused", "autograd_path", "head_chunks"),
)
FILES = {"table": "schemas/losses.py"} | {name: f"pipeline/losses/{name}.py" for name in MODULES}
COPY = "mutated_losses_"
EXACT = [2, 5, 3, 1, 8, 4, 23, 6, 2, 3, 22, 7]


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """An error: in `file`, `old` (which occurs once) becomes `new`."""

    what: str
    file: str
    old: str
    new: str


@contextmanager
def mutated(mutant: Mutant | None) -> Iterator[dict[str, Any]]:
    """The modules of the package by their short names, with an error in one of them."""
    made: dict[str, Any] = {}
    try:
        for name, path in FILES.items():
            text = (ROOT / path).read_text(encoding="utf-8")
            if mutant is not None and mutant.file == name:
                assert text.count(mutant.old) == 1, f"{mutant.what}: {text.count(mutant.old)} times in {path}"
                text = text.replace(mutant.old, mutant.new)
            made[name] = sys.modules[COPY + name] = types.ModuleType(COPY + name)
            exec(compile(_renamed(text), path, "exec"), made[name].__dict__)
        yield made
    finally:
        for name in FILES:
            sys.modules.pop(COPY + name, None)


def _renamed(text: str) -> str:
    """A module's source that imports the copies, not the package."""
    text = text.replace("kdpipe.schemas.losses", f"{COPY}table").replace("kdpipe.pipeline.losses.", COPY)
    return text.replace("{LOSSES_PACKAGE}.", COPY)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A world, the requested terms, and the twin's answer; `factored` terms take the package's own factor of T."""

    w: World
    kept: Targets
    requested: list[Asked]
    due: Answer
    factored: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def worst(package: dict[str, Any]) -> float:
    """How far a package is from the twin, at worst, over a few worlds that use every part of it."""
    factor = package["terms"].factor
    far = []
    for case in cases():
        requested = case.requested
        if case.factored:
            requested = [
                replace(one, coefficient=one.coefficient * factor(one.name, one.temperature)) for one in requested
            ]
        try:
            _, found = ours(case.w, requested, case.kept, dtype=torch.float64, package=package, **case.options)
            far.append(distance(found, case.due))
        except (ArithmeticError, AssertionError, IndexError, RuntimeError):
            return float("inf")
    return max(far)


@cache
def cases() -> tuple[Case, ...]:
    """Every part of the losses at least once."""
    return (_hybrid(), *_bins(), _head(), _draws(), _weighed_tail())


def _hybrid() -> Case:
    """All losses together on rows of their own, at T=2 and with their factors."""
    w, some = world(seed=71), torch.arange(12) % 3 != 0
    exact = largest_ids(w, EXACT)
    requested, due = [], []
    for name in LOGIT_LOSSES:
        one = Asked(
            name=name,
            coefficient=1 / 40,
            temperature=1.0 if name == "ce" else 2.0,
            chosen_N=some,
            exact=exact,
            options={"skew_kl": {"skew": 0.3}, "jsd": {"beta": 0.2}}.get(name, {}),
        )
        requested.append(one)
        due.append(replace(one, coefficient={"ce": 1.0, "total_variation": 2.0}.get(name, 4.0) / 40))
    options = {"loss_options": LossOptions(skew=0.3, beta=0.2)}
    kept = targets(w, exact, draws=3)
    return Case(w=w, kept=kept, requested=requested, due=answer(w, due), factored=True, options=options)


def _bins() -> Iterator[Case]:
    """One loss at a time, in one pass and by the fallback."""
    w = world(seed=72)
    exact = largest_ids(w, EXACT)
    for name, temperature in (("forward_kl", 1.0), ("reverse_kl", 1.0), ("jsd", 4.0), ("reverse_kl", 0.5)):
        requested = [Asked(name=name, temperature=temperature, exact=exact)]
        for opaque in (False, True):
            yield Case(
                w=w, kept=targets(w, exact), requested=requested, due=answer(w, requested), options={"opaque": opaque}
            )


def _head() -> Case:
    """A head with everything that heads have."""
    w = world(seed=73, bias=True, scale=0.5, soft_cap=3.0, n_padding=4)
    exact = largest_ids(w, EXACT)
    kl = Asked(name="forward_kl", coefficient=-0.2, temperature=2.0, exact=exact)
    requested = [Asked(name="ce", coefficient=0.1), kl]
    return Case(w=w, kept=targets(w, exact), requested=requested, due=answer(w, requested))


def _draws() -> Case:
    """With as many draws as there are ids, each weighing its own p, the draws are the tail itself."""
    w = world(seed=74, vocabulary=9)
    requested = [Asked(name="forward_kl", coefficient=0.5), Asked(name="skew_kl", coefficient=0.25)]
    return Case(w=w, kept=every_id_drawn(w), requested=requested, due=answer(w, requested))


def _weighed_tail() -> Case:
    """A tail weight above 1 by hand: from the bucket, the whole and the mean tail mass of the second sequence."""
    w = world(seed=75, vocabulary=9)
    kept, sequence_N = every_id_drawn(w), torch.tensor([0] * 4 + [1] * 8)
    whole = Asked(name="forward_kl", chosen_N=sequence_N == 1)
    bucket = replace(whole, exact=largest_ids(w, [2] * 12))
    assert kept.log_tail_N is not None
    share = 1.5 / float(kept.log_tail_N[4:].exp().mean())
    due = answer(w, [replace(whole, coefficient=share), replace(bucket, coefficient=1 - share)])
    due.sums = {"forward_kl": due.total}
    options = {"loss_options": LossOptions(tail_weight=1.5), "sequence_N": sequence_N}
    return Case(w=w, kept=kept, requested=[whole], due=due, options=options)

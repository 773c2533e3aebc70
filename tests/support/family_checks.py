"""What a family of models must pass: stage one against plain transformers, three training steps, save and reload.

In: a small config. Out: the largest difference of each check; the first that fails raises.
The reference is always the model as transformers loads it, reading one document at a time.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig

from kdpipe.cache.format.blocks import cut
from kdpipe.pipeline.losses.head_chunks import HeadLosses
from kdpipe.pipeline.losses.terms import LogitTerm, LossOptions
from kdpipe.pipeline.students.presets import TokenIds
from kdpipe.pipeline.students.saving import save_student
from kdpipe.pipeline.students.student import Student
from kdpipe.schemas.target_kinds import TopK
from kdpipe.schemas.targets import HiddenSpec, Vector, WholeState
from support.family_configs import MOST_PARAMETERS
from support.students import batch_of, student
from support.teachers import Truth, local_teacher, request_for, segments_of

# Fewer ids than rows: vocabularies are padded in many published models.
N_IDS = 500
LENGTHS = (3, 40, 1, 23, 40, 2, 31)
# Both sides compute in float32, in batches of other shapes: sums differ in their last bits. Measured over all families:
# docs/families.md has the largest of each.
LOGPROB_TOLERANCE = 2e-4
N_STEPS = 3
TOP = 8


class TooLarge(Exception):
    """A family whose smallest config has too many parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyResult:
    """Largest differences to plain transformers: log-probabilities of rows, losses, logits after a reload."""

    n_parameters: int
    teacher: float
    student: float
    reload: float
    notes: tuple[str, ...]


def make_model(config: PretrainedConfig, folder: Path, seed: int = 0) -> int:
    """Save a random model whose layers all matter to its logits; the number of its parameters."""
    auto: Any = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        n_parameters = sum(each.numel() for each in auto.from_config(config).parameters())
    if n_parameters > MOST_PARAMETERS:
        raise TooLarge(f"{n_parameters:,} parameters")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = auto.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            # Fresh matrices are faint: errors before them would not be seen in the logits.
            if parameter.dim() >= 2:
                parameter.normal_(std=1.5 * min(parameter.shape[-2:]) ** -0.5)
        model.save_pretrained(folder)
    return int(n_parameters)


def check_teacher(folder: Path) -> float:
    """Rows, labels and states of a teacher beside those of plain transformers."""
    teacher, truth = local_teacher(folder, N_IDS), Truth(folder, N_IDS, torch.float32)
    shape = teacher.forward.shape
    vectors = tuple(
        Vector(layer=layer, width=width, group=width, projection=WholeState())
        for layer, width in ((shape.n_layers // 2, shape.width), (shape.n_layers, shape.last_width))
    )
    pieces = segments_of(LENGTHS, N_IDS)
    requested = request_for(TopK(k=TOP), N_IDS, HiddenSpec(pooled=vectors, rows=vectors))
    (answer,) = teacher.predict([pieces], requested)
    worst = 0.0
    for piece, block in zip(pieces, cut(answer.block, np.cumsum([len(piece) for piece in pieces])), strict=True):
        rows = np.flatnonzero(piece.loss_mask)
        due = truth.logprobs(piece)[rows]
        ids = block.ids.reshape(len(rows), TOP)
        found = block.logprobs.reshape(ids.shape)
        worst = max(worst, _worst(found, np.take_along_axis(due, ids, 1), "log-probabilities"))
        _worst(found, -np.sort(-due, axis=1)[:, :TOP], "the most probable ids")
        assert block.label_logprob is not None
        labels = due[np.arange(len(rows)), piece.tokens[rows + 1]]
        worst = max(worst, _worst(block.label_logprob[rows], labels, "labels' log-probabilities"))
        for vector in vectors:
            assert np.isfinite(block.hidden[vector.layer]).all(), "states that are not finite"
    return worst


def check_student(folder: Path, out: Path) -> tuple[float, float, tuple[str, ...]]:
    """Losses beside plain transformers, three steps, and the saved folder beside the student that was saved."""
    found = student(folder, TokenIds(count=N_IDS, longest=64))
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    losses, optimizer = HeadLosses(found.head, LossOptions()), torch.optim.AdamW(found.trainable().values(), lr=1e-3)
    batch = batch_of([[9, 15, 8], [20, 12]], N_IDS)
    terms = (LogitTerm(name="ce", coefficient=1 / len(batch.labels_N)),)
    with torch.no_grad():
        states = found.states(batch)
        rows_N = losses(states.rows_NH, batch.labels_N, None, terms, watch=True).rows["ce"]
        difference = _worst(rows_N.numpy(), _plain_losses(plain, batch).numpy(), "losses")
    seen = []
    found.model.train()
    for _ in range(N_STEPS):
        optimizer.zero_grad()
        total = losses(found.states(batch).rows_NH, batch.labels_N, None, terms).total
        total.backward()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in found.trainable().values())
        optimizer.step()
        seen.append(float(total.detach()))
    found.model.eval()
    assert np.isfinite(seen).all() and seen[-1] < seen[0], f"three steps on one batch do not lower its loss: {seen}"
    save_student(found, out, {}, "")
    return difference, _reloaded(found, out), found.notes


def check_family(config: PretrainedConfig, work: Path) -> FamilyResult:
    """All checks of one family."""
    n_parameters = make_model(config, work / "model")
    teacher = check_teacher(work / "model")
    losses, reload, notes = check_student(work / "model", work / "student")
    return FamilyResult(n_parameters=n_parameters, teacher=teacher, student=losses, reload=reload, notes=notes)


def _plain_losses(model: Any, batch: Any) -> Tensor:
    """The cross-entropy of every row, each document read alone."""
    losses = []
    for tokens_T, document_T in zip(batch.tokens_BT, batch.document_BT, strict=True):
        for number in range(int(document_T.max()) + 1):
            ids_T = tokens_T[document_T == number]
            logits_TV = model(ids_T[None], use_cache=False).logits[0, :-1, :N_IDS].float()
            losses.append(nn.functional.cross_entropy(logits_TV, ids_T[1:], reduction="none"))
    return torch.cat(losses)


def _reloaded(found: Student, out: Path) -> float:
    again: Any = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto").eval()
    assert all(parameter.dtype == torch.float32 for parameter in again.parameters())
    ids_BT = torch.arange(3, 3 + 24)[None]
    with torch.no_grad():
        here, there = (model(ids_BT, use_cache=False).logits for model in (found.model, again))
    return _worst(there.numpy(), here.numpy(), "logits after a reload")


def _worst(found: Any, due: Any, what: str) -> float:
    assert np.shape(found) == np.shape(due), f"{what}: shape {np.shape(found)}, expected {np.shape(due)}"
    worst = float(np.abs(np.asarray(found, np.float64) - due).max(initial=0.0))
    assert worst <= LOGPROB_TOLERANCE, f"{what} differ by {worst:.3g} from plain transformers"
    return worst

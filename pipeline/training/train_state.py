"""`TrainState`: a loaded student with its objective and optimizer, and what its losses read from the cache.

In: a `Run`. Out: a record that steps, checkpoints and evaluations share.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from kdpipe.pipeline.batches.batch_order import Ordering, ordering
from kdpipe.pipeline.batches.collate import BatchContents, check_contents
from kdpipe.pipeline.losses.dense_chunk import teacher_head
from kdpipe.pipeline.losses.head_chunks import HeadLosses
from kdpipe.pipeline.losses.hidden.hidden_objective import HiddenObjective
from kdpipe.pipeline.losses.objective import Objective
from kdpipe.pipeline.losses.terms import HIDDEN_NAMES, LOGIT_NAMES
from kdpipe.pipeline.models import devices
from kdpipe.pipeline.models.precision import Precision
from kdpipe.pipeline.students.load_student import load_student
from kdpipe.pipeline.students.parameter_roles import parameter_roles
from kdpipe.pipeline.students.student import Student
from kdpipe.pipeline.training.optimizers import Trainable, make_optimizer
from kdpipe.pipeline.training.run import Run
from kdpipe.schemas.progress import Progress, Task, running

# Statistics of position selection that come from the cache.
TEACHER_STATISTICS = ("teacher_entropy", "label_logprob")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """What steps work with; `model` has all modules with parameters: the student's, and those of hidden losses."""

    student: Student
    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    precision: Precision
    device: torch.device
    wants: BatchContents
    orders: Mapping[str, Ordering]

    @property
    def trained(self) -> list[nn.Parameter]:
        """The trainable parameters."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


def build_train_state(run: Run, progress: Progress) -> TrainState:
    """Load the student and build objective and optimizer around it."""
    settings, cache, device = run.settings, run.cache, run.device
    threads = settings.machine.threads
    torch.set_num_threads(devices.n_threads(None if threads == "auto" else threads))
    with running(progress, Task(name="load student")):
        student = load_student(run.student, settings.student, run.precision.name, device, settings.seed)
    for text in student.notes:
        progress.message(text)
    hidden = _hidden_objective(run, student)
    wants = _batch_contents(run, hidden)
    check_contents(cache, wants)
    student.model.train()
    head = HeadLosses(student.head, run.curriculum.options, teacher_head(cache))
    optimizer = make_optimizer(settings.optimizer, _trainable(student, hidden))
    orders: dict[str, Ordering] = {name: ordering(cache, name, settings.seed) for name in run.curriculum.orders}
    scaler = torch.amp.GradScaler(device.type) if run.precision.scaled else None
    # The seed of dropout; a checkpoint restores the states of the generators instead.
    torch.manual_seed(settings.seed)
    return TrainState(
        student=student,
        model=nn.ModuleDict({"student": student.model, **({} if hidden is None else {"hidden": hidden})}),
        objective=Objective(head, hidden, settings.losses.select),
        optimizer=optimizer,
        scaler=scaler,
        precision=run.precision,
        device=device,
        wants=wants,
        orders=orders,
    )


def _hidden_objective(run: Run, student: Student) -> HiddenObjective | None:
    terms = [name for name in HIDDEN_NAMES if name in run.curriculum.terms]
    losses, manifest = run.settings.losses, run.cache.manifest
    if not terms and not losses.hidden.router:
        return None
    widths, seed = student.shape.widths, run.settings.seed
    return HiddenObjective(losses, terms, manifest, student_widths=widths, seed=seed).to(run.device)


def _batch_contents(run: Run, hidden: HiddenObjective | None) -> BatchContents:
    """What batches hold besides tokens: targets only if a loss needs them."""
    by_teacher = any(selection.by in TEACHER_STATISTICS for selection in run.settings.losses.select)
    rows, pooled = ((), ()) if hidden is None else hidden.wants()
    logit = run.curriculum.terms & (set(LOGIT_NAMES) - {"ce"})
    return BatchContents(targets=bool(logit), statistics=by_teacher, hidden=tuple(rows), pooled=tuple(pooled))


def _trainable(student: Student, hidden: HiddenObjective | None) -> Trainable:
    named = {} if hidden is None else dict(hidden.named_parameters())
    return Trainable(
        student=student.trainable(),
        roles=parameter_roles(student.model),
        maps={name: parameter for name, parameter in named.items() if not name.startswith("router.")},
        router={name: parameter for name, parameter in named.items() if name.startswith("router.")},
    )

"""Teachers: language models that predict at the rows of some segments, and the backends that run them.

In: settings. Out: a `TeacherBackend`, which describes its teacher before anything is loaded, and then loads a
`Teacher`. A backend is one module and one row of `schemas/member_tables.py`; only its module knows what its model is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import numpy.typing as npt

from kdpipe.cache.format.rows import Block, Floats
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer
from kdpipe.schemas import manifest
from kdpipe.schemas.capture_settings import CaptureSettings, MachineSettings, TeacherSettings
from kdpipe.schemas.choices import TeacherBackendName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.member_tables import TEACHER_BACKENDS
from kdpipe.schemas.part import Fidelity
from kdpipe.schemas.target_kinds import OutputHead
from kdpipe.schemas.targets import CAPTURED

TOKENS_ONLY = "kdpipe.pipeline.teachers.tokens_only:TokensOnlyBackend"
Table = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureResult:
    """Targets of one batch: the rows of its segments in order, without padding.

    `pooled` has a vector per segment for every pooled layer; `halved` counts how often the batch was halved for lack of
    memory.
    """

    block: Block
    pooled: Mapping[int, Floats] = field(default_factory=dict)
    halved: int = 0


class Teacher(Protocol):
    """A loaded teacher."""

    @property
    def record(self) -> manifest.TeacherRecord | None:
        """Its description for the manifest; None for a cache of tokens only."""
        ...

    @property
    def output_head(self) -> OutputHead | None:
        """The output head, where logits are the last hidden state times one; targets of kind state need it."""
        ...

    def head_tables(self) -> dict[str, Table]:
        """The numbers of that head, as tables of the cache."""
        ...

    def predict(self, batches: Iterable[Sequence[Segment]], request: TargetRequest) -> Iterator[CaptureResult]:
        """Targets of each batch, in order; the next batch may be under way before the last result is taken."""
        ...

    def fidelity(self) -> Fidelity | None:
        """Distance of the targets since the last call to the full distributions, where it was measured."""
        ...

    def bare_seconds(self, batches: Iterable[Sequence[Segment]]) -> float | None:
        """Seconds of a forward pass without caching over some batches; None where it cannot be measured."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherInfo:
    """What is known of a teacher before it is loaded; None, or no widths, where its backend cannot know.

    `widths` are those of each layer's states, 0 the embeddings; without them there are no hidden states. A teacher
    without `full_distribution` returns only its `max_top_k` most probable ids: no draws, entropy or temperatures.
    Bytes are those of one worker on its device, activations per token of a batch.
    """

    name: str | None
    n_parameters: int | None = None
    vocabulary_size: int | None = None
    max_positions: int | None = None
    widths: tuple[int, ...] = ()
    output_head: OutputHead | None = None
    full_distribution: bool = True
    max_top_k: int | None = None
    batch_tokens: int
    weight_bytes: int = 0
    activation_bytes: float = 0.0
    logits_bytes: int = 0


class TeacherBackend(Protocol):
    """One way to run a teacher; nothing is loaded before `load`."""

    def __init__(self, teacher: TeacherSettings, machine: MachineSettings) -> None: ...

    def describe(self) -> TeacherInfo:
        """Describe the teacher, or refuse settings that it cannot be run with."""
        ...

    def tokenizer(self, chat_template: str | None) -> LoadedTokenizer:
        """The teacher's own tokenizer."""
        ...

    def has_tokenizer(self) -> bool:
        """Whether the teacher comes with a tokenizer."""
        ...

    def workers(self) -> list[MachineSettings]:
        """The machine settings of each worker process; one unless the teacher fits on each of several devices."""
        ...

    def load(self, vocabulary_size: int) -> Teacher:
        """Load the teacher for ids below a vocabulary size."""
        ...

    @staticmethod
    def recorded(name: str, record: manifest.TeacherRecord) -> TeacherSettings:
        """Settings that run the teacher of this name as a manifest records it."""
        ...


def backend_type(name: TeacherBackendName) -> type[TeacherBackend]:
    """The backend of a name, its module imported now."""
    return _imported(TEACHER_BACKENDS[name])


def recorded_backend(
    name: str, record: manifest.TeacherRecord, machine: MachineSettings, *, trusted: bool
) -> TeacherBackend:
    """The backend that runs the teacher of this name as a manifest records it; `trusted` allows its own code."""
    if record.backend not in TEACHER_BACKENDS:
        raise ConfigError(
            f"the teacher was run by the backend {record.backend}, this kdpipe has {', '.join(TEACHER_BACKENDS)}",
            hint="use the version of kdpipe that made the cache",
        )
    backend = backend_type(record.backend)
    teacher = backend.recorded(name, record).model_copy(update={"trust_remote_code": trusted})
    return backend(teacher, machine)


def backend_of(settings: CaptureSettings) -> TeacherBackend:
    """The backend of some settings; targets without a teacher have one that reads tokens only."""
    has_teacher = CAPTURED[settings.targets.kind].has_teacher
    backend = backend_type(settings.teacher.backend) if has_teacher else _imported(TOKENS_ONLY)
    return backend(settings.teacher, settings.machine)


def _imported(place: str) -> type[TeacherBackend]:
    module, _, name = place.partition(":")
    backend: type[TeacherBackend] = getattr(import_module(module), name)
    return backend

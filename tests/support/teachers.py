"""Teachers for tests, the segments they read, and the dense float64 truth that they are compared with.

In: model folders of `models.py`. Out: `TransformersTeacher`s, `Segment`s, log-probabilities of one document read alone;
and a teacher that shows its top candidates only.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from kdpipe.cache.format.rows import Block, Floats
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.pipeline.teachers import CaptureResult, TeacherInfo
from kdpipe.pipeline.teachers.load_teacher import load
from kdpipe.pipeline.teachers.tokens_only import model_tokenizer
from kdpipe.pipeline.teachers.transformers_backend import teacher_shape
from kdpipe.pipeline.teachers.transformers_teacher import TransformersTeacher
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer
from kdpipe.schemas import manifest
from kdpipe.schemas.capture_settings import MachineSettings, TeacherSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.target_kinds import TopK
from kdpipe.schemas.targets import HiddenSpec, TargetSpec

Doubles = npt.NDArray[np.float64]
CPU = torch.device("cpu")


def segments_of(lengths: Iterable[int], vocabulary: int, seed: int = 0) -> list[Segment]:
    """Documents of random tokens; every token is trained on, except for a stretch in odd ones."""
    random = np.random.default_rng(seed)
    found = []
    for document, length in enumerate(lengths):
        trained = np.ones(length, np.bool_)
        trained[-1] = False
        if document % 2:
            trained[: length // 3] = False
        found.append(segment_of(random.integers(3, vocabulary, length), document, trained))
    return found


def segment_of(tokens: npt.NDArray[Any], document: int, loss_mask: npt.NDArray[np.bool_]) -> Segment:
    """A segment of given tokens."""
    tokens = tokens.astype(np.int32)
    return Segment(
        split="train",
        document=document,
        offset=0,
        tokens=tokens,
        loss_mask=loss_mask,
        token_bytes=np.ones(len(tokens), np.uint32),
        digest=hashlib.sha256(tokens.tobytes()).digest()[:16],
    )


def local_teacher(folder: Path, vocabulary: int, **settings: Any) -> TransformersTeacher:
    """A teacher of a saved model, on the CPU."""
    teacher_settings = TeacherSettings(name=str(folder), **settings)
    return TransformersTeacher(load(teacher_settings, teacher_shape(teacher_settings), [CPU]), vocabulary)


def request_for(
    keep: Any,
    vocabulary: int,
    hidden: HiddenSpec | None = None,
    tables: Mapping[str, Floats] | None = None,
    **more: Any,
) -> TargetRequest:
    """A question for a kind of target, with all scalars that any teacher has."""
    targets = TargetSpec(keep=keep, **{"temperatures": (2.0, 4.0), **more})
    hidden = hidden or HiddenSpec()
    return TargetRequest(targets=targets, hidden=hidden, vocabulary_size=vocabulary, seed=5, tables=tables or {})


class Truth:
    """The slow twin: a model in float64 that reads each document alone, its whole distribution kept."""

    def __init__(self, folder: Path, vocabulary: int, dtype: torch.dtype = torch.float64, **options: Any) -> None:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
        self._model = model.eval()
        self._vocabulary = vocabulary

    def logprobs(self, segment: Segment) -> Doubles:
        """Log p [T, V] at T = 1."""
        with torch.inference_mode():
            logits = self._read(segment).logits[0, :, : self._vocabulary].double()
        found: Doubles = logits.log_softmax(-1).numpy()
        return found

    def states(self, segment: Segment, layer: int) -> Doubles:
        """The states [T, H] of a layer."""
        with torch.inference_mode():
            found: Doubles = self._read(segment).hidden_states[layer][0].double().numpy()
        return found

    def _read(self, segment: Segment) -> Any:
        ids = torch.from_numpy(segment.tokens.astype(np.int64))[None]
        return self._model(ids, use_cache=False, output_hidden_states=True)


class ListedTeacher:
    """Predicts as a served model would: the top ids of a bigram table, and the label's own log p."""

    output_head = None

    def __init__(self, vocabulary: int, most: int) -> None:
        logits = np.random.default_rng(3).normal(size=(vocabulary, vocabulary)) * 2.0
        self.table: Doubles = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        self._most = most

    @property
    def record(self) -> manifest.TeacherRecord:
        return manifest.TeacherRecord(name="listed", dtype="unknown", full_distribution=False)

    def head_tables(self) -> dict[str, Any]:
        return {}

    def predict(self, batches: Iterable[Sequence[Segment]], request: TargetRequest) -> Iterator[CaptureResult]:
        targets = request.targets
        keep = targets.keep
        if not isinstance(keep, TopK) or keep.k > self._most or targets.entropy or targets.temperatures:
            raise ConfigError(f"this teacher returns its {self._most} most probable ids and nothing else")
        for batch in batches:
            yield CaptureResult(block=self._block(batch, keep.k))

    def fidelity(self) -> None:
        return None

    def bare_seconds(self, batches: Iterable[Sequence[Segment]]) -> None:
        return None

    def _block(self, batch: Sequence[Segment], k: int) -> Block:
        tokens = np.concatenate([segment.tokens for segment in batch])
        labels = np.concatenate([np.append(segment.tokens[1:], 0) for segment in batch])
        trained = np.concatenate([segment.loss_mask for segment in batch])
        rows = self.table[tokens]
        ids = np.argsort(-rows, axis=1, kind="stable")[:, :k]
        logprobs = np.take_along_axis(rows, ids, axis=1)
        tail = np.log1p(-np.exp(logprobs).sum(axis=1))
        return Block(
            n_exact=np.where(trained, k, 0),
            n_draws=np.zeros(len(tokens), np.int64),
            ids=ids[trained].ravel(),
            logprobs=logprobs[trained].ravel().astype(np.float32),
            log_tail=np.where(trained, tail, np.nan).astype(np.float32),
            label_logprob=np.where(trained, rows[np.arange(len(rows)), labels], np.nan).astype(np.float32),
        )


class ListedBackend:
    """A backend as a served teacher needs one: no devices, no weights, its own tokenizer, top ids only."""

    most = 20

    def __init__(self, teacher: TeacherSettings, machine: MachineSettings) -> None:
        self._settings, self._machine = teacher, machine

    def describe(self) -> TeacherInfo:
        return TeacherInfo(
            name="listed", max_positions=256, full_distribution=False, max_top_k=self.most, batch_tokens=512
        )

    def tokenizer(self, chat_template: str | None) -> LoadedTokenizer:
        return model_tokenizer(self._settings, chat_template)

    def has_tokenizer(self) -> bool:
        return True

    def workers(self) -> list[MachineSettings]:
        return [self._machine]

    def load(self, vocabulary_size: int) -> ListedTeacher:
        return ListedTeacher(vocabulary_size, self.most)

    @staticmethod
    def recorded(name: str, record: manifest.TeacherRecord) -> TeacherSettings:
        return TeacherSettings(name=name)

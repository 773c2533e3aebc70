"""Teachers for tests, the pieces they read, and the dense float64 truth that their answers are held against.

In: model folders of `models.py`. Out: `LocalTeacher`s, `Segment`s, log-probabilities of one document read alone; and a
teacher that shows its top candidates only.
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
from kdpipe.pipeline.teachers import CaptureResult
from kdpipe.pipeline.teachers.load_teacher import load
from kdpipe.pipeline.teachers.local_teacher import LocalTeacher
from kdpipe.pipeline.teachers.shape import teacher_shape
from kdpipe.schemas import manifest
from kdpipe.schemas.capture_settings import TeacherSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.targets import HiddenSpec, TargetSpec, TopK

Doubles = npt.NDArray[np.float64]
CPU = torch.device("cpu")


def pieces_of(lengths: Iterable[int], vocabulary: int, seed: int = 0) -> list[Segment]:
    """Documents of random tokens; all of each is to be learnt, but for a stretch of the odd ones."""
    random = np.random.default_rng(seed)
    found = []
    for document, length in enumerate(lengths):
        trained = np.ones(length, np.bool_)
        trained[-1] = False
        if document % 2:
            trained[: length // 3] = False
        found.append(piece_of(random.integers(3, vocabulary, length), document, trained))
    return found


def piece_of(tokens: npt.NDArray[Any], document: int, loss_mask: npt.NDArray[np.bool_]) -> Segment:
    """A piece of given tokens."""
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


def local_teacher(folder: Path, vocabulary: int, **settings: Any) -> LocalTeacher:
    """A teacher of a saved model, on the CPU."""
    told = TeacherSettings(name=str(folder), **settings)
    return LocalTeacher(load(told, teacher_shape(told), [CPU]), vocabulary)


def asked_for(
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

    def logprobs(self, piece: Segment) -> Doubles:
        """Log p [T, V] at T = 1."""
        with torch.inference_mode():
            logits = self._read(piece).logits[0, :, : self._vocabulary].double()
        found: Doubles = logits.log_softmax(-1).numpy()
        return found

    def states(self, piece: Segment, layer: int) -> Doubles:
        """The states [T, H] of a layer."""
        with torch.inference_mode():
            found: Doubles = self._read(piece).hidden_states[layer][0].double().numpy()
        return found

    def _read(self, piece: Segment) -> Any:
        ids = torch.from_numpy(piece.tokens.astype(np.int64))[None]
        return self._model(ids, use_cache=False, output_hidden_states=True)


class ListedTeacher:
    """Answers as a served model would: the top candidates of a bigram table, and the label's own log p."""

    def __init__(self, vocabulary: int, most: int) -> None:
        logits = np.random.default_rng(3).normal(size=(vocabulary, vocabulary)) * 2.0
        self.table: Doubles = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        self._most = most

    @property
    def facts(self) -> manifest.TeacherRecord:
        """Who it is."""
        return manifest.TeacherRecord(name="listed", dtype="unknown", full_distribution=False)

    def answers(self, batches: Iterable[Sequence[Segment]], asked: TargetRequest) -> Iterator[CaptureResult]:
        """Look every token up."""
        targets = asked.targets
        keep = targets.keep
        if not isinstance(keep, TopK) or keep.k > self._most or targets.entropy or targets.temperatures:
            raise ConfigError(f"this teacher shows its {self._most} most probable ids and nothing else")
        for batch in batches:
            yield CaptureResult(block=self._block(batch, keep.k))

    def measured(self) -> None:
        """Nobody can compare with what was never shown."""

    def _block(self, batch: Sequence[Segment], k: int) -> Block:
        tokens = np.concatenate([piece.tokens for piece in batch])
        labels = np.concatenate([np.append(piece.tokens[1:], 0) for piece in batch])
        trained = np.concatenate([piece.loss_mask for piece in batch])
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

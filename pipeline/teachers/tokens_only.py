"""No teacher: caches of kind `none` hold tokens only, and no model is loaded for them."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from kdpipe.cache.format.rows import Block
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.pipeline.teachers import CaptureResult, Table, TeacherInfo
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer, has_tokenizer, load_tokenizer
from kdpipe.schemas import manifest
from kdpipe.schemas.capture_settings import MachineSettings, TeacherSettings
from kdpipe.schemas.errors import ConfigError

BATCH_TOKENS = 16384


class TokensOnlyTeacher:
    """Implements `Teacher` with empty rows."""

    record = output_head = None

    def head_tables(self) -> dict[str, Table]:
        return {}

    def predict(self, batches: Iterable[Sequence[Segment]], request: TargetRequest) -> Iterator[CaptureResult]:
        for batch in batches:
            zeros = np.zeros(sum(len(segment) for segment in batch), np.int32)
            logprobs = np.zeros(0, np.float32)
            yield CaptureResult(block=Block(n_exact=zeros, n_draws=zeros, ids=zeros[:0], logprobs=logprobs))

    def fidelity(self) -> None:
        return None

    def bare_seconds(self, batches: Iterable[Sequence[Segment]]) -> None:
        return None


class TokensOnlyBackend:
    """Implements `TeacherBackend`; of the teacher's settings only the tokenizer counts."""

    def __init__(self, teacher: TeacherSettings, machine: MachineSettings) -> None:
        self._settings, self._machine = teacher, machine

    def describe(self) -> TeacherInfo:
        return TeacherInfo(name=None, batch_tokens=self._machine.batch_tokens or BATCH_TOKENS)

    def tokenizer(self, chat_template: str | None) -> LoadedTokenizer:
        return model_tokenizer(self._settings, chat_template)

    def has_tokenizer(self) -> bool:
        return model_has_tokenizer(self._settings)

    def workers(self) -> list[MachineSettings]:
        return [self._machine]

    def load(self, vocabulary_size: int) -> TokensOnlyTeacher:
        return TokensOnlyTeacher()

    @staticmethod
    def recorded(name: str, record: manifest.TeacherRecord) -> TeacherSettings:
        return TeacherSettings(name=name)


def model_tokenizer(settings: TeacherSettings, chat_template: str | None) -> LoadedTokenizer:
    """The tokenizer in a model's folder or repository."""
    if settings.name is None:
        raise ConfigError("no tokenizer is given", hint="give --tokenizer, or --teacher to use the teacher's own")
    return load_tokenizer(
        settings.name,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        chat_template=chat_template,
    )


def model_has_tokenizer(settings: TeacherSettings) -> bool:
    """Whether a model's folder or repository has a tokenizer."""
    return settings.name is not None and has_tokenizer(settings.name, settings.revision)

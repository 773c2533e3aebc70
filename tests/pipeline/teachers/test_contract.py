"""Every teacher keeps the contract of the seam."""

from functools import cache
from pathlib import Path

import pytest

from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.pipeline.teachers.local_teacher import LocalTeacher
from kdpipe.schemas.targets import Threshold, TopK
from support.models import tiny_llama
from support.teacher_contract import TeacherContract
from support.teachers import Doubles, ListedTeacher, Truth, asked_for, local_teacher


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), vocabulary=TeacherContract.vocabulary + 4)


class TestLocalTeacher(TeacherContract):
    @pytest.fixture(autouse=True)
    def model(self, saved: Path) -> None:
        self.folder = saved

    def teacher(self) -> LocalTeacher:
        return _loaded(self.folder, self.vocabulary)

    def asked(self) -> TargetRequest:
        return asked_for(TopK(k=8), self.vocabulary)

    def refused(self) -> None:
        """It knows everything."""

    def truth(self, piece: Segment) -> Doubles:
        return _truth(self.folder, self.vocabulary).logprobs(piece)


class TestListedTeacher(TeacherContract):
    def teacher(self) -> ListedTeacher:
        return _listed(self.vocabulary)

    def asked(self) -> TargetRequest:
        return asked_for(TopK(k=8), self.vocabulary, temperatures=(), entropy=False)

    def refused(self) -> TargetRequest:
        return asked_for(Threshold(tau=0.1), self.vocabulary)

    def truth(self, piece: Segment) -> Doubles:
        return _listed(self.vocabulary).table[piece.tokens]


@cache
def _loaded(folder: Path, vocabulary: int) -> LocalTeacher:
    return local_teacher(folder, vocabulary)


@cache
def _truth(folder: Path, vocabulary: int) -> Truth:
    return Truth(folder, vocabulary)


@cache
def _listed(vocabulary: int) -> ListedTeacher:
    return ListedTeacher(vocabulary, most=20)

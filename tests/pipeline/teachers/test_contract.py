"""Every teacher of a backend passes the contract suite."""

from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.pipeline.teachers import backend_type
from kdpipe.pipeline.teachers.transformers_teacher import TransformersTeacher
from kdpipe.schemas.capture_settings import MachineSettings, TeacherSettings
from kdpipe.schemas.choices import TeacherBackendName
from kdpipe.schemas.member_tables import TEACHER_BACKENDS
from kdpipe.schemas.target_kinds import Threshold, TopK
from support.models import tiny_llama
from support.teacher_contract import TeacherContract
from support.teachers import Doubles, ListedTeacher, Truth, local_teacher, request_for


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), vocabulary=TeacherContract.vocabulary + 4)


class TestTransformersTeacher(TeacherContract):
    @pytest.fixture(autouse=True)
    def model(self, saved: Path) -> None:
        self.folder = saved

    def teacher(self) -> TransformersTeacher:
        return _loaded(self.folder, self.vocabulary)

    def request(self) -> TargetRequest:
        return request_for(TopK(k=8), self.vocabulary)

    def refused(self) -> None:
        """It knows everything."""

    def truth(self, segment: Segment) -> Doubles:
        return _truth(self.folder, self.vocabulary).logprobs(segment)


class TestListedTeacher(TeacherContract):
    def teacher(self) -> ListedTeacher:
        return _listed(self.vocabulary)

    def request(self) -> TargetRequest:
        return request_for(TopK(k=8), self.vocabulary, temperatures=(), entropy=False)

    def refused(self) -> TargetRequest:
        return request_for(Threshold(tau=0.1), self.vocabulary)

    def truth(self, segment: Segment) -> Doubles:
        return _listed(self.vocabulary).table[segment.tokens]


CONTRACTS = {"transformers": TestTransformersTeacher}


def test_every_backend_has_a_teacher_under_contract() -> None:
    assert set(CONTRACTS) == set(TEACHER_BACKENDS) == set(get_args(TeacherBackendName))


@pytest.mark.parametrize("name", TEACHER_BACKENDS)
def test_a_backend_describes_the_teacher_that_it_loads(name: TeacherBackendName, saved: Path) -> None:
    backend = backend_type(name)(TeacherSettings(name=str(saved)), MachineSettings(devices="cpu", threads=1))
    info, record = backend.describe(), backend.load(TeacherContract.vocabulary).record
    assert record is not None and info.name == str(saved) and info.weight_bytes > 0
    assert (record.n_layers, record.hidden_size) == (len(info.widths) - 1, info.widths[0])
    assert record.full_distribution == info.full_distribution
    assert len(backend.workers()) == 1
    again = backend.recorded(str(saved), record)
    assert (again.name, again.quantize) == (str(saved), "none")


@cache
def _loaded(folder: Path, vocabulary: int) -> TransformersTeacher:
    return local_teacher(folder, vocabulary)


@cache
def _truth(folder: Path, vocabulary: int) -> Truth:
    return Truth(folder, vocabulary)


@cache
def _listed(vocabulary: int) -> ListedTeacher:
    return ListedTeacher(vocabulary, most=20)

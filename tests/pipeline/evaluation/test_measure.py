"""What is measured equals the slow twin for every kind of target; what is unknown is reported as unknown."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdpipe.cache import Cache, open_cache
from kdpipe.pipeline.batches.collate import BatchContents
from kdpipe.pipeline.batches.micro_batch import MicroBatch
from kdpipe.pipeline.evaluation.measure import Evaluator, TrainingObjective, document_numbers
from kdpipe.pipeline.evaluation.tally import ENTROPY_EDGES, evaluated_sequences
from kdpipe.pipeline.losses.dense_chunk import teacher_head
from kdpipe.pipeline.losses.head_chunks import HeadLosses
from kdpipe.pipeline.losses.objective import Objective
from kdpipe.pipeline.losses.terms import ActiveTerms, LossOptions
from kdpipe.pipeline.models.head import Head
from kdpipe.pipeline.models.precision import PRECISIONS
from kdpipe.pipeline.students.presets import TokenIds
from kdpipe.pipeline.students.student import CallableHead, Student
from kdpipe.schemas.errors import ConfigError, KdpipeError
from kdpipe.schemas.train_report import Evaluation
from support.arbitrary import Wish, write
from support.eval_twin import Row, numbers_of, rows_of
from support.kinds import KINDS, make_kind
from support.models import tiny_llama
from support.students import student
from support.tiny import unsynced

ESTIMATES = {
    "threshold": "unbiased", "threshold-at-2": "lower_bound", "sampled": "unbiased", "sampled-at-2": "lower_bound",
    "topk": "lower_bound", "topk-at-2": "lower_bound", "topp": "lower_bound", "state": "exact",
    "state-capped": "exact", "imported": "lower_bound", "imported-tail-unknown": None, "none": None,
}  # fmt: skip
IDS = TokenIds(count=300, longest=64)
FP32 = PRECISIONS["fp32"]


@pytest.fixture(scope="module")
def train_state(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return student(tiny_llama(tmp_path_factory.mktemp("student"), vocabulary=310, hidden=32, layers=1), IDS)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cache of every kind."""
    folder = tmp_path_factory.mktemp("caches")
    with unsynced():
        for kind in ESTIMATES:
            make_kind(folder / kind, kind)
    return folder


def opened(caches: Path, kind: str) -> Cache:
    return open_cache(caches / kind, "train")


def close(result: float | None, expected: float | None) -> bool:
    if result is None or expected is None:
        return result is expected
    return math.isclose(result, expected, rel_tol=2e-5, abs_tol=2e-5)


@pytest.mark.parametrize("kind", ESTIMATES)
def test_every_metric_equals_that_of_the_slow_twin(caches: Path, train_state: Student, kind: str) -> None:
    cache = opened(caches, kind)
    result = Evaluator(cache, teacher_head(cache), batch_size=2).measure(train_state, FP32)
    rows = rows_of(train_state.model, cache, range(len(cache)))
    if kind == "state-capped":  # the cache's own dense form is at its target temperature, 2
        rows = [replace(row, kl=None) for row in rows]
        result = result.model_copy(update={"kl_teacher": None, "by_entropy": ()})
    expected = numbers_of(rows)
    for name, value in expected.items():
        assert close(getattr(result, name), value), (name, getattr(result, name), value)
    assert result.perplexity is not None
    assert math.isclose(result.perplexity, math.exp(result.cross_entropy))
    assert result.kl_teacher_estimate == ESTIMATES[kind]
    assert (result.cache_id, result.split, result.loss, result.terms) == (cache.cache_id, "train", None, {})
    check_buckets(result, rows)
    check_documents(result, rows)


def check_buckets(result: Evaluation, rows: list[Row]) -> None:
    """By the teacher's entropy, between fixed bounds."""
    if not result.by_entropy:
        return
    assert [one.from_nats for one in result.by_entropy] == list(ENTROPY_EDGES)
    assert sum(one.positions for one in result.by_entropy) == len([row for row in rows if row.entropy is not None])
    for one in result.by_entropy:
        high = math.inf if one.to_nats is None else one.to_nats
        own = [row for row in rows if row.entropy is not None and one.from_nats <= max(row.entropy, 0.0) < high]
        for name, value in numbers_of(own).items():
            assert close(getattr(one, name), value), (name, one, value)


def check_documents(result: Evaluation, rows: list[Row]) -> None:
    """Sums of each document, whatever sequences its pieces are in."""
    by_document = result.by_document
    assert set(by_document.numbers) == {row.document for row in rows}
    for i, number in enumerate(by_document.numbers):
        own = [row for row in rows if row.document == number]
        assert by_document.positions[i] == len(own)
        assert close(by_document.cross_entropy[i], sum(row.cross_entropy for row in own))
        if by_document.kl_teacher is not None and own[0].kl is not None:
            assert math.isclose(
                by_document.kl_teacher[i], sum(row.kl or 0.0 for row in own), rel_tol=2e-5, abs_tol=1e-3
            )
        if by_document.agreed is not None:
            assert by_document.agreed[i] == sum(bool(row.agreed) for row in own)
    assert sum(by_document.positions) == result.positions == len(rows)


def test_rows_count_for_their_own_document() -> None:
    batch = MicroBatch(
        numbers=(0, 1),
        documents=((40, 41, 42), (42,)),
        tokens_BT=torch.zeros((2, 5), dtype=torch.long),
        document_BT=torch.tensor([[0, 0, 1, 2, 2], [0, 0, 0, -1, -1]]),
        places_N=torch.tensor([0, 2, 4, 5, 6]),
        sequence_N=torch.tensor([0, 0, 0, 1, 1]),
        labels_N=torch.zeros(5, dtype=torch.long),
    )
    assert document_numbers(batch).tolist() == [40, 41, 42, 42, 42]


def test_an_evaluation_reads_one_split(caches: Path) -> None:
    with pytest.raises(ConfigError, match="one split"):
        Evaluator(open_cache(caches / "threshold"), None, batch_size=2)


def test_results_do_not_depend_on_batches_and_threads(caches: Path, train_state: Student) -> None:
    cache = opened(caches, "threshold")
    one = Evaluator(cache, None, batch_size=1).measure(train_state, FP32)
    other = Evaluator(cache, None, batch_size=5, threads=3).measure(train_state, FP32)
    assert one.by_document.numbers == other.by_document.numbers
    assert math.isclose(one.cross_entropy, other.cross_entropy, rel_tol=1e-6)
    assert one.top1_agreement == other.top1_agreement


def test_a_limit_selects_the_same_sequences_each_time(caches: Path, train_state: Student) -> None:
    cache = opened(caches, "threshold")
    chosen = evaluated_sequences(cache, 1)
    assert chosen == sorted(set(chosen)) == evaluated_sequences(cache, 1)
    assert len(chosen) == 1 < len(cache)
    result = Evaluator(cache, None, batch_size=2, limit=1).measure(train_state, FP32)
    rows = rows_of(train_state.model, cache, chosen)
    assert set(result.by_document.numbers) == {row.document for row in rows}
    assert close(result.cross_entropy, numbers_of(rows)["cross_entropy"])
    assert evaluated_sequences(cache, 10_000) == list(range(len(cache)))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_objective_has_the_weights_of_training(caches: Path, train_state: Student, batch_size: int) -> None:
    cache = opened(caches, "threshold")
    objective = Objective(HeadLosses(train_state.head, LossOptions()), None, ())
    terms = ActiveTerms(weights={"ce": 0.25, "forward_kl": 0.75}, temperature=1.0)
    result = Evaluator(cache, None, batch_size=batch_size).measure(
        train_state, FP32, TrainingObjective(objective=objective, terms=terms)
    )
    expected = numbers_of(rows_of(train_state.model, cache, range(len(cache))))
    assert expected["cross_entropy"] is not None and expected["kl_teacher"] is not None
    assert result.loss is not None
    assert math.isclose(result.loss, 0.25 * expected["cross_entropy"] + 0.75 * expected["kl_teacher"], rel_tol=2e-5)
    assert set(result.terms) == {"ce", "forward_kl"}
    assert math.isclose(result.terms["forward_kl"], expected["kl_teacher"], rel_tol=2e-5)


def test_a_term_is_weighted_by_the_squared_temperature(caches: Path, train_state: Student) -> None:
    cache = opened(caches, "topk")
    objective = Objective(HeadLosses(train_state.head, LossOptions(tail_weight=0.0)), None, ())
    terms = ActiveTerms(weights={"forward_kl": 0.5}, temperature=2.0)
    result = Evaluator(cache, None, batch_size=2).measure(
        train_state, FP32, TrainingObjective(objective=objective, terms=terms)
    )
    assert result.loss is not None
    assert math.isclose(result.loss, 0.5 * 4 * result.terms["forward_kl"], rel_tol=1e-6)


def test_an_evaluation_leaves_the_student_unchanged(caches: Path, train_state: Student) -> None:
    evaluator = Evaluator(opened(caches, "none"), None, batch_size=2)
    for mode in (True, False):
        train_state.model.train(mode)
        evaluator.measure(train_state, FP32)
        assert train_state.model.training is mode
    train_state.model.eval()
    assert all(parameter.grad is None for parameter in train_state.model.parameters())


def test_a_callable_head_gives_the_same_metrics(
    caches: Path, train_state: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = opened(caches, "threshold")
    plain = Evaluator(cache, None, batch_size=2).measure(train_state, FP32)
    assert isinstance(train_state.head, Head)
    called = CallableHead(module=train_state.head.module, vocabulary_size=train_state.head.vocabulary_size)
    monkeypatch.setattr(train_state, "head", called)
    result = Evaluator(cache, None, batch_size=2).measure(train_state, FP32)
    assert result.kl_teacher == pytest.approx(plain.kl_teacher, rel=1e-5)
    assert result.by_document.kl_teacher == pytest.approx(plain.by_document.kl_teacher, rel=1e-4)
    assert result.by_document.agreed == plain.by_document.agreed


def test_half_precision_is_close_to_single_precision(caches: Path, train_state: Student) -> None:
    evaluator = Evaluator(opened(caches, "threshold"), None, batch_size=2)
    full, half = evaluator.measure(train_state, FP32), evaluator.measure(train_state, PRECISIONS["bf16"])
    assert half.cross_entropy != full.cross_entropy
    assert math.isclose(half.cross_entropy, full.cross_entropy, rel_tol=0.02)


def test_metrics_that_are_not_finite_are_refused_with_their_document(caches: Path, tmp_path: Path) -> None:
    broken = student(tiny_llama(tmp_path / "s", vocabulary=300, hidden=32, layers=1), IDS)
    with torch.no_grad():
        broken.model.get_output_embeddings().weight[7] = float("nan")
    evaluator = Evaluator(opened(caches, "threshold"), None, batch_size=1)
    with pytest.raises(KdpipeError, match="cross-entropy is nan in document 0") as caught:
        evaluator.measure(broken, FP32)
    assert "at a lower --lr" in str(caught.value.hint)


def test_nothing_to_evaluate_is_refused(tmp_path: Path, train_state: Student) -> None:
    wish = Wish(keep=KINDS["none"].targets.keep, part_lengths=((1, 1),))
    cache = open_cache(write(tmp_path / "c", wish), "train")
    with pytest.raises(ConfigError, match="no positions to evaluate"):
        Evaluator(cache, None, batch_size=2, wants=BatchContents()).measure(train_state, FP32)

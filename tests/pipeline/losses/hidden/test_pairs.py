"""Which layers meet: by depth, by hand, and what is refused."""

import pytest

from kdpipe.pipeline.losses.hidden.pairs import LayerPair, LayerPairs, layer_pairs
from kdpipe.pipeline.losses.terms import HiddenName
from kdpipe.schemas.errors import ConfigError, Incompatible, KdpipeError
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.train_settings import HiddenLossSettings
from support.hidden_batches import manifest_with
from support.tiny import manifest_of

TWELVE = manifest_with(rows={6: 5, 12: 5}, pooled={3: 6, 12: 6})


def paired(
    *pairs: str,
    terms: tuple[HiddenName, ...] = ("cosine", "document_relations"),
    n: int = 4,
    manifest: Manifest = TWELVE,
    router: bool = False,
) -> LayerPairs:
    return layer_pairs(HiddenLossSettings(pairs=pairs, router=router), manifest, n, terms)


def refused(kind: type[KdpipeError], *pairs: str, **how: object) -> tuple[str, str]:
    with pytest.raises(kind) as found:
        paired(*pairs, **how)  # type: ignore[arg-type]
    return found.value.message, found.value.hint or ""


def as_numbers(pairs: tuple[LayerPair, ...]) -> list[tuple[int, int]]:
    return [(pair.student, pair.teacher) for pair in pairs]


def test_layers_meet_by_depth() -> None:
    found = paired()
    assert as_numbers(found.rows) == [(2, 6), (4, 12)]
    assert as_numbers(found.pooled) == [(1, 3), (4, 12)]
    assert found.students == (1, 2, 4)


@pytest.mark.parametrize(
    ("n", "layer", "student"),
    [(1, 6, 1), (1, 5, 0), (3, 6, 2), (5, 6, 3), (2, 3, 1), (2, 2, 0), (24, 7, 14), (6, 0, 0), (6, 12, 6)],
)
def test_depth_is_rounded_half_up(n: int, layer: int, student: int) -> None:
    found = paired(n=n, manifest=manifest_with(rows={layer: 5}), terms=("mse",))
    assert as_numbers(found.rows) == [(student, layer)]


def test_what_no_term_compares_is_not_paired() -> None:
    assert paired(terms=("cka",)).pooled == ()
    assert paired(terms=("document_relations",)).rows == ()
    assert paired(terms=("router_balance",)) == LayerPairs()


def test_pairs_by_hand_go_where_the_layer_is_kept() -> None:
    found = paired("1:3", "0.75:6", "4:12", "0.0:6")
    assert as_numbers(found.rows) == [(3, 6), (4, 12), (0, 6)]
    assert as_numbers(found.pooled) == [(1, 3), (4, 12)]


def test_a_share_of_the_depth_differs_from_a_number_by_its_point() -> None:
    assert as_numbers(paired("1:6", "1.0:12", terms=("cosine",)).rows) == [(1, 6), (4, 12)]


def test_a_router_has_a_student_layer_once() -> None:
    assert as_numbers(paired(n=1, terms=("cosine",), router=True).rows) == [(1, 6)]
    assert as_numbers(paired(n=1, terms=("cosine",)).rows) == [(1, 6), (1, 12)]
    message, hint = refused(ConfigError, "2:6", "0.5:12", terms=("cosine",), router=True)
    assert "student layer 2 " in message and hint


def test_a_layer_that_is_not_cached_is_refused_with_those_that_are() -> None:
    message, hint = refused(Incompatible, "2:7")
    assert "teacher layer 7;" in message
    assert "states of rows of layers 6, 12 and pooled states of layers 3, 12" in message
    assert "--hidden-layers" in hint


def test_a_layer_counts_as_cached_only_where_a_term_looks() -> None:
    message, _ = refused(Incompatible, "2:3", terms=("cosine",))
    assert "teacher layer 3;" in message
    assert "states of rows of layers 6, 12" in message and "pooled" not in message


def test_pairs_that_leave_a_term_with_nothing_are_refused() -> None:
    message, hint = refused(Incompatible, "2:6")
    assert "no layer with cached pooled states" in message and hint


@pytest.mark.parametrize("pair", ["5:6", "1.1:6"])
def test_a_layer_that_the_student_has_not_is_refused(pair: str) -> None:
    message, hint = refused(ConfigError, pair, n=4 if pair == "5:6" else 10)
    assert pair in message and hint


def test_a_pair_that_is_named_twice_is_refused() -> None:
    assert "duplicate" in refused(ConfigError, "2:6", "0.5:6")[0]


@pytest.mark.parametrize(
    ("terms", "what", "again"),
    [
        (("correlation",), "no states of rows, which losses.weights.correlation", "--hidden-layers"),
        (("document_relations",), "no pooled states, which losses.weights.document_relations", "hidden.pooled"),
    ],
)
def test_a_cache_without_the_states_is_refused(terms: tuple[HiddenName, ...], what: str, again: str) -> None:
    message, hint = refused(Incompatible, terms=terms, manifest=manifest_with(rows={}, pooled={}))
    assert what in message
    assert again in hint


@pytest.mark.parametrize("manifest", [manifest_with(n_layers=None), manifest_of().model_copy(update={"teacher": None})])
def test_a_teacher_of_unknown_depth_is_met_by_hand_alone(manifest: Manifest) -> None:
    _, hint = refused(Incompatible, manifest=manifest)
    assert "--set losses.hidden.pairs=4:" in hint
    layer = manifest.hidden.rows[-1].layer
    assert as_numbers(paired(f"4:{layer}", terms=("cosine",), manifest=manifest).rows) == [(4, layer)]

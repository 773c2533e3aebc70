"""`c.dense(i)` against the float64 twin for every kind of target, and the two refusals."""

from pathlib import Path

import numpy as np
import pytest

from kdpipe.cache import open_cache
from kdpipe.schemas.errors import Incompatible
from kdpipe.schemas.target_kinds import Imported, NoTargets, Sampled, State, Threshold, TopK, TopP
from kdpipe.schemas.targets import KeptSpec
from support.arbitrary import Wish, write
from support.reference import dense_target, expected_rows

KEPT: dict[str, KeptSpec] = {
    "threshold": Threshold(tau=0.1, max_entries=12),
    "sampled": Sampled(draws=9),
    "topk": TopK(k=8),
    "topk of all": TopK(k=4096),
    "topp": TopP(p=0.9, max_entries=20),
    "imported": Imported(source="elsewhere", max_entries=5, tail_known=True),
    "state": State(width=6, group=4),
    "state with bias": State(width=6, group=6, head_bias=True, head_dtype="bfloat16"),
    "state, capped and scaled": State(width=5, group=2, soft_cap=3.0, logit_scale=0.5, head_dtype="float16"),
}


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("kind", KEPT)
def test_dense_targets_are_those_of_the_twin(tmp_path: Path, kind: str, temperature: float) -> None:
    wish = Wish(
        keep=KEPT[kind],
        vocabulary_size=23,
        target_temperature=temperature,
        temperatures=(2.0, 0.5),
        part_lengths=((30, 1), (12,)),
    )
    cache = open_cache(write(tmp_path / "c", wish))
    for i, (sequence, block) in enumerate(wish.pairs):
        expected = expected_rows(sequence, block, wish.manifest, wish.tables["ids_by_rank"].tolist())
        dense = cache.dense(i)
        assert dense.dtype == np.float32
        assert dense.shape == (len(sequence.tokens), 23)
        twin = dense_target(expected, sequence, wish.manifest, wish.tables)
        np.testing.assert_array_equal(np.isnan(dense), np.isnan(twin))
        # Weights are float32: what topk leaves to spread is 1 minus their sum, so compare probabilities.
        np.testing.assert_allclose(np.exp(dense), np.exp(twin), rtol=1e-4, atol=1e-7)
        kept = twin > np.log(1e-4)
        np.testing.assert_allclose(dense[kept], twin[kept], rtol=1e-3, atol=1e-4)
        if not wish.targets.has_draws:
            np.testing.assert_allclose(np.exp(dense[sequence.loss_mask]).sum(axis=1), 1.0, atol=1e-5)


def test_dense_targets_that_a_source_lacks_are_refused(tmp_path: Path) -> None:
    blind = Imported(source="elsewhere", max_entries=5, tail_known=False)
    cache = open_cache(write(tmp_path / "blind", Wish(keep=blind)))
    with pytest.raises(Incompatible, match="the tail mass of this cache is unknown"):
        cache.dense(0)
    cache = open_cache(write(tmp_path / "none", Wish(keep=NoTargets())))
    with pytest.raises(Incompatible, match="has tokens only, no targets") as refused:
        cache.dense(0)
    assert "--targets" in str(refused.value.hint)

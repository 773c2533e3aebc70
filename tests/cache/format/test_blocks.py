"""Cutting and joining blocks: what is cut can be joined to the same again, whatever the kind."""

from dataclasses import fields

import numpy as np
import pytest

from kdpipe.cache.format.blocks import cut, join
from kdpipe.cache.format.rows import Block
from support.synthetic import Recipe, synthetic_manifest, synthetic_part


def whole(kind: str) -> list[Block]:
    recipe = Recipe(kind=kind, documents={"train": 12}, documents_per_part=12, sequence_length=64)
    return [block for _, block in synthetic_part(recipe, synthetic_manifest(recipe), 0)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["threshold", "sampled", "topk", "state"])
def test_blocks_that_are_joined_and_cut_are_the_same_blocks(kind: str) -> None:
    blocks = whole(kind)
    assert len(blocks) > 3
    ends = np.cumsum([len(block.n_exact) for block in blocks])
    for before, after in zip(blocks, cut(join(blocks), ends), strict=True):
        for field in fields(Block):
            old, new = getattr(before, field.name), getattr(after, field.name)
            if isinstance(old, np.ndarray):
                np.testing.assert_array_equal(old, new)
            elif old is None:
                assert new is None
            else:
                assert old.keys() == new.keys()
                for key in old:
                    np.testing.assert_array_equal(old[key], new[key])

"""Sample text: the same for the same models, and no draw of anyone else is moved by it."""

from pathlib import Path

import pytest
import torch

from kdpipe.pipeline.sample import samples
from kdpipe.pipeline.small_teacher import TeacherSizes, make_tokenizer, write_corpus
from support.models import tiny_llama


@pytest.mark.slow
def test_models_continue_a_prompt_each_in_its_way_and_again_in_the_same(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl", iter([{"text": "the quick brown fox jumps over the lazy dog"}]))
    folders = [tiny_llama(tmp_path / str(seed), vocabulary=300, hidden=32, layers=1, seed=seed) for seed in (0, 1)]
    make_tokenizer(tmp_path / "corpus.jsonl", tmp_path / "tokenizer", TeacherSizes(vocabulary=300))
    for file in (tmp_path / "tokenizer").iterdir():
        for folder in folders:
            (folder / file.name).write_bytes(file.read_bytes())
    before = torch.get_rng_state()
    one, other = samples(folders, "the quick", 8)
    assert torch.equal(torch.get_rng_state(), before)
    assert one and other and one != other
    assert not one.startswith("the quick"), "the prompt is not repeated"
    assert samples(folders[::-1], "the quick", 8) == [other, one]
    assert samples(folders[:1], "the quick", 8, seed=1) != [one]

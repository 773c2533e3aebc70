"""Texts of small models: batches, draws, stop tokens, limits."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kdpipe.pipeline.generation.text_generator import TextGenerator
from kdpipe.pipeline.tokenizers.tokenizer import load_fast
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.sample_report import SamplingSettings
from support.corpora import small_tokenizer
from support.models import tiny_model

GREEDY = SamplingSettings(temperature=0.0, max_new_tokens=6)
SAMPLED = SamplingSettings(temperature=1.0, max_new_tokens=6)
PROMPTS = ([5, 9, 40], [7], [11, 12, 13, 14, 15, 16, 17])


def generator(folder: Path, family: str = "llama", vocabulary: int = 512, **changes: Any) -> TextGenerator:
    folder = small_tokenizer(tiny_model(family, folder, (vocabulary, 64, 2)))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return TextGenerator(model, load_fast(str(folder)), changes.pop("max_positions", None), **changes)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba", "gemma2"])
def test_a_batch_has_the_texts_of_its_prompts_alone(tmp_path: Path, family: str) -> None:
    own = generator(tmp_path, family)
    for settings in (GREEDY, SAMPLED):
        together = own.generate(PROMPTS, settings)
        assert together == own.generate(PROMPTS, settings, batch_size=1)
        assert together == own.generate(PROMPTS, settings, batch_size=2)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), TypeError("no mask"), ValueError("left padding")])
def test_prompts_are_continued_one_by_one_by_a_model_that_cannot_pad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    own = generator(tmp_path)
    expected, plain = own.generate(PROMPTS, GREEDY, batch_size=1), TextGenerator._run

    def run(self: TextGenerator, prompts: Any, **options: Any) -> Any:
        if len(prompts) > 1:
            raise error
        return plain(self, prompts, **options)

    monkeypatch.setattr(TextGenerator, "_run", run)
    assert generator(tmp_path).generate(PROMPTS, GREEDY) == expected


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("too little"), torch.AcceleratorError("lost"), RuntimeError("can't allocate memory")],
)
def test_errors_of_the_machine_are_not_taken_for_those_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise error

    monkeypatch.setattr(TextGenerator, "_run", refuse)
    with pytest.raises(type(error)) as caught:
        generator(tmp_path).generate(PROMPTS, GREEDY)
    assert caught.value is error


def test_a_greedy_text_has_the_most_probable_tokens(tmp_path: Path) -> None:
    own = generator(tmp_path)
    own.stops = []
    (generated,) = own.generate([PROMPTS[0]], GREEDY)
    ids = torch.tensor([[*PROMPTS[0], *generated.ids]])
    best = own.model(ids).logits[0].argmax(dim=1).tolist()
    assert list(generated.ids) == best[len(PROMPTS[0]) - 1 : -1]
    assert not generated.ended


def test_draws_follow_the_model_at_the_temperature_and_within_top_p(tmp_path: Path) -> None:
    own = generator(tmp_path)
    n = 4000
    logits = own.model(torch.tensor([[7]])).logits[0, -1].detach()
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5)):
        settings = SamplingSettings(temperature=temperature, top_p=top_p, max_new_tokens=1)
        ids = [text.ids[0] if text.ids else own.stops[0] for text in own.generate([[7]] * n, settings, batch_size=n)]
        probabilities = (logits / temperature).softmax(dim=0)
        order = probabilities.argsort(descending=True).tolist()
        kept = [i for i in order if top_p == 1 or probabilities[order[: order.index(i)]].sum() < top_p]
        assert set(ids) <= set(kept)
        drawn, total = Counter(ids), float(probabilities[kept].sum())
        for i in kept[:5]:
            expected = float(probabilities[i]) / total
            assert drawn[i] / n == pytest.approx(expected, abs=4 * (expected * (1 - expected) / n) ** 0.5)


def test_seed_and_prompt_number_determine_a_text_and_no_state_changes(tmp_path: Path) -> None:
    own = generator(tmp_path)
    own.model.generation_config.temperature = 0.3
    before, stated = torch.get_rng_state(), own.model.generation_config.to_dict()
    first = own.generate(PROMPTS, SAMPLED)
    assert first == own.generate(PROMPTS, SAMPLED)
    assert first != own.generate(PROMPTS, SAMPLED.model_copy(update={"seed": 1}))
    same = own.generate([PROMPTS[0]] * 4, SAMPLED)
    assert len({text.ids for text in same}) == 4
    assert torch.equal(torch.get_rng_state(), before)
    assert own.model.generation_config.to_dict() == stated


def test_a_stop_token_ends_a_text(tmp_path: Path) -> None:
    own = generator(tmp_path)
    own.stops = []
    (whole,) = own.generate([PROMPTS[0]], GREEDY)
    own.stops = [whole.ids[3]]
    (short,) = own.generate([PROMPTS[0]], GREEDY)
    assert short.ids == whole.ids[: whole.ids.index(whole.ids[3])]
    assert short.ended


def test_a_stop_rule_ends_a_text_early(tmp_path: Path) -> None:
    own = generator(tmp_path)
    own.stops = [1]
    settings = GREEDY.model_copy(update={"max_new_tokens": 30})
    (whole,) = own.generate([PROMPTS[0]], settings)
    start = whole.text[:4]
    (short,) = own.generate([PROMPTS[0]], settings, stop_rule=lambda text: start in text)
    assert start in short.text
    assert len(short.ids) < len(whole.ids)


def test_ids_beyond_the_tokenizer_are_never_generated(tmp_path: Path) -> None:
    own = generator(tmp_path, vocabulary=600)
    texts = own.generate([[7]] * 200, SamplingSettings(temperature=50.0, max_new_tokens=1), batch_size=200)
    assert max(max(text.ids, default=0) for text in texts) < 512


def test_a_text_is_shown_in_pieces(tmp_path: Path) -> None:
    own, pieces = generator(tmp_path), list[str]()
    (generated,) = own.generate([PROMPTS[0]], SAMPLED.model_copy(update={"max_new_tokens": 40}), show=pieces.append)
    assert "".join(pieces) == generated.text
    assert len(pieces) > 3


def test_prompts_that_do_not_fit_or_are_empty_are_refused(tmp_path: Path) -> None:
    own = generator(tmp_path, max_positions=8)
    own.generate([[5, 6]], GREEDY)
    with pytest.raises(ConfigError, match=r"8 positions.* 3 tokens .* 6 new"):
        own.generate([[5, 6, 7]], GREEDY)
    with pytest.raises(ConfigError, match="no tokens"):
        own.generate([[]], GREEDY)


def test_the_text_keeps_the_space_after_the_prompt(tmp_path: Path) -> None:
    own = generator(tmp_path)
    ids = own.encode("the value")
    assert own.decode(ids[:1], ids[1:]) == "the value".removeprefix(own.decode((), ids[:1]))

"""Prompts continued by models: given ones, and those of a run's cache."""

from pathlib import Path

import pytest
import torch

from kdpipe.cache.opening import open_cache
from kdpipe.pipeline.generation.cache_prompts import TEXT_TOKENS, cache_prompts
from kdpipe.pipeline.sample import ModelRequest, SampleRequest, sample
from kdpipe.pipeline.tokenizers.cached_tokenizer import load_cached_tokenizer
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.progress import SilentProgress
from kdpipe.schemas.sample_report import SampleReport, SamplingSettings
from support import stage_two
from support.corpora import pair_rows, small_tokenizer, write_jsonl
from support.models import tiny_llama

SETTINGS = SamplingSettings(max_new_tokens=8)


def run(*models: Path, prompts: tuple[str, ...] = (), settings: SamplingSettings = SETTINGS) -> SampleReport:
    requests = tuple(ModelRequest(name=str(model), devices="cpu") for model in models)
    return sample(SampleRequest(models=requests, settings=settings, prompts=prompts), SilentProgress())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its cache and teacher."""
    folder = tmp_path_factory.mktemp("run")
    stage_two.make_cache(folder)
    stage_two.run(stage_two.settings_for(folder))
    return folder


def test_models_continue_each_prompt_in_order_and_with_the_same_seed(tmp_path: Path) -> None:
    models = [small_tokenizer(tiny_llama(tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    before = torch.get_rng_state()
    report = run(*models, prompts=("the value", "a name is"))
    assert torch.equal(torch.get_rng_state(), before)
    assert [one.prompt for one in report.samples] == ["the value", "a name is"]
    assert [part.model for part in report.samples[0].continuations] == [str(model) for model in models]
    first, other = (part.text for part in report.samples[0].continuations)
    assert first and other and first != other
    alone = run(models[1], prompts=("the value", "a name is"))
    assert alone.samples[0].continuations[0].text == other
    seeded = run(models[1], prompts=("the value",), settings=SETTINGS.model_copy(update={"seed": 1}))
    assert seeded.samples[0].continuations[0].text != other


def test_without_prompts_three_validation_documents_of_the_run_are_continued(folder: Path) -> None:
    report = run(folder / "run", folder / "teacher")
    split = open_cache(folder / "cache", "validation")
    prompts = cache_prompts(split, 3)
    assert [one.document for one in report.samples] == [prompt.document for prompt in prompts]
    assert all(len(prompt.ids) <= TEXT_TOKENS for prompt in prompts)
    tokens = split.tokens(0).tokens.tolist()
    assert list(prompts[0].ids) == tokens[: len(prompts[0].ids)]
    assert report.notes == ()
    assert [model.name for model in report.models] == [str(folder / "run"), str(folder / "teacher")]
    assert report.models[1].n_parameters > 0


def test_the_prompt_of_a_pair_ends_where_its_response_begins(tmp_path: Path) -> None:
    stage_two.stage_one.make_inputs(tmp_path)
    write_jsonl(tmp_path / "corpus.jsonl", pair_rows())
    cache = stage_two.make_cache(tmp_path, data={"val_fraction": 0.2})
    split = open_cache(cache, "validation")
    for prompt in cache_prompts(split, 3):
        sequences = [split.tokens(number) for number in range(len(split))]
        starts = [
            (rows, start)
            for rows in sequences
            for document, start in zip(rows.documents, rows.document_starts, strict=True)
            if document == prompt.document
        ]
        rows, start = starts[0]
        n = len(prompt.ids)
        assert rows.tokens[start : start + n].tolist() == list(prompt.ids)
        assert not rows.loss_mask[start : start + n - 1].any() and rows.loss_mask[start + n - 1]


def test_a_prompt_is_the_start_of_a_document_whose_last_piece_is_stored_first(tmp_path: Path) -> None:
    stage_two.stage_one.make_inputs(tmp_path)
    long, short = "first words of it, " + "then many more words " * 40, "a short text of some words. " * 2
    write_jsonl(tmp_path / "corpus.jsonl", [{"text": f"{n} {text}"} for n in range(40) for text in (short, long)])
    split = open_cache(stage_two.make_cache(tmp_path, data={"val_fraction": 0.3}), "validation")
    tokenizer = load_cached_tokenizer(split)[1]
    assert tokenizer is not None
    sequences = [split.tokens(number) for number in range(len(split))]
    pieces = [document for rows in sequences for document in rows.documents.tolist()]
    prompts = cache_prompts(split, len(split))
    assert len({prompt.document for prompt in prompts}) == len(prompts) > 3
    assert len(pieces) > len(set(pieces))
    for prompt in prompts:
        text = tokenizer.fast.decode(list(prompt.ids), skip_special_tokens=True)
        assert text.split()[0].isdecimal() and text.split()[1] in ("first", "a"), text


def test_prompts_from_ranges_of_long_documents_are_noted(tmp_path: Path) -> None:
    stage_two.stage_one.make_inputs(tmp_path)
    write_jsonl(tmp_path / "corpus.jsonl", [{"text": "\n\n".join(f"paragraph {n} of the text" for n in range(3000))}])
    stage_two.make_cache(tmp_path, data={"val_fraction": 0.1})
    stage_two.run(stage_two.settings_for(tmp_path, run={"max_steps": 1}))
    report = run(tmp_path / "run")
    assert len(report.notes) == 1 and "ranges" in report.notes[0]


def test_an_adapter_is_sampled_with_its_base(folder: Path) -> None:
    lora = {"name": str(folder / "run" / "final"), "lora": True}
    stage_two.run(stage_two.settings_for(folder, "lora", student=lora, optimizer={"rates": {}}))
    report = run(folder / "lora", folder / "run", prompts=("the value",))
    assert report.models[0].n_parameters == report.models[1].n_parameters


def test_a_model_without_prompts_or_tokenizer_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run") as caught:
        run(folder / "teacher")
    assert "--prompt" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="has no tokenizer"):
        run(tiny_llama(tmp_path / "bare"), prompts=("a",))


def test_a_run_whose_cache_has_no_validation_split_needs_a_prompt(tmp_path: Path) -> None:
    stage_two.make_cache(tmp_path, data={"val_fraction": 0.0})
    stage_two.run(stage_two.settings_for(tmp_path))
    with pytest.raises(ConfigError, match="no validation documents") as caught:
        run(tmp_path / "run")
    assert "--prompt" in str(caught.value.hint)

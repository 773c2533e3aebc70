"""What a run leaves behind: folders that load, here and in transformers 4, whole or not at all."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PretrainedConfig

from kdpipe.cache.durable import files as disk
from kdpipe.pipeline.students.presets import TokenIds
from kdpipe.pipeline.students.saving import save_model, save_student
from kdpipe.pipeline.students.transformers4 import for_transformers_4, tokenizer_note
from kdpipe.schemas.errors import ConfigError, KdpipeError, WriteError
from support.corpora import small_tokenizer
from support.family_configs import small_config
from support.models import FAMILIES, _common, build, tiny_llama, tiny_model
from support.students import IDS, student
from support.transformers_4 import under_transformers_4

COMMON = _common(IDS.count, 64, 2)
ROPES: dict[str, dict[str, Any]] = {
    "far": {"rope_type": "default", "rope_theta": 1e6},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e5, "factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "partial": {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.25},
}  # fmt: skip
LAYERED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
}


def neox() -> PretrainedConfig:
    plain = {key: value for key, value in COMMON.items() if key != "num_key_value_heads"}
    return transformers.GPTNeoXConfig(**plain, rope_parameters=ROPES["partial"])


def gemma3() -> PretrainedConfig:
    sizes = {**COMMON, "num_hidden_layers": 6, "head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16}
    return transformers.Gemma3TextConfig(**sizes, rope_parameters=LAYERED)


# Gemma 2 is left out: version 4 always chooses an attention without its soft cap, regardless of the config.
CONFIGS: dict[str, Any] = {
    **{name: (lambda make=make: make(IDS.count, 64, 2)) for name, make in FAMILIES.items() if name != "gemma2"},
    "qwen2-far": lambda: transformers.Qwen2Config(**COMMON, rope_parameters=ROPES["far"]),
    "qwen3-yarn": lambda: transformers.Qwen3Config(**COMMON, head_dim=16, rope_parameters=ROPES["yarn"]),
    "llama-3": lambda: transformers.LlamaConfig(**COMMON, rope_parameters=ROPES["llama3"]),
    "phi-partial": lambda: transformers.PhiConfig(**COMMON, rope_parameters=ROPES["partial"]),
    "neox": neox,
    "gemma3": gemma3,
}
ROW = [(7 * place) % 290 + 3 for place in range(40)]
# Run by transformers 4.57.6: the logits of every folder below one, into another.
READ_ALL = f"""
import sys, pathlib, numpy, torch, transformers
assert transformers.__version__ == "4.57.6", transformers.__version__
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.tensor([{ROW}]), use_cache=False).logits[0]
    numpy.save(pathlib.Path(sys.argv[2]) / folder.name, logits.float().numpy())
tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(pathlib.Path(sys.argv[1]) / "llama")
print(*tokenizer("def f(x): return x").input_ids)
"""


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def logits_of(folder: Path, dtype: Any = "auto") -> np.ndarray[Any, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        found: np.ndarray[Any, Any] = model(torch.tensor([ROW]), use_cache=False).logits[0].float().numpy()
    return found


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in small_tokenizer(folder).iterdir()}


@pytest.mark.slow
def test_transformers_4_reads_the_same_model(tmp_path: Path) -> None:
    files = tokenizer_files(tmp_path / "tokenizer")
    due = {}
    for name, make in CONFIGS.items():
        model = build(make())
        save_model(model, tmp_path / "saved" / name, files, "")
        with torch.no_grad():
            due[name] = model(torch.tensor([ROW]), use_cache=False).logits[0].numpy()
        np.testing.assert_allclose(logits_of(tmp_path / "saved" / name), due[name], rtol=0, atol=1e-5)
    (tmp_path / "read").mkdir()
    messages = under_transformers_4(READ_ALL, str(tmp_path / "saved"), str(tmp_path / "read"))
    for name, logits in due.items():
        again = np.load(tmp_path / "read" / f"{name}.npy")
        np.testing.assert_allclose(again, logits, rtol=0, atol=1e-4 * np.abs(logits).max(), err_msg=name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved" / "llama")
    assert [int(word) for word in messages.split()] == tokenizer("def f(x): return x").input_ids


def test_a_saved_student_loads_and_writes_text(tmp_path: Path) -> None:
    files = tokenizer_files(tmp_path / "tokenizer")
    found = student("tiny", TokenIds(count=512, longest=64, end=0, padding=0))
    save_student(found, tmp_path / "final", files, "# card\n")
    pipe = transformers.pipeline("text-generation", model=str(tmp_path / "final"))
    (answer,) = pipe("if x is", max_new_tokens=4, do_sample=False)
    assert answer["generated_text"].startswith("if x is")
    assert (tmp_path / "final" / "README.md").read_text() == "# card\n"
    assert {name: (tmp_path / "final" / name).read_bytes() for name in files} == files
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("fp16-pure", "float16")])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_saved_student_has_one_type_and_tied_weights_once(
    family: str, precision: str, dtype: str, tmp_path: Path
) -> None:
    found = student(tiny_model(family, tmp_path / "a", (IDS.count, 64, 2)), precision=precision)
    save_student(found, tmp_path / "final", {}, "")
    config = config_of(tmp_path / "final")
    assert (config["dtype"], config["torch_dtype"]) == (dtype, dtype)
    header = (tmp_path / "final" / "model.safetensors").read_bytes()
    tensors = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    tensors.pop("__metadata__", None)
    assert {each["dtype"] for each in tensors.values()} == {"F32" if precision == "fp32" else "F16"}
    assert sum(np.prod(each["shape"]) for each in tensors.values()) == found.n_parameters()
    assert any("lm_head" in name for name in tensors) == (family == "llama")


def test_rows_that_pad_the_vocabulary_stay(tmp_path: Path) -> None:
    found = student(tiny_llama(tmp_path / "a", vocabulary=IDS.count + 20))
    save_student(found, tmp_path / "final", {}, "")
    assert logits_of(tmp_path / "final").shape == (len(ROW), IDS.count + 20)


def test_settings_for_generating_stay_even_where_transformers_finds_fault_with_them(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "a", vocabulary=IDS.count)
    settings = {"eos_token_id": [2, 7], "temperature": 0.6, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    save_student(student(folder), tmp_path / "final", {}, "")
    kept = json.loads((tmp_path / "final" / "generation_config.json").read_text())
    assert {key: kept[key] for key in settings} == settings


def test_a_config_is_kept_as_it_is_where_its_two_spellings_would_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "kdpipe.pipeline.students.saving.for_transformers_4", lambda config, tied: {**config, "hidden_act": "gelu"}
    )
    (note,) = save_student(student("tiny"), tmp_path / "final", {}, "")
    assert "transformers 4 may load llama" in note
    assert config_of(tmp_path / "final")["hidden_act"] == "silu"


def test_code_of_its_own_goes_along(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "a", vocabulary=IDS.count)
    (folder / "modeling_own.py").write_text("VALUE = 1\n")
    found = student(folder)
    found.model.config.auto_map = {"AutoModelForCausalLM": "modeling_own.Own"}
    save_student(found, tmp_path / "final", {}, "")
    assert (tmp_path / "final" / "modeling_own.py").read_text() == "VALUE = 1\n"


def test_a_new_tokenizer_class_is_reported() -> None:
    files = {"tokenizer_config.json": b'{"tokenizer_class": "TokenizersBackend"}'}
    assert "TokenizersBackend" in str(tokenizer_note(files))
    assert tokenizer_note({"tokenizer_config.json": b'{"tokenizer_class": "Qwen2Tokenizer"}'}) is None
    assert tokenizer_note({"tokenizer_config.json": b"[]"}) is None
    assert tokenizer_note({}) is None


def test_duplicate_settings_within_a_text_config_are_reported() -> None:
    inner = {"rope_parameters": ROPES["far"], "dtype": "bfloat16"}
    found = for_transformers_4({"text_config": inner}, tied=False)["text_config"]
    assert (found["rope_theta"], found["torch_dtype"], found["tie_word_embeddings"]) == (1e6, "bfloat16", False)


class Stopped(Exception):
    """The process ends here."""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_old_student_or_none_and_saving_again_repairs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = student("tiny", seed=1), student("tiny", seed=2)
    due = [
        first.logits(torch.tensor([ROW])).detach()[0].numpy(),
        second.logits(torch.tensor([ROW])).detach()[0].numpy(),
    ]
    folder = tmp_path / "final"
    calls = 0

    def ending(real: Any, at: int) -> Any:
        def call(*words: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise Stopped
            return real(*words, **options)

        return call

    seen = set()
    for at in range(1, 40):
        save_student(first, folder, {}, "old")
        calls = 0
        with monkeypatch.context() as patch:
            for module, name in ((os, "fsync"), (os, "rename"), (disk, "remove_dir")):
                patch.setattr(module, name, ending(getattr(module, name), at))
            try:
                save_student(second, folder, {}, "new")
                break
            except Stopped:
                pass
        if folder.exists():
            found = logits_of(folder)
            which = int((folder / "README.md").read_text() == "new")
            np.testing.assert_allclose(found, due[which], rtol=0, atol=1e-5)
            seen.add(which)
    else:
        raise AssertionError("it never came to an end")
    assert 0 in seen
    assert (folder / "README.md").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_an_existing_folder_is_replaced_only_on_request(tmp_path: Path) -> None:
    found = student("tiny")
    for card in ("old", "new"):
        save_model(found.model, tmp_path / "out", {}, card)
    with pytest.raises(ConfigError, match="out already exists"):
        save_model(found.model, tmp_path / "out", {}, "newer", replace=False)
    assert (tmp_path / "out" / "README.md").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_student_that_cannot_take_its_place_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_student(student("tiny"), tmp_path / "final", {}, "old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "publish_dir", full)
    with pytest.raises(WriteError, match="final cannot be saved"):
        save_student(student("tiny"), tmp_path / "final", {}, "new")
    assert (tmp_path / "final" / "README.md").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_the_reason_a_student_cannot_be_saved_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = student("tiny")
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="final cannot be saved"):
        save_student(found, tmp_path / "file" / "final", {}, "")

    class Odd(Exception):
        pass

    def fail(*words: Any, **options: Any) -> None:
        raise Odd("I/O error: no space left\nmore")

    monkeypatch.setattr(found.model, "save_pretrained", fail)
    with pytest.raises(KdpipeError, match=r"cannot be saved: .*I/O error: no space left") as caught:
        save_student(found, tmp_path / "final", {}, "")
    assert "free disk space" in str(caught.value.hint)
    assert not (tmp_path / "final").exists()


def test_an_error_in_a_config_is_not_blamed_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: Any, **options: Any) -> None:
        raise KeyError("rope_theta")

    monkeypatch.setattr("kdpipe.pipeline.students.saving.for_transformers_4", fail)
    with pytest.raises(KdpipeError, match=r"final cannot be saved: config\.json: .*rope_theta") as caught:
        save_student(student("tiny"), tmp_path / "final", {}, "")
    assert "disk full" not in str(caught.value.hint)
    assert not (tmp_path / "final").exists()


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.parametrize(
    "family", ["mamba2", "bamba", "falcon_h1", "granitemoehybrid", "nemotron_h", "gemma4_text", "beam"]
)
def test_configs_that_json_cannot_spell_plainly_are_saved_as_transformers_saves_them(
    family: str, tmp_path: Path
) -> None:
    config = small_config(family)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "theirs")
    save_model(model, tmp_path / "ours", {}, "")
    ours, theirs = (
        json.loads((tmp_path / name / "config.json").read_bytes(), parse_constant=refuse_constant)
        for name in ("ours", "theirs")
    )
    assert {key: ours[key] for key in theirs} == theirs
    again, due = (
        transformers.AutoConfig.from_pretrained(tmp_path / name).to_dict() | {"_name_or_path": ""}
        for name in ("ours", "theirs")
    )
    assert {key: again[key] for key in due} == due
    if hasattr(config, "time_step_limit"):
        assert again["time_step_limit"][1] == float("inf")


def test_an_adapter_is_saved_beside_nothing_and_loads_with_its_base(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = tiny_llama(tmp_path / "base", vocabulary=IDS.count)
    found = student(base, lora=True)
    with torch.no_grad():
        for each in found.trainable().values():
            each.normal_(std=0.1)
    (note,) = save_student(found, tmp_path / "final", {}, "# card\n")
    assert str(tmp_path / "final") in note and str(base) in note and "kdpipe export" in note
    names = {path.name for path in (tmp_path / "final").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert (tmp_path / "final" / "README.md").read_text() == "# card\n"

"""Small random models of many families, saved as transformers saves them: teachers for tests, made in a blink.

In: a folder and sizes. Out: the folder with config.json and model.safetensors, whose logits have a realistic entropy.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

# Tests share few CPUs, and small tensors are slower on several threads than on one.
torch.set_num_threads(1)
# Standard deviation of the logits: 512 of them have an entropy of about log 512 - 2.4² / 2 = 3.4 nats.
LOGITS_STD = 2.4
Sizes = tuple[int, int, int]


def _llama(vocabulary: int, hidden: int, layers: int) -> PretrainedConfig:
    return transformers.LlamaConfig(**_common(vocabulary, hidden, layers), tie_word_embeddings=False)


def _gpt2(vocabulary: int, hidden: int, layers: int) -> PretrainedConfig:
    """A tied head without a bias, trained positions."""
    return transformers.GPT2Config(
        vocab_size=vocabulary, n_embd=hidden, n_layer=layers, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2
    )


def _gemma2(vocabulary: int, hidden: int, layers: int) -> PretrainedConfig:
    """Logits are soft-capped, here low enough to matter; every other layer sees a window only."""
    return transformers.Gemma2Config(
        **_common(vocabulary, hidden, layers),
        head_dim=hidden // 4,
        final_logit_softcapping=4.0,
        query_pre_attn_scalar=hidden // 4,
        sliding_window=16,
    )


def _cohere(vocabulary: int, hidden: int, layers: int) -> PretrainedConfig:
    """Logits are multiplied by `logit_scale`; the head is tied."""
    return transformers.CohereConfig(**_common(vocabulary, hidden, layers), logit_scale=2.0)


def _granite(vocabulary: int, hidden: int, layers: int) -> PretrainedConfig:
    """Logits are divided by `logits_scaling`."""
    return transformers.GraniteConfig(**_common(vocabulary, hidden, layers), logits_scaling=8.0)


def _qwen2(vocabulary: int, hidden: int, layers: int) -> PretrainedConfig:
    return transformers.Qwen2Config(**_common(vocabulary, hidden, layers), tie_word_embeddings=True)


def _phi(vocabulary: int, hidden: int, layers: int) -> PretrainedConfig:
    """The head has a bias."""
    return transformers.PhiConfig(**_common(vocabulary, hidden, layers))


def _mamba(vocabulary: int, hidden: int, layers: int) -> PretrainedConfig:
    """Recurrent: no attention, no mask that could keep documents apart."""
    return transformers.MambaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        state_size=8,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )


FAMILIES: dict[str, Callable[[int, int, int], PretrainedConfig]] = {
    "llama": _llama,
    "gpt2": _gpt2,
    "gemma2": _gemma2,
    "cohere": _cohere,
    "granite": _granite,
    "qwen2": _qwen2,
    "phi": _phi,
    "mamba": _mamba,
}


def tiny_llama(folder: Path, vocabulary: int = 512, hidden: int = 64, layers: int = 2, seed: int = 0) -> Path:
    """Save a small random Llama without a tokenizer."""
    return tiny_model("llama", folder, (vocabulary, hidden, layers), seed)


def tiny_model(family: str, folder: Path, sizes: Sizes = (512, 64, 2), seed: int = 0) -> Path:
    """Save a small random model of a family; sizes are vocabulary, width and layers."""
    transformers.utils.logging.disable_progress_bar()
    build(FAMILIES[family](*sizes), seed).save_pretrained(folder)
    return folder


def build(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A random model in float32 whose layers all matter and whose logits are spread as a trained model's are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        ids = torch.randint(3, config.vocab_size, (4, 32))
        _let_layers_speak(model)
        with torch.inference_mode():
            spread = _raw_logits(model, ids).std()
        head = model.get_output_embeddings()
        with torch.no_grad():
            head.weight.mul_(LOGITS_STD / spread)
            if getattr(head, "bias", None) is not None:
                head.bias.normal_(std=0.5)
    return model.eval()


def _let_layers_speak(model: PreTrainedModel) -> None:
    """Widen the layers' matrices: fresh ones whisper, and a tied head would then say each token again."""
    apart = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    with torch.no_grad():
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, torch.Tensor) and weight.dim() == 2 and id(weight) not in apart:
                weight.mul_(weight.shape[0] ** -0.5 / weight.std())


def _raw_logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits that a soft cap has not squeezed, whose spread determines how far to stretch the head."""
    cap, config = getattr(model.config, "final_logit_softcapping", None), model.config
    if cap is not None:
        config.final_logit_softcapping = None
    logits: torch.Tensor = model(ids, use_cache=False).logits
    if cap is not None:
        config.final_logit_softcapping = cap
    return logits


def _common(vocabulary: int, hidden: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


OWN = """
from transformers import LlamaForCausalLM

class Own(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = 2 * out.logits
        return out
"""


def with_own_code(llama: Path, folder: Path) -> Path:
    """A copy of a saved Llama whose own code, where it is trusted, doubles its logits."""
    shutil.copytree(llama, folder)
    (folder / "modeling_own.py").write_text(OWN)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder

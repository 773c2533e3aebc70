"""LoRA adapters on all linear layers but the head, with peft (an optional extra).

In: a model, whose own weights stay frozen. Out: the model with adapters, and the object that saves them; export merges
both.
"""

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from kdpipe.pipeline.models.model_info import ModelInfo, explained_load_errors
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_settings import StudentSettings


def check_installed() -> None:
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("LoRA needs peft, which is not installed", hint="pip install 'kdpipe[peft]'")


def with_adapter(model: Any, settings: StudentSettings, shape: ModelInfo) -> Any:
    """Add trainable adapters to a model, and return the peft wrapper that saves them."""
    check_installed()
    import peft

    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    configured: Any = peft.LoraConfig
    config = configured(
        task_type="CAUSAL_LM",
        target_modules="all-linear",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        fan_in_fan_out=transposed,
    )
    with explained_load_errors(shape.name), _quiet():
        return peft.get_peft_model(model, config, revision=shape.revision)


def merged(folder: Path, base: Any) -> nn.Module:
    """A base model with the adapter in a folder merged into its weights."""
    check_installed()
    import peft

    with explained_load_errors(str(folder)), _quiet():
        model: nn.Module = peft.PeftModel.from_pretrained(base, folder).merge_and_unload()
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the deprecation warnings between peft and transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield

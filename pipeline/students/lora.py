"""LoRA: small matrices beside those of all linear layers but the head, by the peft extra.

In: a model whose own weights stay as they are. Out: the same model with adapters inside, and what saves them; at export
the two become one.
"""

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from kdpipe.pipeline.models.model_info import ModelInfo, in_two_lines
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_settings import StudentSettings


def check_installed() -> None:
    """Refuse before anything is loaded, where the extra is missing."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("LoRA needs peft, which is not there", hint="pip install 'kdpipe[peft]'")


def with_adapter(model: Any, settings: StudentSettings, shape: ModelInfo) -> Any:
    """Put adapters into a model, which then learns by them alone, and give what saves them: it names the model."""
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
    with in_two_lines(shape.name), _quiet():
        return peft.get_peft_model(model, config, revision=shape.revision)


def merged(folder: Path, base: Any) -> nn.Module:
    """A base model with the adapter in a folder worked into its weights."""
    check_installed()
    import peft

    with in_two_lines(str(folder)), _quiet():
        found: nn.Module = peft.PeftModel.from_pretrained(base, folder).merge_and_unload()
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what peft and transformers say to each other about names to come off the console."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield

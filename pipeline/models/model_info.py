"""`ModelInfo`: facts about a model before its weights are loaded, for `kdpipe plan` and early checks.

In: `ModelSettings`. Out: sizes, revision and license from config and model card, or an error.
"""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.hub import cached_file

from kdpipe.pipeline.models import folders
from kdpipe.schemas.errors import ConfigError, KdpipeError, first_line
from kdpipe.schemas.model import ModelSettings

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "int4": 0.5}
SIZES = ("num_hidden_layers", "hidden_size", "vocab_size")
WANTED = "use a decoder-only language model that AutoModelForCausalLM loads"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model by its config: `width` of its states, `max_positions` it supports (None: no limit).

    `last_width` is that of the states after the final norm, which some models project before the head; `stored_dtype`
    is that of its files, `revision` the Hub's commit. Beyond `switches_at` positions some models use other position
    encodings for the whole sequence, so that short and long ones cannot share a batch.
    """

    name: str
    revision: str | None
    license: str | None
    model_type: str
    n_layers: int
    width: int
    last_width: int
    vocabulary_size: int
    n_parameters: int
    max_positions: int | None
    switches_at: int | None
    stored_dtype: str | None
    quantized: bool
    config: Any = field(repr=False)

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of each layer's states; 0 is the input of the first, the last is after the final norm."""
        return (*(self.width,) * self.n_layers, self.last_width)

    def parameter_bytes(self, dtype: str) -> int:
        return int(self.n_parameters * DTYPE_BYTES[dtype])


def read_model_info(settings: ModelSettings) -> ModelInfo:
    """Read config and model card; refuses models that are not causal language models."""
    quiet()
    name = named(settings)
    with explained_load_errors(name):
        folder = folders.local_folder(name)
        if folder is not None:
            folders.check_folder(folder)
            _check_no_revision(name, settings)
        config: Any = transformers.AutoConfig.from_pretrained(
            folder or name, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
    shape = model_info_of(name, config, trusted=settings.trust_remote_code)
    revision = None if folder is not None else getattr(config, "_commit_hash", None) or settings.revision
    return replace(shape, revision=revision, license=_license(folder, name, settings))


def model_info_of(name: str, config: Any, *, trusted: bool = False) -> ModelInfo:
    check_causal(name, config, trusted)
    text = config.get_text_config()
    lacking = [size for size in SIZES if not isinstance(getattr(text, size, None), int)]
    if lacking:
        raise ConfigError(
            f"{name} has no {lacking[0]} in its config: {config.model_type} is not supported", hint=WANTED
        )
    n_parameters, head_width = _measured(name, config, trusted)
    return ModelInfo(
        name=name,
        revision=None,
        license=None,
        model_type=str(config.model_type),
        n_layers=int(text.num_hidden_layers),
        width=int(text.hidden_size),
        last_width=_last_width(text, head_width),
        vocabulary_size=int(text.vocab_size),
        n_parameters=n_parameters,
        max_positions=_max_positions(text),
        switches_at=_switches_at(text),
        stored_dtype=_dtype_name(text),
        quantized=getattr(config, "quantization_config", None) is not None,
        config=config,
    )


def check_vocabulary(shape: ModelInfo, vocabulary_size: int) -> None:
    """Refuse a tokenizer with more ids than the model has rows; extra rows are padding and are cut."""
    if shape.vocabulary_size < vocabulary_size:
        raise ConfigError(
            f"{shape.name} has a vocabulary that does not match its tokenizer: {shape.vocabulary_size:,} rows for "
            f"{vocabulary_size:,} ids",
            hint="name the tokenizer that the model was trained with, by --tokenizer",
        )


def check_lengths(shape: ModelInfo, longest: int) -> None:
    """Refuse sequences longer than the model supports."""
    if shape.max_positions is not None and longest > shape.max_positions:
        raise ConfigError(
            f"{shape.name} reads at most {shape.max_positions:,} tokens at once, {longest:,} were requested",
            hint=f"give --seq-len {shape.max_positions} or less",
        )


def named(settings: ModelSettings) -> str:
    """The teacher's name, which only caches of tokens may lack."""
    if settings.name is None:
        raise ConfigError("no model is named", hint="give a hub id or a folder")
    return settings.name


def quiet() -> None:
    """Turn off the log lines and progress bars of transformers and of the Hub."""
    theirs: Any = transformers.utils.logging
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    # It logs each retry twice; the final error reports the outcome once.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


@contextmanager
def explained_load_errors(name: str) -> Iterator[None]:
    """Turn errors of transformers, the Hub or a model's own code into a message."""
    try:
        yield
    except (KdpipeError, KeyboardInterrupt, torch.OutOfMemoryError, MemoryError):
        raise
    except PermissionError as error:
        hint = "check its permissions, or use another model"
        raise ConfigError(f"{error.filename or name} cannot be read: {error.strerror}", hint=hint) from error
    except ImportError as error:
        raise ConfigError(
            f"{name} needs a library that is not installed: {first_line(error)}", hint="install it"
        ) from error
    except Exception as error:
        text = first_line(error)
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"{name} contains its own code",
                hint="review it, then allow it with teacher.trust_remote_code or student.trust_remote_code",
            ) from error
        hint = "check that its files are complete and that transformers supports it; else download it again"
        if not Path(name).expanduser().is_dir():
            hint = (
                "it is not a local folder: check its name on the Hub and the network; private and gated models need "
                "`hf auth login`"
            )
        raise ConfigError(f"{name} cannot be loaded: {text}", hint=hint) from error


def check_causal(name: str, config: Any, trusted: bool) -> None:
    """Refuse encoders, encoder-decoders and other models, from the config."""
    kind = str(getattr(config, "model_type", "") or "of no type")
    if _is_encoder_decoder(config):
        raise ConfigError(f"{name} is not a causal language model: {kind} is an encoder-decoder", hint=WANTED)
    own = trusted and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not own and kind not in known:
        raise ConfigError(f"{name} is not a causal language model that transformers knows: {kind}", hint=WANTED)
    saved = list(getattr(config, "architectures", None) or [])
    causal = {word for value in known.values() for word in ([value] if isinstance(value, str) else value)}
    if not own and saved and not causal & set(saved):
        raise ConfigError(f"{name} is not a causal language model: it was saved as {saved[0]}", hint=WANTED)


def _is_encoder_decoder(config: Any) -> bool:
    """Whether a config describes an encoder and a decoder.

    A decoder saved alone sets is_encoder_decoder to false but keeps the sizes of both, without distinguishing them.
    """
    if getattr(config, "is_encoder_decoder", False):
        return True
    if getattr(config, "model_type", None) not in transformers.CONFIG_MAPPING:
        return False
    stated = inspect.signature(transformers.CONFIG_MAPPING[config.model_type]).parameters.get("is_encoder_decoder")
    return stated is not None and stated.default is True


def _check_no_revision(name: str, settings: ModelSettings) -> None:
    if settings.revision is not None:
        raise ConfigError(
            f"{name} is a folder and has no revision {settings.revision}",
            hint="remove the revision, or use the model's Hub id",
        )


def _measured(name: str, config: Any, trusted: bool) -> tuple[int, int | None]:
    """The number of parameters, tied ones once, and the width of the head's input, from a model on the meta device."""
    with explained_load_errors(name), torch.device("meta"):
        auto: Any = transformers.AutoModelForCausalLM
        model: Any = auto.from_config(config, trust_remote_code=trusted)
        head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    width = int(weight.shape[1]) if isinstance(weight, torch.Tensor) and weight.dim() == 2 else None
    return sum(parameter.numel() for parameter in model.parameters()), width


def _last_width(text: Any, head_width: int | None) -> int:
    """The width of the last states: the head's input, unless it is projected to the width of the embeddings first."""
    if head_width is None or head_width == getattr(text, "embedding_size", None):
        return int(text.hidden_size)
    return head_width


def _rope(text: Any) -> list[dict[str, Any]]:
    """RoPE settings: one for the model, or one per kind of layer."""
    settings = getattr(text, "rope_parameters", None) or {}
    nested = [value for value in settings.values() if isinstance(value, dict)]
    return nested or [settings]


def _max_positions(text: Any) -> int | None:
    stated = getattr(text, "max_position_embeddings", None)
    if not isinstance(stated, int) or stated < 1:
        return None
    reach = [stated]
    for rope in _rope(text):
        original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
        if rope.get("rope_type") in ("yarn", "linear", "llama3") and original and factor:
            reach.append(int(original * factor))
    # Dynamic scaling depends on the longest sequence so far and does nothing up to the stated length.
    return max(reach)


def _switches_at(text: Any) -> int | None:
    for rope in _rope(text):
        if rope.get("rope_type") == "longrope":
            original = rope.get("original_max_position_embeddings") or text.max_position_embeddings
            return int(original)
    return None


def _license(folder: Path | None, name: str, settings: ModelSettings) -> str | None:
    if folder is not None:
        path: Path | None = folder / "README.md"
    else:
        with explained_load_errors(name):
            readme = cached_file(
                name, "README.md", revision=settings.revision, _raise_exceptions_for_missing_entries=False
            )
        path = Path(readme) if readme else None
    if path is None or not path.is_file():
        return None
    return folders.license_of(path.read_text(encoding="utf-8", errors="replace"))


def _dtype_name(text: Any) -> str | None:
    dtype = getattr(text, "dtype", None)
    return str(dtype).removeprefix("torch.") if dtype is not None else None

"""Load the weights of a transformers model where they fit, and check them against its config.

In: `TeacherSettings`, the config, devices. Out: a `LoadedTeacher`, with its record for the manifest.
"""

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from kdpipe.pipeline.models import devices, folders
from kdpipe.pipeline.models.devices import Placement
from kdpipe.pipeline.models.model_info import ModelInfo, explained_load_errors
from kdpipe.pipeline.models.model_names import name_of_folder
from kdpipe.schemas import manifest
from kdpipe.schemas.capture_settings import TeacherSettings
from kdpipe.schemas.errors import ConfigError

log = logging.getLogger(__name__)
# How a note in the manifest records quantized weights.
_WEIGHTS, _AS_STORED = "weights in", "stored bits"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTeacher:
    """A model in memory: `device` is that of its input, `dtype` that of its states."""

    model: transformers.PreTrainedModel
    shape: ModelInfo
    device: torch.device
    dtype: torch.dtype
    placement: Placement
    record: manifest.TeacherRecord


def load(settings: TeacherSettings, shape: ModelInfo, on: Sequence[torch.device]) -> LoadedTeacher:
    """Load a teacher on the first device, or spread it over all of them where one is too small."""
    model, placement = load_weights(settings, shape, on)
    name = devices.choose_dtype(settings.dtype, on[0])
    folder = folders.local_folder(shape.name)
    own_name = shape.name if folder is None else name_of_folder(folder, shape)
    record = manifest.TeacherRecord(
        name=settings.display_name or own_name,
        revision=shape.revision,
        weights_sha256=folders.weights_sha256(folder) if folder else None,
        dtype="quantized" if shape.quantized else name,
        license=settings.license or shape.license,
        n_layers=shape.n_layers,
        hidden_size=shape.width,
        remote_code=settings.trust_remote_code,
        notes=_how_quantized(settings, shape, name),
        hub_id=shape.name if folder is None and settings.display_name not in (None, shape.name) else None,
    )
    dtype: torch.dtype = getattr(torch, name)
    return LoadedTeacher(model=model, shape=shape, device=on[0], dtype=dtype, placement=placement, record=record)


def load_weights(
    settings: TeacherSettings, shape: ModelInfo, on: Sequence[torch.device]
) -> tuple[transformers.PreTrainedModel, Placement]:
    """A model to run, not to train, where it fits."""
    name = devices.choose_dtype(settings.dtype, on[0])
    placement = placed(shape, weight_bytes(settings, shape, name), on)
    if placement.kind != "one" and importlib.util.find_spec("accelerate") is None:
        raise ConfigError(
            f"{shape.name} is too large for {on[0]}; spreading it needs accelerate, which is not installed",
            hint="pip install 'kdpipe[large]'",
        )
    folder = folders.local_folder(shape.name)
    log.info("loading %s as %s on %s (%s)", shape.name, "quantized" if shape.quantized else name, on[0], placement.kind)
    with explained_load_errors(shape.name):
        options = {"dtype": getattr(torch, name), **_mapped(shape, placement, on)}
        model, report = _from_pretrained(settings, shape, folder, options)
        if placement.kind == "one" and not shape.quantized:
            torch.nn.Module.to(model, on[0])
    folders.check_loaded(shape.name, report)
    torch.nn.Module.eval(model)
    model.requires_grad_(False)
    return model, placement


def _how_quantized(settings: TeacherSettings, shape: ModelInfo, dtype: str) -> tuple[str, ...]:
    """A note on quantized weights: they make another teacher, with the same digest of the files."""
    if not shape.quantized:
        return ()
    stored: Any = getattr(shape.config, "quantization_config", None)
    method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
    how = _AS_STORED if settings.quantize == "none" else settings.quantize
    by = getattr(method, "value", method) if settings.quantize == "none" else "bitsandbytes"
    return (f"{_WEIGHTS} {how} by {by}, numbers in {dtype}",)


def recorded_settings(name: str, record: manifest.TeacherRecord) -> TeacherSettings:
    """Settings to load a teacher as a manifest records it."""
    words = [note.split() for note in record.notes if note.startswith(f"{_WEIGHTS} ")]
    quantize = next((how for note in words for how in ("int8", "int4") if how in note), "none")
    recorded = words[0][-1] if words else record.dtype
    dtype = recorded if recorded in ("float32", "float16", "bfloat16") else "auto"
    revision = record.revision if name == (record.hub_id or record.name) else None
    return TeacherSettings.model_validate({"name": name, "revision": revision, "dtype": dtype, "quantize": quantize})


def placed(shape: ModelInfo, weight_bytes: int, on: Sequence[torch.device]) -> Placement:
    """Where the weights fit; on the CPU alone memory is not checked."""
    if on[0].type != "cuda":
        return Placement(kind="one")
    cpu_free = devices.free_memory(torch.device("cpu"))
    return devices.place(weight_bytes, [devices.free_memory(device) for device in on], cpu_free)


def weight_bytes(settings: TeacherSettings, shape: ModelInfo, dtype: str) -> int:
    """Bytes of the weights in memory, fewer where they are quantized."""
    if settings.quantize != "none":
        return shape.parameter_bytes(settings.quantize)
    return shape.parameter_bytes("int8" if shape.quantized else dtype)


def _mapped(shape: ModelInfo, placement: Placement, on: Sequence[torch.device]) -> dict[str, Any]:
    """Device arguments for transformers; quantized weights are packed on the device that they are loaded to."""
    if placement.kind != "one":
        room = {on[key].index if isinstance(key, int) else key: free for key, free in placement.max_memory.items()}
        return {"device_map": "auto", "max_memory": room}
    return {"device_map": {"": on[0]}} if shape.quantized else {}


def _from_pretrained(
    settings: TeacherSettings, shape: ModelInfo, folder: Path | None, options: dict[str, Any]
) -> tuple[transformers.PreTrainedModel, dict[str, Any]]:
    """Load with transformers; the report lists missing and unexpected weights."""
    if settings.quantize != "none":
        bits: Any = transformers.BitsAndBytesConfig
        options["quantization_config"] = bits(**{f"load_in_{settings.quantize.removeprefix('int')}bit": True})
    auto: Any = transformers.AutoModelForCausalLM
    model, report = auto.from_pretrained(
        folder or shape.name,
        config=shape.config,
        revision=shape.revision or settings.revision,
        trust_remote_code=settings.trust_remote_code,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # listed in the report instead
        **options,
    )
    return model, report

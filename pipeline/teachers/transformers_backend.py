"""Backend `transformers`: a causal language model in this process, on a CPU or one or several GPUs.

In: the teacher's and the machine's settings. Out: a `TeacherInfo` from the config alone, then a `TransformersTeacher`.
"""

import importlib.util
from dataclasses import replace
from functools import cached_property

import torch

from kdpipe.pipeline.models import devices
from kdpipe.pipeline.models.model_info import DTYPE_BYTES, ModelInfo, read_model_info
from kdpipe.pipeline.teachers import TeacherInfo
from kdpipe.pipeline.teachers.load_teacher import load, recorded_settings, weight_bytes
from kdpipe.pipeline.teachers.reading import logits_bytes
from kdpipe.pipeline.teachers.tokens_only import model_has_tokenizer, model_tokenizer
from kdpipe.pipeline.teachers.transformers_teacher import TransformersTeacher
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer
from kdpipe.schemas import manifest
from kdpipe.schemas.capture_settings import MachineSettings, TeacherSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.target_kinds import OutputHead

# Tokens of a batch, padding included: few keep a CPU busy, a GPU needs many.
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 16384
# Numbers of a token that a layer holds at once: states, queries, keys, values, and a feed-forward of four widths.
LIVE_WIDTHS = 14


class TransformersBackend:
    """Implements `TeacherBackend`; the config is read once."""

    def __init__(self, teacher: TeacherSettings, machine: MachineSettings) -> None:
        self._settings, self._machine = teacher, machine

    @cached_property
    def _shape(self) -> ModelInfo:
        return teacher_shape(self._settings)

    def describe(self) -> TeacherInfo:
        shape = self._shape
        device = devices.choose(self._machine.devices)[0]
        dtype = devices.choose_dtype(self._settings.dtype, device)
        return TeacherInfo(
            name=shape.name,
            n_parameters=shape.n_parameters,
            vocabulary_size=shape.vocabulary_size,
            max_positions=shape.max_positions,
            widths=shape.widths,
            output_head=OutputHead(width=shape.last_width, dtype=dtype),
            batch_tokens=self._machine.batch_tokens or (CPU_BATCH_TOKENS if device.type == "cpu" else GPU_BATCH_TOKENS),
            weight_bytes=weight_bytes(self._settings, shape, dtype),
            activation_bytes=shape.width * LIVE_WIDTHS * DTYPE_BYTES[dtype],
            logits_bytes=2 * logits_bytes(device),
        )

    def tokenizer(self, chat_template: str | None) -> LoadedTokenizer:
        return model_tokenizer(self._settings, chat_template)

    def has_tokenizer(self) -> bool:
        return model_has_tokenizer(self._settings)

    def workers(self) -> list[MachineSettings]:
        """One worker per device, sharing the threads of the CPU, if the whole teacher fits on each device."""
        chosen = devices.choose(self._machine.devices)
        if len(chosen) > 1 and not self._fits_each(chosen):
            return [self._machine]
        threads = max(1, devices.n_threads(self._machine.threads) // len(chosen))
        return [self._machine.model_copy(update={"devices": str(device), "threads": threads}) for device in chosen]

    def _fits_each(self, chosen: list[torch.device]) -> bool:
        n_bytes = weight_bytes(self._settings, self._shape, devices.choose_dtype(self._settings.dtype, chosen[0]))
        return all(devices.fits(n_bytes, devices.free_memory(device)) for device in chosen)

    def load(self, vocabulary_size: int) -> TransformersTeacher:
        torch.set_num_threads(devices.n_threads(self._machine.threads))
        loaded = load(self._settings, self._shape, devices.choose(self._machine.devices))
        return TransformersTeacher(loaded, vocabulary_size)

    @staticmethod
    def recorded(name: str, record: manifest.TeacherRecord) -> TeacherSettings:
        return recorded_settings(name, record)


def teacher_shape(settings: TeacherSettings) -> ModelInfo:
    """Read a teacher's config, and refuse to quantize what cannot be."""
    if settings.name is None:
        raise ConfigError("no teacher is given", hint="give --teacher, a Hub id or a folder")
    shape = read_model_info(settings)
    if settings.quantize == "none":
        return shape
    if shape.quantized:
        raise ConfigError(f"{shape.name} is already quantized", hint="omit teacher.quantize")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"teacher.quantize {settings.quantize} needs bitsandbytes, which is not installed",
            hint="pip install 'kdpipe[quant]'",
        )
    return replace(shape, quantized=True)

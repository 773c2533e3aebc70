"""The shape of a teacher: what its config says, and whether it can be quantized as asked.

In: `TeacherSettings`. Out: a `ModelInfo`, or a `ConfigError`.
"""

import importlib.util
from dataclasses import replace

from kdpipe.pipeline.models.model_info import ModelInfo, read_shape
from kdpipe.schemas.capture_settings import TeacherSettings
from kdpipe.schemas.errors import ConfigError


def teacher_shape(settings: TeacherSettings) -> ModelInfo:
    """Read the shape, and refuse to quantize what cannot be."""
    if settings.name is None:
        raise ConfigError("no teacher is named", hint="give --teacher, a hub id or a folder")
    shape = read_shape(settings)
    if settings.quantize == "none":
        return shape
    if shape.quantized:
        raise ConfigError(f"{shape.name} is quantized already", hint="leave teacher.quantize out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"teacher.quantize {settings.quantize} needs bitsandbytes, which is not there",
            hint="pip install 'kdpipe[quant]'",
        )
    return replace(shape, quantized=True)

"""`load_student`: pretrained weights or random init, in the data type and on the device of training.

In: a `ResolvedStudent`, settings, a precision, a device, a seed. Out: a `Student`. Weights are float32 in any precision
but `fp16-pure`, so that small updates are not lost.
"""

from pathlib import Path
from typing import Any

import torch
import transformers

from kdpipe.pipeline.models import folders
from kdpipe.pipeline.models.model_info import ModelInfo, explained_load_errors, quiet
from kdpipe.pipeline.models.probe import PROBE_TOKENS, probe_ids
from kdpipe.pipeline.students import lora
from kdpipe.pipeline.students.resolve import ResolvedStudent
from kdpipe.pipeline.students.student import Student
from kdpipe.schemas.choices import PrecisionName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_settings import StudentSettings


def load_student(
    resolved: ResolvedStudent, settings: StudentSettings, precision: PrecisionName, device: torch.device, seed: int
) -> Student:
    """Load a student for training; equal seeds give bit-identical random weights and adapters."""
    quiet()
    if settings.lora:
        lora.check_installed()
    dtype = torch.float16 if precision == "fp16-pure" else torch.float32
    with explained_load_errors(resolved.name):
        model: Any = _fresh(resolved, seed, dtype) if resolved.is_fresh else _pretrained(resolved, settings, dtype)
    adapter = _adapter(model, settings, resolved.shape, seed) if settings.lora else None
    with explained_load_errors(resolved.name):
        model.to(device)
    student = Student(model, resolved.shape, resolved.ids.count, adapter)
    _check_trains(student)
    _freeze(student, settings)
    if settings.gradient_checkpointing:
        _checkpoint(student)
    return student


def description_of(student: Student) -> str:
    """One line: name, number of parameters, data type, and how many are trainable if not all."""
    total = student.n_parameters()
    trainable = sum(parameter.numel() for parameter in student.trainable().values())
    share = "" if trainable in (0, total) else f", {trainable:,} trainable"
    dtype = str(student.dtype).removeprefix("torch.")
    return f"{student.shape.name}: {total:,} parameters in {dtype}{share}"


def _fresh(student: ResolvedStudent, seed: int, dtype: torch.dtype) -> torch.nn.Module:
    """Random init on the CPU, whose generator gives the same bits on every machine."""
    auto: Any = transformers.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: torch.nn.Module = auto.from_config(student.shape.config, dtype=torch.float32)
    return model.to(dtype)


def _adapter(model: Any, settings: StudentSettings, shape: ModelInfo, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return lora.with_adapter(model, settings, shape)


def _pretrained(student: ResolvedStudent, settings: StudentSettings, dtype: torch.dtype) -> torch.nn.Module:
    auto: Any = transformers.AutoModelForCausalLM
    folder = folders.local_folder(student.name)
    model, report = auto.from_pretrained(
        student.name
        if folder is None
        else folder.resolve(),  # adapters store this path, and may be loaded from another directory
        config=student.shape.config,
        revision=student.shape.revision or settings.revision,
        trust_remote_code=settings.trust_remote_code,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # the report then names them
    )
    folders.check_loaded(student.name, report)
    weights: torch.nn.Module = model
    # Some families load a few tensors in float32 regardless of dtype.
    weights = weights.to(dtype)
    _check_finite(weights, student.name, folder)
    return weights


def _check_finite(model: torch.nn.Module, name: str, folder: Path | None) -> None:
    """Refuse weights that are not finite."""
    for key, weights in model.named_parameters():
        # A sum is much faster than a mask; it is not finite if any weight is not (or if it overflows).
        if weights.sum().isfinite() or not (n_odd := int((~weights.isfinite()).sum())):
            continue
        where = name if folder is None else str(folder / (folders.file_of(folder, key) or ""))
        fp16 = weights.dtype == torch.float16
        raise ConfigError(
            f"{where}: {n_odd:,} of {weights.numel():,} weights in {key} are not finite",
            hint="float16 overflows beyond 65,504: use --precision bf16 or fp32"
            if fp16
            else "download or save it again, or use another student",
        )


def _check_trains(student: Student) -> None:
    """Refuse a model whose training mode accepts one sequence length only."""
    n = min(PROBE_TOKENS - 1, student.shape.max_positions or PROBE_TOKENS)
    ids_BT = probe_ids(n, student.vocabulary_size, student.device)[None]
    with torch.random.fork_rng(devices=[student.device] if student.device.type == "cuda" else []), torch.no_grad():
        student.model.train()
        try:
            student.logits(ids_BT)
        except ValueError as error:
            raise ConfigError(
                f"{student.shape.name} cannot train on {ids_BT.shape[1]} tokens: {str(error).splitlines()[0][:300]}",
                hint="use a student that trains on sequences of any length",
            ) from error
        finally:
            student.model.eval()


def _freeze(student: Student, settings: StudentSettings) -> None:
    if settings.freeze_head:
        head = student.model.get_output_embeddings()
        if head is None:
            raise ConfigError(f"{student.shape.name} has no output head to freeze", hint="remove student.freeze_head")
        head.requires_grad_(False)
        if head.weight is student.model.get_input_embeddings().weight:
            student.notes += (f"{student.shape.name}: head and embeddings are tied, so both are frozen",)
    if not student.trainable():
        raise ConfigError(f"{student.shape.name} has no trainable parameters", hint="remove student.freeze_head")


def _checkpoint(student: Student) -> None:
    if not student.model.supports_gradient_checkpointing:
        raise ConfigError(
            f"{student.shape.name} ({student.shape.model_type}) does not support gradient checkpointing",
            hint="remove student.gradient_checkpointing",
        )
    # Transformers renamed it; 5.23 warns about the name of 5.3.
    old, new = "gradient_checkpointing_enable", "activation_checkpointing_enable"
    enable = getattr(student.model, new if hasattr(student.model, new) else old)
    enable({"use_reentrant": False})

"""`load_student`: weights into memory, drawn afresh or read, in the type and on the device they learn in.

In: what `resolve.py` found, settings, a precision, a device, a seed. Out: a `Student`. Weights are float32 whatever the
arithmetic, so that small steps are not lost; `fp16-pure` alone keeps 16 bits.
"""

from pathlib import Path
from typing import Any

import torch
import transformers

from kdpipe.pipeline.models import folders
from kdpipe.pipeline.models.model_info import ModelInfo, in_two_lines, quiet
from kdpipe.pipeline.models.probe import PROBE_TOKENS, probe_ids
from kdpipe.pipeline.students import lora
from kdpipe.pipeline.students.resolve import ResolvedStudent
from kdpipe.pipeline.students.student import Student
from kdpipe.schemas.choices import PrecisionName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_settings import StudentSettings


def load_student(
    found: ResolvedStudent, settings: StudentSettings, precision: PrecisionName, device: torch.device, seed: int
) -> Student:
    """Load a student, ready to learn; the same seed draws the same fresh weights, or the same adapter, to the bit."""
    quiet()
    if settings.lora:
        lora.check_installed()
    dtype = torch.float16 if precision == "fp16-pure" else torch.float32
    with in_two_lines(found.name):
        model: Any = _fresh(found, seed, dtype) if found.is_fresh else _trained(found, settings, dtype)
    adapter = _adapter(model, settings, found.shape, seed) if settings.lora else None
    with in_two_lines(found.name):
        model.to(device)
    student = Student(model, found.shape, found.ids.count, adapter)
    _check_trains(student)
    _freeze(student, settings)
    if settings.gradient_checkpointing:
        _checkpoint(student)
    return student


def described(student: Student) -> str:
    """One line: who it is, and how many of its numbers learn where these are some."""
    total, learning = student.n_parameters(), sum(each.numel() for each in student.trainable().values())
    share = "" if learning in (0, total) else f", of which {learning:,} learn"
    dtype = str(student.dtype).removeprefix("torch.")
    return f"{student.shape.name}: {total:,} parameters in {dtype}{share}"


def _fresh(found: ResolvedStudent, seed: int, dtype: torch.dtype) -> torch.nn.Module:
    """Draw weights on the CPU, whose generator alone promises the same bits on every machine."""
    auto: Any = transformers.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: torch.nn.Module = auto.from_config(found.shape.config, dtype=torch.float32)
    return model.to(dtype)


def _adapter(model: Any, settings: StudentSettings, shape: ModelInfo, seed: int) -> Any:
    """Draw an adapter, as fresh weights are drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return lora.with_adapter(model, settings, shape)


def _trained(found: ResolvedStudent, settings: StudentSettings, dtype: torch.dtype) -> torch.nn.Module:
    auto: Any = transformers.AutoModelForCausalLM
    folder = folders.local_folder(found.name)
    model, report = auto.from_pretrained(
        found.name if folder is None else folder.resolve(),  # adapters name their base, and may be read from elsewhere
        config=found.shape.config,
        revision=found.shape.revision or settings.revision,
        trust_remote_code=settings.trust_remote_code,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # the report then names them
    )
    folders.check_loaded(found.name, report)
    weights: torch.nn.Module = model
    # Some families keep a few tensors in float32 whatever is asked; one type it is.
    weights = weights.to(dtype)
    _check_finite(weights, found.name, folder)
    return weights


def _check_finite(model: torch.nn.Module, name: str, folder: Path | None) -> None:
    """Refuse weights that are not finite: a student could not recover from them."""
    for key, weights in model.named_parameters():
        # A sum is finite where all numbers are, but for an overflow, and is taken in a fraction of the time.
        if weights.sum().isfinite() or not (n_odd := int((~weights.isfinite()).sum())):
            continue
        where = name if folder is None else str(folder / (folders.file_of(folder, key) or ""))
        fp16 = weights.dtype == torch.float16
        raise ConfigError(
            f"{where} holds weights that are not finite: {n_odd:,} of {weights.numel():,} in {key}",
            hint="float16 overflows beyond 65,504: give --precision bf16 or fp32"
            if fp16
            else "download or save it again, or name another student",
        )


def _check_trains(student: Student) -> None:
    """Refuse a model that reads texts of any length, and trains on one length only."""
    n = min(PROBE_TOKENS - 1, student.shape.max_positions or PROBE_TOKENS)
    ids_BT = probe_ids(n, student.vocabulary_size, student.device)[None]
    with torch.random.fork_rng(devices=[student.device] if student.device.type == "cuda" else []), torch.no_grad():
        student.model.train()
        try:
            student.logits(ids_BT)
        except ValueError as error:
            raise ConfigError(
                f"{student.shape.name} does not train on {ids_BT.shape[1]} tokens: {str(error).splitlines()[0][:300]}",
                hint="name a student that trains on texts of any length",
            ) from error
        finally:
            student.model.eval()


def _freeze(student: Student, settings: StudentSettings) -> None:
    if settings.freeze_head:
        head = student.model.get_output_embeddings()
        if head is None:
            raise ConfigError(f"{student.shape.name} has no head that could be frozen", hint="leave freeze_head out")
        head.requires_grad_(False)
        if head.weight is student.model.get_input_embeddings().weight:
            student.notes += (f"{student.shape.name}: the head is the table of embeddings, so both stay as they are",)
    if not student.trainable():
        raise ConfigError(f"nothing of {student.shape.name} would learn", hint="leave freeze_head out")


def _checkpoint(student: Student) -> None:
    """Keep what goes into each layer, and make the rest again when gradients are taken."""
    if not student.model.supports_gradient_checkpointing:
        raise ConfigError(
            f"{student.shape.name} ({student.shape.model_type}) has no gradient checkpointing",
            hint="leave gradient_checkpointing out",
        )
    # Transformers renamed it, and 5.23 warns of the name that 5.3 alone knows.
    old = "gradient_checkpointing_enable"
    new = "activation_checkpointing_enable"
    enable = getattr(student.model, new if hasattr(student.model, new) else old)
    enable({"use_reentrant": False})

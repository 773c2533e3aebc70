"""A saved student as a Hugging Face model folder, in one data type, with its adapter merged.

In: the folder of a student, which is complete. Out: a model folder that was loaded again, and an `ExportReport`.
"""

from pathlib import Path
from typing import Any, cast, get_args

import torch
import transformers

from kdpipe.pipeline.models.folders import ADAPTER
from kdpipe.pipeline.models.model_info import explained_load_errors, quiet
from kdpipe.pipeline.models.probe import PROBE_TOKENS, probe_ids
from kdpipe.pipeline.students import lora
from kdpipe.pipeline.students.model_card import of_merged
from kdpipe.pipeline.students.saving import CARD, save_model
from kdpipe.pipeline.students.verify_saved import check_reload
from kdpipe.pipeline.tokenizers.tokenizer import load_tokenizer
from kdpipe.pipeline.tokenizers.vocabulary_file import FILES
from kdpipe.schemas.choices import DtypeName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.export_report import ExportReport
from kdpipe.schemas.model import ModelSettings
from kdpipe.schemas.progress import Progress, Task, running

CPU = torch.device("cpu")


def export_student(
    source: Path, base: ModelSettings, folder: Path, dtype: DtypeName | None, trusted: bool, progress: Progress
) -> ExportReport:
    """Load, merge into the base model of an adapter, cast, save, and check by loading again."""
    quiet()
    is_adapter = (source / ADAPTER).is_file()
    with running(progress, Task(name="load student")):
        model: Any = _merged(source, base, trusted) if is_adapter else _load_model(source, trusted)
    chosen: torch.dtype = getattr(torch, dtype) if dtype is not None else next(model.parameters()).dtype
    model = model.to(chosen).eval()
    name = str(chosen).removeprefix("torch.")
    if name not in get_args(DtypeName):
        raise ConfigError(f"{source} has weights of type {name}", hint="choose a data type with --dtype")
    card = (source / CARD).read_text(encoding="utf-8") if (source / CARD).is_file() else ""
    card = of_merged(card) if is_adapter else card
    with running(progress, Task(name="save student")):
        notes = save_model(model, folder, _tokenizer_files(source), card, replace=False)
    ids = probe_ids(PROBE_TOKENS, model.config.get_text_config().vocab_size, CPU).tolist()
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    with running(progress, Task(name="check saved student")):
        difference = check_reload(
            lambda ids_BT: model(ids_BT, use_cache=False).logits,
            folder,
            ids,
            CPU,
            n_parameters=n_parameters,
            trusted=trusted,
        )
    return ExportReport(
        folder=str(folder),
        dtype=cast(DtypeName, name),
        parameters=n_parameters,
        bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        merged=is_adapter,
        difference=difference,
        notes=notes,
    )


def _load_model(source: Path, trusted: bool) -> Any:
    with explained_load_errors(str(source)):
        auto: Any = transformers.AutoModelForCausalLM
        return auto.from_pretrained(source, dtype="auto", trust_remote_code=trusted)


def _merged(source: Path, settings: ModelSettings, trusted: bool) -> Any:
    """Adapter and base merged in float32, so that nothing is rounded before."""
    lora.check_installed()
    name = settings.name or ""
    with explained_load_errors(name):
        auto: Any = transformers.AutoModelForCausalLM
        base = auto.from_pretrained(name, revision=settings.revision, dtype=torch.float32, trust_remote_code=trusted)
    return lora.merged(source, base)


def _tokenizer_files(source: Path) -> dict[str, bytes]:
    """The student's tokenizer files, if any."""
    if not any((source / name).is_file() for name in FILES):
        return {}
    return load_tokenizer(str(source), chat_template="none").files

"""`kdpipe export`: a run's student as a Hugging Face model folder, in one data type, with adapters merged.

In: a run, or a folder that a run saved. Out: a model folder and an `ExportReport`.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast, get_args

import torch
import transformers

from kdpipe.cache.durable.lock import Say, check_free, locked
from kdpipe.pipeline.evaluation.stored import base_model_of
from kdpipe.pipeline.models.folders import ADAPTER, FINAL, check_folder
from kdpipe.pipeline.models.model_info import explained_load_errors, quiet
from kdpipe.pipeline.models.probe import PROBE_TOKENS, probe_ids
from kdpipe.pipeline.students import lora
from kdpipe.pipeline.students.model_card import of_merged
from kdpipe.pipeline.students.saving import CARD, save_model
from kdpipe.pipeline.students.verify_saved import check_reload
from kdpipe.pipeline.tokenizers.tokenizer import FILES, load_tokenizer
from kdpipe.pipeline.training.run_folder import run_around
from kdpipe.schemas.choices import DtypeName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.export_report import ExportReport
from kdpipe.schemas.progress import Progress, SilentProgress, Task, running

CPU = torch.device("cpu")


def export(
    run: Path,
    out: Path | None,
    dtype: DtypeName | None,
    *,
    trusted: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Load, merge, cast, save, and check by loading again."""
    quiet()
    if not run.is_dir():
        raise ConfigError(f"no such run: {run}", hint="give the --out directory of kdpipe train")
    folder = run / "export" if out is None else out
    notes: list[str] = []
    with ExitStack() as locks:
        _lock_runs(run, folder, locks, notes.append)
        source = _source(run)
        locks.enter_context(locked(folder, notes.append, beside=True))
        report = _export_into(folder, source, dtype, trusted, progress or SilentProgress())
    return report.model_copy(update={"notes": (*notes, *report.notes)})


def _export_into(
    folder: Path, source: Path, dtype: DtypeName | None, trusted: bool, progress: Progress
) -> ExportReport:
    """Write the model folder, which is locked."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} already exists", hint="delete it, or use another --out")
    is_adapter = (source / ADAPTER).is_file()
    with running(progress, Task(name="load student")):
        model: Any = _merged(source, trusted) if is_adapter else _whole(source, trusted)
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


def _lock_runs(run: Path, folder: Path, locks: ExitStack, say: Say) -> None:
    """Lock the exported run and the run that contains the output, against concurrent training."""
    source, target = run_around(run), run_around(folder)
    for path in sorted({path for path in (source, target) if path is not None}):
        if path != target and not os.access(path, os.W_OK):
            check_free(path)
            say(f"{path} is read-only and was not locked: do not train there during the export")
        else:
            locks.enter_context(locked(path, say))


def _source(run: Path) -> Path:
    """The folder with a run's saved student, or that folder itself."""
    for folder in (run / FINAL, run):
        if (folder / "config.json").is_file() or (folder / ADAPTER).is_file():
            return folder
    raise ConfigError(f"{run} has no student yet: no {FINAL}", hint="run kdpipe train again to finish it")


def _whole(source: Path, trusted: bool) -> Any:
    check_folder(source)
    with explained_load_errors(str(source)):
        auto: Any = transformers.AutoModelForCausalLM
        return auto.from_pretrained(source, dtype="auto", trust_remote_code=trusted)


def _merged(source: Path, trusted: bool) -> Any:
    """Adapter and base merged in float32, so that nothing is rounded before."""
    lora.check_installed()
    settings = base_model_of(str(source))
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

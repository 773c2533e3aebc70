"""`save_student`: a folder that transformers, vLLM and llama.cpp's converter load as it is.

In: a student, its tokenizer's files, a model card. Out: a folder, there as a whole or not at all; what is worth a line.
Files of the tokenizer are copied byte for byte: converters know tokenizers by what they do to the byte.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers

from kdpipe.cache.durable import files as disk
from kdpipe.cache.durable.work_names import is_abandoned, is_own, work_name
from kdpipe.pipeline.models.folders import local_folder
from kdpipe.pipeline.models.model_info import quiet
from kdpipe.pipeline.students.student import Student
from kdpipe.pipeline.students.transformers4 import for_transformers_4, tokenizer_note
from kdpipe.pipeline.tokenizers.cached_tokenizer import write_files
from kdpipe.schemas.errors import ConfigError, KdpipeError

CARD = "README.md"
# What tells an adapter from a model.
ADAPTER = "adapter_config.json"
# What errors of the safetensors library say where a disk failed.
DISK_WORDS = ("no space left", "i/o error", "ioerror", "os error", "quota exceeded", "file too large")
FULL = "is the disk full? what was saved before is safe; run it again"
UNWRITABLE = "not the disk: transformers cannot write this model; report it with the versions of torch and transformers"


def save_student(student: Student, folder: Path, tokenizer_files: Mapping[str, bytes], card: str) -> tuple[str, ...]:
    """Save a student, or its adapter where LoRA was used, in the type of its weights."""
    if student.adapter is None:
        return save_model(student.model, folder, tokenizer_files, card)

    def fill(work: Path) -> None:
        with _explained("the adapter", folder):
            student.adapter.save_pretrained(work)

    _publish(folder, fill, tokenizer_files, card)
    return (f"{folder} holds an adapter of {student.shape.name}: kdpipe export merges the two",)


def save_model(
    model: Any, folder: Path, tokenizer_files: Mapping[str, bytes], card: str, *, replace: bool = True
) -> tuple[str, ...]:
    """Save a whole model, in place of what is there only where it may `replace`; the answer is worth a line each."""
    notes: list[str] = []

    def fill(work: Path) -> None:
        with _explained("weights and settings", folder):
            _weights(model, work)
        with _explained("config.json", folder):
            notes.extend(_speak_to_older(work, bool(getattr(model.config, "tie_word_embeddings", False))))
        _own_code(model.config, work)

    _publish(folder, fill, tokenizer_files, card, replace=replace)
    if (note := tokenizer_note(tokenizer_files)) is not None:
        notes.append(note)
    return tuple(notes)


def _weights(model: Any, work: Path) -> None:
    """Weights, config, and the settings for generating as they came: what transformers finds wrong in them is old."""
    settings, plain = model.generation_config, cast(Any, transformers.GenerationConfig)
    model.generation_config = plain() if settings is not None else None
    try:
        model.save_pretrained(work)
    finally:
        model.generation_config = settings
    if settings is not None:
        (work / "generation_config.json").write_text(settings.to_json_string(), encoding="utf-8")


def _speak_to_older(work: Path, tied: bool) -> list[str]:
    """Add what transformers 4 looks for, unless 5 would then read another model."""
    path = work / "config.json"
    written = path.read_text(encoding="utf-8")
    values = for_transformers_4(json.loads(written), tied=tied)
    before = _read(work)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if _read(work) == before:
        return []
    path.write_text(written, encoding="utf-8")
    return [f"transformers 4 may read {values.get('model_type')} otherwise: its config is as transformers 5 writes it"]


def _read(work: Path) -> dict[str, Any] | None:
    """What transformers makes of a config; None where code of its own is needed for that."""
    path = work / "config.json"
    model_type = json.loads(path.read_bytes()).get("model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        return None
    # By its own reader: it spells infinities, which JSON has not, in a way of its own.
    kind: Any = transformers.CONFIG_MAPPING[model_type]
    read: dict[str, Any] = kind.from_json_file(path).to_dict()
    # Spellings of 4 that 5 carries along unread.
    known = kind().to_dict().keys()
    return {key: value for key, value in read.items() if key in known}


def _own_code(config: Any, work: Path) -> None:
    """Copy the code that a model brings along, where it lies beside its weights."""
    source = Path(str(getattr(config, "_name_or_path", "") or "."))
    if getattr(config, "auto_map", None) and source.is_dir() and local_folder(str(source)) is not None:
        for path in sorted(source.glob("*.py")):
            shutil.copyfile(path, work / path.name)


def _publish(
    folder: Path, fill: Callable[[Path], None], tokenizer_files: Mapping[str, bytes], card: str, *, replace: bool = True
) -> None:
    """Build a folder beside its place, make it durable, and put it there; to `replace` one, that one goes then."""
    quiet()
    work, old = (folder.with_name(f".{folder.name}.{work_name(word)}") for word in ("work", "old"))
    with disk.translate_os_errors(f"{folder.name} cannot be saved", folder), torch.no_grad():
        disk.make_dir(folder.parent)
        _sweep(folder)
        try:
            work.mkdir()
            fill(work)
            write_files(work, tokenizer_files)
            (work / CARD).write_text(card, encoding="utf-8")
            for path in work.rglob("*"):
                if path.is_file():
                    disk.apply_umask(path)
                    _sync(path)
            if replace and folder.exists():
                os.rename(folder, old)
            is_first = disk.publish_dir(work, folder)
        except BaseException:
            if old.exists() and not folder.exists():
                os.rename(old, folder)
            raise
        finally:
            disk.remove_dir(work)
        disk.remove_dir(old)
    if not is_first:
        raise ConfigError(f"{folder} is there already", hint="delete it, or name another with --out")


def _sweep(folder: Path) -> None:
    """Remove what this process, or one of this machine that has ended, left beside a folder half done."""
    beside = f".{folder.name}."
    for path in folder.parent.iterdir():
        name = path.name.removeprefix(beside)
        if name != path.name and (is_own(name) or is_abandoned(name)):
            disk.remove_dir(path)


@contextmanager
def _explained(what: str, folder: Path) -> Iterator[None]:
    """Name what could not be written; libraries that write have errors of their own, for a full disk too."""
    try:
        yield
    except (KdpipeError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        is_disk = any(word in text.lower() for word in DISK_WORDS)
        refused = disk.system_error(error)
        hint = disk.advice(refused, folder) if refused is not None else FULL if is_disk else UNWRITABLE
        raise KdpipeError(f"{folder} cannot be saved: {what}: {text}", hint=hint) from error


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())

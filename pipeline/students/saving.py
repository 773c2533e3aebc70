"""`save_student`: a folder that transformers, vLLM and llama.cpp's converter can load.

In: a student, its tokenizer's files, a model card. Out: a folder, written whole or not at all; notes for the user.
Tokenizer files are copied byte for byte: converters recognize tokenizers by their exact output.
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
from kdpipe.cache.parts.tokenizer_files import write_files
from kdpipe.pipeline.models.folders import local_folder
from kdpipe.pipeline.models.model_info import quiet
from kdpipe.pipeline.students.student import Student
from kdpipe.pipeline.students.transformers4 import for_transformers_4, tokenizer_note
from kdpipe.schemas.errors import ConfigError, KdpipeError

CARD = "README.md"
# Texts of safetensors errors when the disk failed.
DISK_WORDS = ("no space left", "i/o error", "ioerror", "os error", "quota exceeded", "file too large")
FULL = "check free disk space, then run the command again; earlier checkpoints are intact"
UNWRITABLE = "transformers cannot save this model; report it with the versions of torch and transformers"


def save_student(student: Student, folder: Path, tokenizer_files: Mapping[str, bytes], card: str) -> tuple[str, ...]:
    """Save a student, or its LoRA adapter, in the data type of its weights."""
    if student.adapter is None:
        return save_model(student.model, folder, tokenizer_files, card)

    def fill(work: Path) -> None:
        with _explained_write_errors("the adapter", folder):
            student.adapter.save_pretrained(work)

    _publish(folder, fill, tokenizer_files, card)
    return (f"{folder} is an adapter for {student.shape.name}; kdpipe export merges them",)


def save_model(
    model: Any, folder: Path, tokenizer_files: Mapping[str, bytes], card: str, *, replace: bool = True
) -> tuple[str, ...]:
    """Save a whole model and return notes; overwrites an existing folder only with `replace`."""
    notes: list[str] = []

    def fill(work: Path) -> None:
        with _explained_write_errors("weights and settings", folder):
            _weights(model, work)
        with _explained_write_errors("config.json", folder):
            notes.extend(_add_transformers_4_keys(work, bool(getattr(model.config, "tie_word_embeddings", False))))
        _copy_own_code(model.config, work)

    _publish(folder, fill, tokenizer_files, card, replace=replace)
    if (note := tokenizer_note(tokenizer_files)) is not None:
        notes.append(note)
    return tuple(notes)


def _weights(model: Any, work: Path) -> None:
    """Weights, config, and the generation settings unchanged: transformers would reject invalid ones from the Hub."""
    settings, plain = model.generation_config, cast(Any, transformers.GenerationConfig)
    model.generation_config = plain() if settings is not None else None
    try:
        model.save_pretrained(work)
    finally:
        model.generation_config = settings
    if settings is not None:
        (work / "generation_config.json").write_text(settings.to_json_string(), encoding="utf-8")


def _add_transformers_4_keys(work: Path, tied: bool) -> list[str]:
    """Add the keys of transformers 4, unless transformers 5 would then read a different config."""
    path = work / "config.json"
    written = path.read_text(encoding="utf-8")
    values = for_transformers_4(json.loads(written), tied=tied)
    before = _read(work)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if _read(work) == before:
        return []
    path.write_text(written, encoding="utf-8")
    return [
        f"transformers 4 may load {values.get('model_type')} incorrectly: its config has the keys of version 5 only"
    ]


def _read(work: Path) -> dict[str, Any] | None:
    """The config as transformers reads it; None for a model with its own code."""
    path = work / "config.json"
    model_type = json.loads(path.read_bytes()).get("model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        return None
    # With its own reader, for its encoding of infinities.
    kind: Any = transformers.CONFIG_MAPPING[model_type]
    read: dict[str, Any] = kind.from_json_file(path).to_dict()
    # Keys of transformers 4 are kept by 5 without being used.
    known = kind().to_dict().keys()
    return {key: value for key, value in read.items() if key in known}


def _copy_own_code(config: Any, work: Path) -> None:
    """Copy the Python files of a model with its own code from a local folder."""
    source = Path(str(getattr(config, "_name_or_path", "") or "."))
    if getattr(config, "auto_map", None) and source.is_dir() and local_folder(str(source)) is not None:
        for path in sorted(source.glob("*.py")):
            shutil.copyfile(path, work / path.name)


def _publish(
    folder: Path, fill: Callable[[Path], None], tokenizer_files: Mapping[str, bytes], card: str, *, replace: bool = True
) -> None:
    """Build a folder under a temporary name, flush it and rename it; `replace` removes an existing one last."""
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
        raise ConfigError(f"{folder} already exists", hint="delete it, or use another --out")


def _sweep(folder: Path) -> None:
    """Remove temporary folders of this process, and of ended processes of this machine."""
    beside = f".{folder.name}."
    for path in folder.parent.iterdir():
        name = path.name.removeprefix(beside)
        if name != path.name and (is_own(name) or is_abandoned(name)):
            disk.remove_dir(path)


@contextmanager
def _explained_write_errors(what: str, folder: Path) -> Iterator[None]:
    """Turn errors of libraries, also for a full disk, into a message of what could not be written."""
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

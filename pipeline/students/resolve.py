"""`resolve_student`: which model `--student` names, before any weights are loaded.

In: `StudentSettings` and the token ids of the cache. Out: a `ResolvedStudent`. A name is tried as a preset, a config (a
JSON file), a model folder and a Hub id, in this order.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import transformers

from kdpipe.pipeline.models.model_info import ModelInfo, explained_load_errors, model_info_of, quiet, read_model_info
from kdpipe.pipeline.students.presets import PRESETS, TokenIds, preset_config
from kdpipe.pipeline.students.student_name import check_student, read_config
from kdpipe.schemas.choices import StudentSource
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_settings import StudentSettings

# Unknown keys this similar to a known one count as typos; configs on the Hub have other unknown keys, never read.
NEARLY = 0.85


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedStudent:
    """A student that can be loaded; with random init it uses the cache's tokenizer, else its own."""

    name: str
    kind: StudentSource
    shape: ModelInfo
    ids: TokenIds

    @property
    def is_fresh(self) -> bool:
        """Whether its weights are initialized randomly."""
        return self.kind in ("preset", "config")

    @property
    def origin(self) -> str | None:
        """Where its pretrained weights are from: a Hub id or the absolute path of a folder; None with random init."""
        if self.is_fresh:
            return None
        return self.name if self.kind == "hub" else str(Path(self.name).expanduser().resolve())


def resolve_student(settings: StudentSettings, ids: TokenIds) -> ResolvedStudent:
    check_student(settings)
    quiet()
    name = settings.name or ""
    path = Path(name).expanduser()
    if name in PRESETS:
        return _fresh(name, "preset", preset_config(name, ids), settings, ids)
    if path.is_file():
        return _fresh(name, "config", _config(path, ids), settings, ids)
    shape = read_model_info(settings)
    if shape.quantized:
        raise ConfigError(
            f"student {name} has quantized weights, which cannot be trained", hint="use the unquantized model"
        )
    return ResolvedStudent(name=name, kind="folder" if path.is_dir() else "hub", shape=shape, ids=ids)


def _fresh(name: str, kind: StudentSource, config: Any, settings: StudentSettings, ids: TokenIds) -> ResolvedStudent:
    if settings.revision is not None:
        raise ConfigError(f"student {name} is randomly initialized and has no revision", hint="remove student.revision")
    if settings.lora:
        raise ConfigError(
            f"student {name} is randomly initialized; LoRA needs a pretrained student",
            hint="remove --lora, or use a pretrained model",
        )
    return ResolvedStudent(name=name, kind=kind, shape=model_info_of(name, config), ids=ids)


def _config(path: Path, ids: TokenIds) -> Any:
    """The config in a file; a missing vocabulary size and special ids are those of the cache."""
    values = read_config(path)
    kind = values["model_type"]
    if kind not in transformers.CONFIG_MAPPING:
        near = get_close_matches(kind, list(transformers.CONFIG_MAPPING), n=2, cutoff=0.6)
        raise ConfigError(
            f"{path} has the model_type {kind}; expected a model type of transformers",
            hint=f"did you mean {' or '.join(near)}?" if near else 'add one, e.g. "model_type": "llama"',
        )
    values = {key: value for key, value in values.items() if key != "model_type"}
    mapped: Any = transformers.CONFIG_MAPPING[kind]
    _check_keys(path, values, mapped)
    if "vocab_size" not in values:
        values |= {"vocab_size": ids.count, **{key: id for key, id in ids.roles().items() if key not in values}}
    with explained_load_errors(str(path)):
        return mapped.from_dict(values)


def _check_keys(path: Path, values: dict[str, Any], kind: Any) -> None:
    """Refuse an unknown key that resembles a known one: transformers would ignore it silently."""
    known = {*kind().to_dict(), *kind.attribute_map}
    for key in values:
        near = [] if key in known else get_close_matches(key, known, n=1, cutoff=NEARLY)
        if near:
            raise ConfigError(f"{path} has an unknown key {key}", hint=f"did you mean {near[0]}?")

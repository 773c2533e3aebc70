"""`find_student`: what `--student` means, before any weights are loaded.

In: `StudentSettings`, and the tokenizer of the cache. Out: a `ResolvedStudent`: fresh or trained, its shape, where its
tokenizer is. A name is a preset's, a config's (a JSON file), a model folder's, or one on the hub, looked for in this
order.
"""

import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import transformers

from kdpipe.pipeline.models.model_info import ModelInfo, in_two_lines, quiet, read_shape, shape_of
from kdpipe.pipeline.students.presets import PRESETS, TokenIds, preset_config
from kdpipe.schemas.choices import StudentSource
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_settings import StudentSettings

KNOWN = f"a preset ({', '.join(PRESETS)}), a config in JSON, a model folder, or a hub id as in org/name"
# A key of a config that is nearly another is taken for a slip; configs of the hub carry others that nobody reads.
NEARLY = 0.85
# A word is taken for a preset mistyped from here on; tiny-llama, at 0.57, may be on the hub.
ALIKE = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedStudent:
    """A student that could be loaded; a fresh one takes the cache's tokenizer, others have their own."""

    name: str
    kind: StudentSource
    shape: ModelInfo
    ids: TokenIds

    @property
    def is_fresh(self) -> bool:
        """Whether its weights are still to be drawn."""
        return self.kind in ("preset", "config")

    @property
    def origin(self) -> str | None:
        """What it was before, None where it is fresh: a name on the hub, or the whole path of a folder."""
        if self.is_fresh:
            return None
        return self.name if self.kind == "hub" else str(Path(self.name).expanduser().resolve())


def find_student(settings: StudentSettings, ids: TokenIds) -> ResolvedStudent:
    """Find out what a student's name means."""
    name = settings.name
    if name is None:
        raise ConfigError("no student is named", hint=f"give --student: {KNOWN}")
    quiet()
    path = Path(name).expanduser()
    if name in PRESETS:
        return _fresh(name, "preset", preset_config(name, ids), settings, ids)
    if path.is_file():
        return _fresh(name, "config", _config(path, ids), settings, ids)
    if not path.is_dir():
        _refuse_slips(name)
    shape = read_shape(settings)
    if shape.quantized:
        raise ConfigError(
            f"the student {name} has quantized weights, which cannot be trained", hint="name the model as it was before"
        )
    return ResolvedStudent(name=name, kind="folder" if path.is_dir() else "hub", shape=shape, ids=ids)


def _fresh(name: str, kind: StudentSource, config: Any, settings: StudentSettings, ids: TokenIds) -> ResolvedStudent:
    if settings.revision is not None:
        raise ConfigError(f"the student {name} is made fresh, and has no revision", hint="leave the revision out")
    if settings.lora:
        raise ConfigError(
            f"the student {name} is made fresh: LoRA adapts a model that has been trained",
            hint="leave --lora out, or name a trained model",
        )
    return ResolvedStudent(name=name, kind=kind, shape=shape_of(name, config), ids=ids)


def _refuse_slips(name: str) -> None:
    """Refuse a word that is neither a path nor on the hub under an owner, and is like a preset or a file."""
    near = get_close_matches(name.lower(), PRESETS, n=2, cutoff=ALIKE)
    if name.endswith(".json"):
        raise ConfigError(f"there is no config {name}", hint="name a JSON file with a model_type, or a preset")
    if near and "/" not in name:
        raise ConfigError(
            f"there is no student called {name}", hint=f"did you mean {' or '.join(near)}? or give {KNOWN}"
        )


def _config(path: Path, ids: TokenIds) -> Any:
    """The config in a file; what it leaves out of vocabulary and special ids is the cache's."""
    try:
        values = json.loads(path.read_bytes(), object_hook=_as_number)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}", hint=f"a student is {KNOWN}") from None
    kind = values.get("model_type") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        found = f"the model_type {kind}" if isinstance(kind, str) else "no model_type"
        near = get_close_matches(str(kind), list(transformers.CONFIG_MAPPING), n=2, cutoff=0.6)
        raise ConfigError(
            f"{path} has {found}, which transformers must know",
            hint=f"did you mean {' or '.join(near)}?" if near else 'state one, for instance "model_type": "llama"',
        )
    values = {key: value for key, value in values.items() if key != "model_type"}
    mapped: Any = transformers.CONFIG_MAPPING[kind]
    _check_keys(path, values, mapped)
    if "vocab_size" not in values:
        values |= {"vocab_size": ids.count, **{key: id for key, id in ids.roles().items() if key not in values}}
    with in_two_lines(str(path)):
        return mapped.from_dict(values)


def _as_number(values: dict[str, Any]) -> Any:
    """Read infinities as transformers writes them; JSON has none."""
    word = values.get("__float__") if len(values) == 1 else None
    return float(word) if word in ("Infinity", "-Infinity", "NaN") else values


def _check_keys(path: Path, values: dict[str, Any], kind: Any) -> None:
    """Refuse a key that is nearly one that the config has: it would change nothing, and say nothing."""
    known = {*kind().to_dict(), *kind.attribute_map}
    for key in values:
        near = [] if key in known else get_close_matches(key, known, n=1, cutoff=NEARLY)
        if near:
            raise ConfigError(f"{path} has an unknown key {key}", hint=f"did you mean {near[0]}?")

"""Checks of `--student` that need neither torch nor transformers.

In: `StudentSettings`, a cache. Out: an error for a name that is no preset, config, model folder or Hub id, for an
incomplete folder, and for a folder with another vocabulary than the cache.
"""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from kdpipe.cache import layout
from kdpipe.cache.parts.tokenizer_content import TOKENIZER
from kdpipe.cache.reader import Cache
from kdpipe.pipeline.models.folders import HUB_LOOKUP, check_model_name, is_hub_id
from kdpipe.pipeline.students.presets import PRESETS
from kdpipe.pipeline.tokenizers.vocabulary_file import vocabulary_difference, vocabulary_of
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.strict_json import sha256_hex
from kdpipe.schemas.train_settings import StudentSettings

KNOWN: Final = f"a preset ({', '.join(PRESETS)}), a config.json, a model folder, or a Hub id such as org/name"
ACROSS: Final = "use a student of the teacher's family or one with random init; other tokenizers are not supported"
# Names this similar to a preset count as typos; tiny-llama, at 0.57, may be on the Hub.
ALIKE: Final = 0.7


def check_student(settings: StudentSettings) -> None:
    """Refuse a name that nothing can be loaded from; a Hub id is looked up later."""
    name = settings.name
    if name is None:
        raise ConfigError("no student given", hint=f"use --student with {KNOWN}")
    path = Path(name).expanduser()
    if name in PRESETS:
        return
    if path.is_file():
        read_config(path)
    else:
        if not path.is_dir():
            _refuse_typos(name)
        check_model_name(name)


def hub_lookup(name: str) -> str | None:
    """A line about a student that is looked up on the Hub, which may take long; None for a local one or a preset."""
    return HUB_LOOKUP.format(name) if name not in PRESETS and is_hub_id(name) else None


def check_pretrained(settings: StudentSettings) -> None:
    """The same for a student that must have weights."""
    check_student(settings)
    if settings.name in PRESETS or Path(settings.name or "").expanduser().is_file():
        raise ConfigError(
            f"student {settings.name} is randomly initialized: there is nothing to evaluate",
            hint="give a model folder, a Hub id, or the folder of a run",
        )


def check_vocabulary_file(settings: StudentSettings, cache: Cache) -> None:
    """Refuse a model folder whose tokenizer.json gives other tokens to the ids of the cache."""
    file, stored = Path(settings.name or "").expanduser() / TOKENIZER, cache.manifest.tokenizer.files.get(TOKENIZER)
    if settings.name in PRESETS or stored is None or not file.is_file():
        return
    data = file.read_bytes()
    if sha256_hex(data) == stored.sha256:
        return
    theirs = cache.store.read(f"{layout.TOKENIZER}/{TOKENIZER}", stored.bytes)
    mine, other = vocabulary_of(data), None if theirs is None else vocabulary_of(theirs)
    if mine is not None and other is not None and (text := vocabulary_difference(mine, other)) is not None:
        raise Incompatible(f"the tokenizer of student {settings.name} differs from the cache's: {text}", hint=ACROSS)


def read_config(path: Path) -> dict[str, Any]:
    """The values of a config.json with a model_type."""
    try:
        values = json.loads(path.read_bytes(), object_hook=_as_number)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}", hint=f"a student is {KNOWN}") from None
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise ConfigError(
            f"{path} has no model_type; expected a model type of transformers",
            hint='add one, e.g. "model_type": "llama"',
        )
    return values


def _as_number(values: dict[str, Any]) -> Any:
    """Infinities as transformers writes them; JSON has none."""
    word = values.get("__float__") if len(values) == 1 else None
    return float(word) if word in ("Infinity", "-Infinity", "NaN") else values


def _refuse_typos(name: str) -> None:
    """Refuse a name without an owner that resembles a preset, and a config that does not exist."""
    near = get_close_matches(name.lower(), PRESETS, n=2, cutoff=ALIKE)
    if name.endswith(".json"):
        raise ConfigError(f"no such file: {name}", hint="give a config.json with a model_type, or a preset")
    if near and "/" not in name:
        raise ConfigError(f"unknown student {name}", hint=f"did you mean {' or '.join(near)}? otherwise use {KNOWN}")

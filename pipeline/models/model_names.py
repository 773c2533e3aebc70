"""The name of a model in model cards and manifests.

In: a model folder and its config. Out: a name. Folders such as final, checkpoint-123 or snapshots/HASH do not name the
model in them; a parent folder or the name in the config does.
"""

import re
from pathlib import Path
from typing import Any

from kdpipe.pipeline.models.model_info import ModelInfo

# Generic folder names of training scripts and the Hub's cache.
_PLACEHOLDER = re.compile(
    r"(final|last|latest|best|merged|export(ed)?|out(put)?s?|runs?|snapshots?|weights|hf|tmp|temp|home|root|main|"
    r"(final|best|last)[-_]?(model|checkpoint)|(checkpoint|ckpt|step|epoch|global_step|iter)s?[-_]?[0-9]*|[0-9]+|"
    r"[0-9a-f]{16,64}|[0-9a-f-]{36})",
    re.IGNORECASE,
)
# ~/.cache/huggingface/hub/models--ORG--NAME/snapshots/HASH
_HUB_CACHE = re.compile(r"models--([^/]+?)--([^/]+)")
# Parent folders that may name a model: runs/NAME/checkpoints/step-100.
_LEVELS = 3


def is_placeholder(name: str) -> bool:
    """Whether a folder name is generic."""
    return _PLACEHOLDER.fullmatch(name) is not None or name == ""


def name_of_folder(folder: Path, shape: ModelInfo) -> str:
    levels = [folder.resolve(), *folder.resolve().parents][: _LEVELS + 1]
    for level in levels:
        if hub := _HUB_CACHE.fullmatch(level.name):
            return f"{hub[1]}/{hub[2]}"
        if not is_placeholder(level.name):
            return level.name
    return _in_config(shape.config) or f"{shape.model_type} of {shape.n_parameters:,} parameters"


def _in_config(config: Any) -> str | None:
    """The Hub id or folder name stored in a config, unless generic."""
    stated = str(getattr(config, "_name_or_path", "") or "")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", stated) and not is_placeholder(stated.partition("/")[2]):
        return stated
    name = Path(stated).name
    return None if is_placeholder(name) else name

"""What a model is called where people read of it: cards and manifests, never by the name of an output folder.

In: a model folder and its config. Out: a name. Folders such as final, checkpoint-123 or snapshots/HASH say nothing of
the model in them; the folder of the run above them does, or the name that its config keeps.
"""

import re
from pathlib import Path
from typing import Any

from kdpipe.pipeline.models.model_info import ModelInfo

# Names of folders that training scripts and the hub's cache make for any model.
_PLACEHOLDER = re.compile(
    r"(final|last|latest|best|merged|export(ed)?|out(put)?s?|runs?|snapshots?|weights|hf|tmp|temp|home|root|main|"
    r"(final|best|last)[-_]?(model|checkpoint)|(checkpoint|ckpt|step|epoch|global_step|iter)s?[-_]?[0-9]*|[0-9]+|"
    r"[0-9a-f]{16,64}|[0-9a-f-]{36})",
    re.IGNORECASE,
)
# ~/.cache/huggingface/hub/models--ORG--NAME/snapshots/HASH
_HUB_CACHE = re.compile(r"models--([^/]+?)--([^/]+)")
# Folders above a model that may name it: runs/NAME/checkpoints/step-100.
_LEVELS = 3


def is_placeholder(name: str) -> bool:
    """Whether a name is what any model's folder may be called."""
    return _PLACEHOLDER.fullmatch(name) is not None or name == ""


def name_of_folder(folder: Path, shape: ModelInfo) -> str:
    """The name of the model in a folder."""
    levels = [folder.resolve(), *folder.resolve().parents][: _LEVELS + 1]
    for level in levels:
        if hub := _HUB_CACHE.fullmatch(level.name):
            return f"{hub[1]}/{hub[2]}"
        if not is_placeholder(level.name):
            return level.name
    return _in_config(shape.config) or f"{shape.model_type} of {shape.n_parameters:,} parameters"


def _in_config(config: Any) -> str | None:
    """The hub id or the folder's name that a config was saved with, if it names a model."""
    stated = str(getattr(config, "_name_or_path", "") or "")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", stated) and not is_placeholder(stated.partition("/")[2]):
        return stated
    name = Path(stated).name
    return None if is_placeholder(name) else name

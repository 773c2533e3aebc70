"""Distill language models in two stages: cache a teacher's predictions, then train students from the cache.

The public functions are imported on first use, so that `import kdpipe` and `import kdpipe.cache` load no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdpipe.cache.opening import open_cache
    from kdpipe.cache.reader import Cache
    from kdpipe.functions import cache_teacher, compare, evaluate, plan, train
    from kdpipe.run_result import RunResult
    from kdpipe.schemas.errors import KdpipeError

    __version__: str

__all__ = [
    "Cache", "KdpipeError", "RunResult", "__version__", "cache_teacher", "compare", "evaluate", "open_cache", "plan",
    "train",
]  # fmt: skip

_MODULES = {
    "Cache": "kdpipe.cache.reader",
    "KdpipeError": "kdpipe.schemas.errors",
    "RunResult": "kdpipe.run_result",
    "cache_teacher": "kdpipe.functions",
    "compare": "kdpipe.functions",
    "evaluate": "kdpipe.functions",
    "open_cache": "kdpipe.cache.opening",
    "plan": "kdpipe.functions",
    "train": "kdpipe.functions",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("kdpipe")
    if name not in _MODULES:
        raise AttributeError(f"module 'kdpipe' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

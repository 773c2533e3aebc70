"""Check a saved student: load it again and compare its logits with those of the student in memory.

In: a folder, some token ids, the student in memory. Out: the largest difference, or an error. A small student is loaded
in this process. A large one, and one with code of its own, is loaded in a child process without any state of the run,
which is this file run as a program.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdpipe.cache.reader import Cache
from kdpipe.cache.verify.children import end_with_parent, shielded
from kdpipe.pipeline.models.head import TOLERANCE
from kdpipe.schemas.errors import KdpipeError, first_line

# Relative to the largest logit. A wrong RoPE base changes logits by half of it, another device by less than this.
LEAST_TOLERANCE = 1e-3
# Loading a smaller student takes less time than starting a process.
IN_PROCESS_PARAMETERS = 50_000_000
MOST_TOKENS = 64
ROWS = 8
SAVED = "checkpoints are intact; re-run with --debug and report it with the versions of torch and transformers"


def cached_ids(cache: Cache) -> list[int]:
    """The start of the cache's first document."""
    tokens = cache.tokens(0)
    ends = [int(start) for start in tokens.document_starts[1:]]
    return [int(token) for token in tokens.tokens[: min([MOST_TOKENS, *ends[:1]])]]


def check_reload(
    logits: Callable[[Tensor], Tensor],
    folder: Path,
    ids: Sequence[int],
    device: torch.device,
    *,
    n_parameters: int,
    trusted: bool = False,
) -> float:
    """Compare the last rows of both; the largest difference as a share of the largest logit."""
    with torch.no_grad():
        live_RV = logits(torch.tensor([list(ids)], device=device))[0, -ROWS:].float().cpu().numpy()
    in_process = n_parameters < IN_PROCESS_PARAMETERS and not trusted
    again_RV, dtype = _in_this_process(folder, ids) if in_process else _fresh(folder, ids, trusted)
    vocabulary = live_RV.shape[1]
    if again_RV.shape[0] != len(live_RV) or again_RV.shape[1] < vocabulary:
        raise KdpipeError(
            f"{folder}: logits of shape {list(again_RV.shape)} after loading; expected {list(live_RV.shape)}",
            hint=SAVED,
        )
    largest = float(np.abs(live_RV).max())
    difference = float(np.abs(again_RV[:, :vocabulary] - live_RV).max()) / max(largest, 1e-30)
    tolerance = max(LEAST_TOLERANCE, TOLERANCE[dtype])
    if not difference <= tolerance:
        raise KdpipeError(
            f"{folder} gives other logits after loading: they differ by {difference:.2g} of the largest; "
            f"expected at most {tolerance:g}",
            hint=SAVED,
        )
    return difference


def _in_this_process(folder: Path, ids: Sequence[int]) -> tuple[np.ndarray[Any, Any], torch.dtype]:
    """Logits and the data type of the weights, from this process."""
    try:
        return _load_and_run(folder.resolve(), ids, trusted=False)
    except Exception as error:
        raise KdpipeError(f"{folder} cannot be loaded: {first_line(error)}", hint=SAVED) from error


def _fresh(folder: Path, ids: Sequence[int], trusted: bool) -> tuple[np.ndarray[Any, Any], torch.dtype]:
    """Logits and the data type of the weights from a child process."""
    words = [str(folder.resolve()), json.dumps(list(ids)), "trusted" if trusted else ""]
    # -P: do not import from the current directory.
    command = [sys.executable, "-P", "-m", "kdpipe.pipeline.students.verify_saved", *words]
    with shielded():
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with child:
        try:
            output, errors = child.communicate()
        except BaseException:
            child.kill()
            raise
    if child.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines() or [f"exit code {child.returncode}"]
        raise KdpipeError(f"{folder} cannot be loaded in a new process: {lines[-1][:300]}", hint=SAVED)
    name, _, array = output.partition(b"\n")
    dtype: torch.dtype = getattr(torch, name.decode())
    return np.load(io.BytesIO(array), allow_pickle=False), dtype


def _load_and_run(folder: Path, ids: Sequence[int], *, trusted: bool) -> tuple[np.ndarray[Any, Any], torch.dtype]:
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype="auto", trust_remote_code=trusted).eval()
    with torch.no_grad():
        logits_RV = model(torch.tensor([list(ids)]), use_cache=False).logits[0, -ROWS:]
    return logits_RV.float().numpy(), next(model.parameters()).dtype


def _packed(folder: str, ids: str, trusted: str) -> bytes:
    """The result as the output of the child process."""
    logits_RV, dtype = _load_and_run(Path(folder), json.loads(ids), trusted=bool(trusted))
    array = io.BytesIO()
    np.save(array, logits_RV)
    return str(dtype).removeprefix("torch.").encode() + b"\n" + array.getvalue()


if __name__ == "__main__":
    end_with_parent()
    try:
        # Libraries may print to stdout.
        with open(os.dup(1), "wb") as answers:
            os.dup2(2, 1)
            answers.write(_packed(*sys.argv[1:]))
    except Exception as error:
        sys.exit(first_line(error))

"""Read again: does a saved student say in a fresh process what it said in this one?

In: a folder, some token ids, the logits that the live student gives for them. Out: nothing, or what differs. The child
is this file run as a program: it loads the folder as anybody would, and knows nothing of the run.
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
from kdpipe.schemas.errors import KdpipeError

# Of the largest logit. A wrong base of the rotary positions moves logits by half of it, another device by less than so.
LEAST_TOLERANCE = 1e-3
MOST_TOKENS = 64
ROWS = 8
SAVED = "the checkpoints are safe; run it again with --debug, and report it with the versions of torch and transformers"


def cached_ids(cache: Cache) -> list[int]:
    """The beginning of the first document that the cache has."""
    tokens = cache.tokens(0)
    ends = [int(start) for start in tokens.document_starts[1:]]
    return [int(token) for token in tokens.tokens[: min([MOST_TOKENS, *ends[:1]])]]


def check_reload(
    speak: Callable[[Tensor], Tensor], folder: Path, ids: Sequence[int], device: torch.device, *, trusted: bool = False
) -> float:
    """Compare the last rows of both, and give the largest difference as a share of the largest logit."""
    with torch.no_grad():
        live_RV = speak(torch.tensor([list(ids)], device=device))[0, -ROWS:].float().cpu().numpy()
    again_RV, dtype = _fresh(folder, ids, trusted)
    vocabulary = live_RV.shape[1]
    if again_RV.shape[0] != len(live_RV) or again_RV.shape[1] < vocabulary:
        raise KdpipeError(
            f"{folder} gives logits of shape {list(again_RV.shape)} in a fresh process, {list(live_RV.shape)} here",
            hint=SAVED,
        )
    largest = float(np.abs(live_RV).max())
    difference = float(np.abs(again_RV[:, :vocabulary] - live_RV).max()) / max(largest, 1e-30)
    tolerance = max(LEAST_TOLERANCE, TOLERANCE[dtype])
    if not difference <= tolerance:
        raise KdpipeError(
            f"{folder} does not say in a fresh process what it said here: logits differ by {difference:.2g} of the "
            f"largest, at most {tolerance:g} is expected",
            hint=SAVED,
        )
    return difference


def _fresh(folder: Path, ids: Sequence[int], trusted: bool) -> tuple[np.ndarray[Any, Any], torch.dtype]:
    """Ask a child process, which answers with the type of the weights and its logits."""
    words = [str(folder.resolve()), json.dumps(list(ids)), "trusted" if trusted else ""]
    # -P: nothing in the folder that we stand in is taken for a library.
    command = [sys.executable, "-P", "-m", "kdpipe.pipeline.students.verify_saved", *words]
    with shielded():
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with child:
        try:
            answer, complaints = child.communicate()
        except BaseException:
            child.kill()
            raise
    if child.returncode != 0:
        lines = complaints.decode(errors="replace").strip().splitlines() or [f"exit code {child.returncode}"]
        raise KdpipeError(f"{folder} does not load in a fresh process: {lines[-1][:300]}", hint=SAVED)
    name, _, array = answer.partition(b"\n")
    dtype: torch.dtype = getattr(torch, name.decode())
    return np.load(io.BytesIO(array), allow_pickle=False), dtype


def _speak(folder: str, ids: str, trusted: str) -> bytes:
    """Load a folder as anybody would; the type of its weights and the logits of its last rows."""
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype="auto", trust_remote_code=bool(trusted)).eval()
    with torch.no_grad():
        logits_RV = model(torch.tensor([json.loads(ids)]), use_cache=False).logits[0, -ROWS:]
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    array = io.BytesIO()
    np.save(array, logits_RV.float().numpy())
    return dtype.encode() + b"\n" + array.getvalue()


if __name__ == "__main__":
    end_with_parent()
    try:
        # What libraries print is no answer.
        with open(os.dup(1), "wb") as answers:
            os.dup2(2, 1)
            answers.write(_speak(*sys.argv[1:]))
    except Exception as error:
        sys.exit(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)

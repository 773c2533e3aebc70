"""Time to reduce a row of logits by target kind, compared with the output head's product.

In: nothing; logits are a long tail plus noise. Out: one JSON document, microseconds per row. `--quick` runs a small
version, for tests.
"""

import argparse
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from measure import machine, rounded, seconds

from kdpipe.pipeline.targets.draws import row_keys
from kdpipe.pipeline.targets.reduce import Reducer, to_block
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.pipeline.targets.target_spec import target_spec
from kdpipe.schemas.capture_settings import TargetSettings
from kdpipe.schemas.target_kinds import OutputHead
from kdpipe.schemas.targets import HiddenSpec

WIDTH = 768
CASES: Mapping[str, TargetSettings] = {
    "lean": TargetSettings(profile="lean"),
    "standard": TargetSettings(),
    "standard_at_2": TargetSettings(target_temperature=2.0),
    "standard_without_temperatures": TargetSettings(temperatures=()),
    "fine": TargetSettings(profile="fine"),
    "sampled_50": TargetSettings(kind="sampled"),
    "topk_64": TargetSettings(kind="topk"),
    "topp_95": TargetSettings(kind="topp"),
    "state": TargetSettings(kind="state"),
}


def measured(size: int, n_rows: int, device: torch.device) -> dict[str, Any]:
    """The head's product and every case, at one vocabulary."""
    generator = torch.Generator().manual_seed(0)
    head_VH = torch.randn(size, WIDTH, generator=generator).to(device) / WIDTH**0.5
    states_RH = torch.randn(n_rows, WIDTH, generator=generator).to(device) * 3
    falling_V = -1.05 * torch.log(torch.arange(size, device=device) + 2.7)
    times: dict[str, Any] = {"head_product": microseconds(lambda: states_RH @ head_VH.T, n_rows, device)}
    logits_RV = states_RH @ head_VH.T + falling_V
    for name, settings in CASES.items():
        times[name] = case(settings, logits_RV)
    return times


def case(settings: TargetSettings, logits_RV: torch.Tensor) -> dict[str, float]:
    """Reduce logits and assemble a block."""
    (n_rows, size), device = logits_RV.shape, logits_RV.device
    targets = target_spec(settings, size, OutputHead(width=WIDTH))
    request = TargetRequest(targets=targets, hidden=HiddenSpec(), vocabulary_size=size, seed=0)
    reducer = Reducer(request, device)
    labels_R = torch.zeros(n_rows, dtype=torch.int64, device=device)
    keys_R = row_keys(0, "train", 0, 0, n_rows).to(device)
    reduced = reducer.reduce(logits_RV, labels_R, keys_R).to("cpu")
    mask = np.ones(n_rows, bool)
    return {
        "reduce": microseconds(lambda: reducer.reduce(logits_RV, labels_R, keys_R), n_rows, device),
        "block": 1e6 * seconds(lambda: to_block([reduced], mask, targets)) / n_rows,
        "entries": float((reduced.n_exact_R + reduced.n_draws_R).float().mean()),
    }


def microseconds(work: Any, n_rows: int, device: torch.device) -> float:
    """Microseconds per row, including work on the device."""

    def waited() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return 1e6 * seconds(waited) / n_rows


def main() -> None:
    """Measure all cases and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Few rows, for tests only")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    sizes = {2_000: 64} if arguments.quick else {32_000: 512, 152_000: 128}
    with torch.inference_mode():
        cases = {
            str(size): measured(size, n * (32 if device.type == "cuda" else 1), device) for size, n in sizes.items()
        }
    threads = torch.get_num_threads()
    print(
        json.dumps(
            rounded({"machine": machine(), "device": str(device), "threads": threads, "microseconds_per_row": cases})
        )
    )


if __name__ == "__main__":
    main()

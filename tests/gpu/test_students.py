"""Students on a GPU: losses equal to their twin, runs in every precision, scaling, resume, memory that runs out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe.pipeline.losses.terms import factor
from kdpipe.schemas.errors import Interrupted, KdpipeError
from support.loss_twins import Asked, largest_ids, targets, world
from support.losses import assert_equal
from support.stage_two import RecordingProgress, Stopping, losses, make_cache, run, settings_for, weights

pytestmark = pytest.mark.gpu
DEVICE = "cuda:0"
NAMES = ("ce", "forward_kl", "skew_kl", "reverse_kl", "jsd", "total_variation")
KEPT = [1, 2, 3, 5, 8, 11, 4, 23, 22, 7, 1, 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with teacher and cache."""
    path = tmp_path_factory.mktemp("students")
    make_cache(path)
    return path


def on_gpu(folder: Path, out: str, precision: str = "fp32", **changes: dict[str, Any]) -> Any:
    machine = {"device": DEVICE, "precision": precision}
    return settings_for(folder, out, machine=machine, **changes)


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_and_gradients_equal_the_twin(dtype: torch.dtype, temperature: float, opaque: bool) -> None:
    w = world(bias=True, soft_cap=3.0, n_padding=2)
    exact = largest_ids(w, KEPT)
    requested = [
        Asked(
            name=name,
            coefficient=0.2 * factor(name, temperature),  # type: ignore[arg-type]
            temperature=1.0 if name == "ce" else temperature,
            exact=None if name == "ce" else exact,
        )
        for name in NAMES
    ]
    assert_equal(w, requested, targets(w, exact), dtype=dtype, device=DEVICE, opaque=opaque)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "fp16-pure"])
def test_a_gpu_run_trains_as_on_a_cpu(folder: Path, precision: str) -> None:
    config = json.loads((Path(settings_for(folder).student.name or "")).read_text())
    (folder / "sure.json").write_text(json.dumps(config | {"attention_dropout": 0.0}))
    changes = {
        "student": {"name": str(folder / "sure.json")},
        "losses": {"weights": {"cosine": 0.1, "position_relations": 0.1}, "hidden": {"router": True}},
    }
    run(settings_for(folder, f"cpu-{precision}", **changes))
    report = run(on_gpu(folder, f"gpu-{precision}", precision, **changes))
    assert report.memory.peak_device is not None and report.memory.peak_device > 0
    ours, theirs = losses(folder / f"gpu-{precision}"), losses(folder / f"cpu-{precision}")
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    # The first loss is that of the same weights; later ones are after steps that round otherwise.
    rel = 1e-4 if precision == "fp32" else 2e-2
    assert ours[0][1] == pytest.approx(theirs[0][1], rel=rel)
    if precision != "fp16-pure":
        assert [one for _, one in ours] == pytest.approx([one for _, one in theirs], rel=10 * rel)


def test_a_scaled_loss_overflows_and_is_halved(folder: Path) -> None:
    """With gradients 2^16 times too large the first steps overflow; that is no fault, and every step is taken."""
    changes = {"losses": {"weights": {"forward_kl": 1e4, "ce": 1e4}}}
    progress = RecordingProgress()
    report = run(on_gpu(folder, "scaled", "fp16", **changes), progress)
    lines = [json.loads(line) for line in (folder / "scaled" / "metrics.jsonl").read_text().splitlines()]
    verdicts = [line["verdict"] for line in lines if "verdict" in line]
    assert (report.steps, report.rollbacks) == (6, 0)
    assert verdicts.count("overflow") == report.skipped > 0


def test_a_stopped_run_resumes(folder: Path) -> None:
    """Kernels of a GPU add up in any order: near, where a CPU gives the same bits."""
    run(on_gpu(folder, "whole"))
    with pytest.raises(Interrupted):
        run(on_gpu(folder, "stopped"), Stopping(4, 15))
    assert run(on_gpu(folder, "stopped")).resumed_from == 4
    for (_, one), (_, other) in zip(losses(folder / "stopped"), losses(folder / "whole"), strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    for name, value in weights(folder / "whole").items():
        torch.testing.assert_close(weights(folder / "stopped")[name], value, atol=1e-3, rtol=1e-2)


def test_running_out_of_memory_names_what_to_lower(folder: Path) -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    wide = {"student": {"name": "100m"}}
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(0) + (256 << 20)) / total)
    try:
        with pytest.raises(KdpipeError, match="out of memory") as caught:
            run(on_gpu(folder, "large", **wide))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "--set machine.portion=1" in str(caught.value.hint)

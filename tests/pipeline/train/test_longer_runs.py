"""A run is lengthened to the bit of the run that was as long from the start, or refused with what would differ."""

import json
import shlex
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe.cli.flags import ParsedFlags
from kdpipe.cli.load_settings import train_settings
from kdpipe.cli.train_options import FLAGS
from kdpipe.pipeline.training import checkpoints, longer_run, run_folder, training_run
from kdpipe.schemas.errors import ConfigError, Interrupted
from kdpipe.schemas.train_rules import applicable
from kdpipe.schemas.train_settings import TrainSettings
from support.stage_two import RecordingProgress, Stopping, contents, history, run, settings_for, weights

WSD: dict[str, Any] = {"schedule": {"kind": "wsd", "warmup": 0.0, "decay": 0.4}}
CONSTANT: dict[str, Any] = {"schedule": {"kind": "constant", "warmup": 0.0}}


def shaped(folder: Path, out: Path, n_steps: int, **changes: Any) -> TrainSettings:
    shape: dict[str, Any] = {
        "run": {"max_steps": n_steps, "batch_size": 2, "accumulate": 1},
        "evaluation": {"every": 2, "limit": 1},
        "saving": {"every": 2, "keep": 1},
    }
    sections = {name: shape.get(name, {}) | changes.get(name, {}) for name in shape | changes}
    return settings_for(folder, **sections).model_copy(update={"out": str(out)})


def copied(run_of: Path, tmp_path: Path) -> Path:
    shutil.copytree(run_of, tmp_path / "run")
    return tmp_path / "run"


def assert_same(out: Path, whole: Path) -> None:
    assert history(out) == history(whole)
    ours, theirs = weights(out), weights(whole)
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    last, theirs_last = (checkpoints.load(checkpoints.listed(each)[-1]) for each in (out, whole))
    assert (last.state.step, last.state.place, last.state.best) == (
        theirs_last.state.step,
        theirs_last.state.place,
        theirs_last.state.best,
    )
    for name in ("optimizer", "random"):
        found, expected = getattr(last, name), getattr(theirs_last, name)
        assert found.keys() == expected.keys() and all(torch.equal(each, expected[key]) for key, each in found.items())


@pytest.fixture(scope="module")
def whole(folder: Path) -> Callable[[int], Path]:
    """Runs of so many steps from start to end, each made once."""

    @cache
    def whole_of(n_steps: int) -> Path:
        run(shaped(folder, folder / f"whole-{n_steps}", n_steps, **WSD))
        return folder / f"whole-{n_steps}"

    return whole_of


@pytest.fixture(scope="module")
def fallen(whole: Callable[[int], Path]) -> Path:
    """A finished run of 5 steps, in the last 2 of which the learning rate falls."""
    return whole(5)


@pytest.fixture(scope="module")
def cosine(folder: Path) -> Path:
    run(shaped(folder, folder / "cosine", 4))
    return folder / "cosine"


WAYS: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "constant": (4, 6, 4, CONSTANT),
    # The end of 5 steps is evaluated, and step 5 of 7 is not.
    "constant, of odd length": (5, 7, 4, CONSTANT | {"saving": {"keep": 2}}),
    "alpha with the schedule": (5, 8, 3, WSD | {"losses": {"alpha_schedule": "wsd"}}),
    "muon": (5, 8, 3, WSD | {"optimizer": {"kind": "muon"}}),
}


def test_a_run_after_its_decay_is_lengthened_from_before_the_decay(
    folder: Path, tmp_path: Path, fallen: Path, whole: Callable[[int], Path]
) -> None:
    out, progress = copied(fallen, tmp_path), RecordingProgress()
    assert {3, 5} <= {checkpoints.step_of(path) for path in checkpoints.listed(out)}
    report = run(shaped(folder, out, 8, **WSD), progress)
    assert (report.steps, report.steps_planned, report.resumed_from) == (8, 8, 3)
    [line] = [line for line in progress.messages if line.startswith("lengthening a run")]
    assert "resuming from step 3" in line and "step-000005" in line
    assert_same(out, whole(8))
    assert json.loads((out / "run.json").read_text())["settings"]["run"]["max_steps"] == 8
    # Once more, and now it is the longer run that has ended.
    assert run(shaped(folder, out, 8, **WSD)) == report
    with pytest.raises(ConfigError, match=r"run\.max_steps: 8 -> 5"):
        run(shaped(folder, out, 5, **WSD))
    # It can be lengthened again: its own fall began later.
    assert run(shaped(folder, out, 10, **WSD)).resumed_from == 5
    assert_same(out, whole(10))


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way == "constant" else pytest.mark.slow) for way in WAYS]
)
def test_a_lengthened_run_equals_the_longer_run_to_the_bit(folder: Path, tmp_path: Path, way: str) -> None:
    before, after, begin, changes = WAYS[way]
    out, whole = tmp_path / "run", tmp_path / "whole"
    run(shaped(folder, out, before, **changes))
    assert run(shaped(folder, out, after, **changes)).resumed_from == begin
    run(shaped(folder, whole, after, **changes))
    assert_same(out, whole)


@pytest.mark.slow
def test_more_epochs_lengthen_a_run_whose_last_step_was_short(folder: Path, tmp_path: Path) -> None:
    def of(out: Path, epochs: float) -> TrainSettings:
        settings = shaped(folder, out, 1, **CONSTANT, saving={"keep": 2})
        return settings.model_copy(
            update={"run": settings.run.model_copy(update={"max_steps": None, "epochs": epochs, "batch_size": 4})}
        )

    short = run(of(tmp_path / "run", 0.4))
    long = run(of(tmp_path / "run", 0.6))
    assert short.steps < long.steps and long.resumed_from == (short.steps - 1) // 2 * 2
    run(of(tmp_path / "whole", 0.6))
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_stopped_run_is_lengthened_where_it_was_stopped(
    folder: Path, tmp_path: Path, whole: Callable[[int], Path]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(shaped(folder, out, 8, **WSD), Stopping(3, signal.SIGTERM))
    assert run(shaped(folder, out, 10, **WSD)).resumed_from == 3
    assert_same(out, whole(10))


def test_the_checkpoint_before_the_decay_is_printed(folder: Path, tmp_path: Path) -> None:
    progress = RecordingProgress()
    run(shaped(folder, tmp_path / "run", 5, **WSD), progress, dry_run=True)
    assert "checkpoints every 2 steps, at step 3 before the decay, and at the end" in progress.messages


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_a_schedule_that_depends_on_the_length_cannot_be_lengthened(
    folder: Path, tmp_path: Path, cosine: Path, kind: str
) -> None:
    changes = {"schedule": {"kind": kind}}
    if kind == "cosine":
        out = copied(cosine, tmp_path)
    else:
        out = tmp_path / "run"
        run(shaped(folder, out, 4, **changes))
    before = contents(out)
    with pytest.raises(ConfigError, match=r"6:.*learning rate factor.*step \d") as refused:
        run(shaped(folder, out, 6, **changes))
    assert refused.value.exit_code == 2
    assert all(word in str(refused.value.hint) for word in (kind, "--overwrite", "wsd", f"--student {out}/final"))
    assert contents(out) == before
    assert run(shaped(folder, out, 6, **changes), overwrite=True).steps == 6


def hinted(folder: Path, settings: TrainSettings, hint: str) -> TrainSettings:
    """Settings with the options of a hint."""
    words = shlex.split(hint.removeprefix("add "))
    assert words and len(words) % 2 == 0
    table, given = {flag.name: flag for flag in FLAGS}, list(zip(words[::2], words[1::2], strict=True))
    flags = tuple(
        (table[name], table[name].convert(table[name].type(value))) for name, value in given if name != "--set"
    )
    config = folder / "asked.json"
    config.write_text(json.dumps(applicable(settings)))
    sets = tuple(value for name, value in given if name == "--set")
    return train_settings(ParsedFlags(config=config, sets=sets, flags=flags))


@pytest.mark.slow
def test_shares_of_the_length_are_refused_with_settings_that_keep_the_steps(folder: Path, tmp_path: Path) -> None:
    """A warm-up is a share of the steps, and evaluations are a tenth of the run apart by default."""
    changes = {"schedule": {"kind": "constant", "warmup": 0.1}, "evaluation": {"every": None}, "saving": {"every": 1}}
    out = tmp_path / "run"
    run(shaped(folder, out, 10, **changes))
    longer = shaped(folder, out, 20, **changes)
    with pytest.raises(ConfigError, match=r"step 1.*1.*run.*0\.5") as refused:
        run(longer)
    hint = str(refused.value.hint)
    assert hint == "add --warmup 0.05 --eval-every 1"
    again = hinted(tmp_path, longer, hint)
    assert run(again).resumed_from == 10
    whole = again.model_copy(update={"out": str(tmp_path / "whole")})
    run(whole)
    assert_same(out, tmp_path / "whole")


def test_phases_are_compared_by_their_steps(folder: Path, tmp_path: Path) -> None:
    def of(n_steps: int, first: float) -> TrainSettings:
        phases = [{"until": first, "alpha": 0.5}, {"until": 1.0, "order": "length"}]
        changes = CONSTANT | {"run": {"max_steps": n_steps, "batch_size": 2, "accumulate": 1, "phases": phases}}
        return shaped(folder, tmp_path / "run", n_steps, **changes)

    run(of(4, 0.5))
    with pytest.raises(ConfigError, match=r"step 3.*phase") as refused:
        run(of(8, 0.5))
    assert "--overwrite" in str(refused.value.hint)
    assert run(of(8, 0.25)).resumed_from == 4
    run(of(8, 0.25).model_copy(update={"out": str(tmp_path / "whole")}))
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_constant_run_can_be_lengthened_with_a_decay(
    folder: Path, tmp_path: Path, whole: Callable[[int], Path]
) -> None:
    out = tmp_path / "run"
    run(shaped(folder, out, 4, **CONSTANT))
    assert run(shaped(folder, out, 8, **WSD)).resumed_from == 4
    assert_same(out, whole(8))


def test_a_run_without_a_checkpoint_before_the_decay_is_refused(folder: Path, tmp_path: Path, fallen: Path) -> None:
    out = copied(fallen, tmp_path)
    shutil.rmtree(out / "checkpoints" / "step-000003")
    before = contents(out)
    with pytest.raises(ConfigError, match=r"checkpoint.*step 3"):
        run(shaped(folder, out, 8, **WSD))
    assert contents(out) == before


def test_another_setting_besides_the_length_is_another_run(folder: Path, tmp_path: Path, fallen: Path) -> None:
    out = copied(fallen, tmp_path)
    for other in (shaped(folder, out, 8, **WSD, losses={"alpha": 0.2}), shaped(folder, out, 4, **WSD)):
        with pytest.raises(ConfigError, match="run with other settings"):
            run(other)


@pytest.mark.parametrize("requested_again", [5, 8])
def test_a_lengthening_that_is_killed_leaves_a_run_of_either_length(
    folder: Path,
    tmp_path: Path,
    fallen: Path,
    whole: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    requested_again: int,
) -> None:
    """Checkpoints of the fall are gone, and the folder is still that of the shorter run."""
    out = copied(fallen, tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run_folder, "replace", killed)
        run(shaped(folder, out, 8, **WSD))
    assert run(shaped(folder, out, requested_again, **WSD)).resumed_from == 3
    assert_same(out, whole(requested_again))


def test_a_lengthened_run_that_is_stopped_is_resumed(
    folder: Path, tmp_path: Path, fallen: Path, whole: Callable[[int], Path]
) -> None:
    out = copied(fallen, tmp_path)
    with pytest.raises(Interrupted):
        run(shaped(folder, out, 8, **WSD), Stopping(4, signal.SIGTERM))
    assert run(shaped(folder, out, 8, **WSD)).resumed_from == 4
    assert_same(out, whole(8))


def test_steps_are_compared_only_up_to_the_newest_checkpoint(
    folder: Path, tmp_path: Path, fallen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    step = longer_run._RunSteps.step

    def counted(course: Any, number: int, **named: bool) -> Any:
        seen.append(number)
        return step(course, number, **named)

    def enough(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(longer_run._RunSteps, "step", counted)
    monkeypatch.setattr(training_run, "build_train_state", enough)
    with pytest.raises(KeyboardInterrupt):
        run(shaped(folder, copied(fallen, tmp_path), 1_000_000, **WSD))
    assert seen and max(seen) < 5

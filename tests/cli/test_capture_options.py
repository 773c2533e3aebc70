"""From the words of a command line to stage one's settings: flags, --config, --set and the environment."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from kdpipe.cli import commands
from kdpipe.cli.capture_options import FLAGS, SET_EXAMPLE
from kdpipe.cli.common_options import OUT
from kdpipe.cli.flags import Flag, ParsedFlags, with_flags
from kdpipe.cli.load_settings import capture_settings
from kdpipe.cli.main import run
from kdpipe.schemas.capture_settings import CaptureSettings

WORDS = ["--teacher", "teacher", "--data", "a.jsonl", "--out", "cache"]


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[CaptureSettings]:
    """A command line whose one command, `say`, takes the flags of stage one and notes down what they say."""
    seen: list[CaptureSettings] = []
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

    @app.callback()
    def group() -> None:
        """Keep `say` a command of a group."""

    def say(given: ParsedFlags, plan: bool = False) -> None:
        """Say the settings."""
        seen.append(capture_settings(given, out=not plan))

    app.command("say")(with_flags((*FLAGS, OUT), say, SET_EXAMPLE))
    monkeypatch.setattr(commands, "app", app)
    return seen


def settings_of(handed: list[CaptureSettings], *words: str) -> CaptureSettings:
    assert run(["say", *WORDS, *words]) == 0
    return handed[-1]


def at(settings: CaptureSettings, place: str) -> Any:
    value: Any = settings
    for step in place.split("."):
        value = getattr(value, step)
    return value


TYPED = [
    ("--revision", "abc", "teacher.revision", "abc"),
    ("--teacher-name", "org/Large", "teacher.display_name", "org/Large"),
    ("--teacher-license", "mit", "teacher.license", "mit"),
    ("--tokenizer", "t", "teacher.tokenizer", "t"),
    ("--trust-remote-code", None, "teacher.trust_remote_code", True),
    ("--dtype", "bfloat16", "teacher.dtype", "bfloat16"),
    ("--data-split", "train[:1%]", "data.split", "train[:1%]"),
    ("--text-files", "*.py, *.rs", "data.text_files", ("*.py", "*.rs")),
    ("--limit", "10", "data.limit", 10),
    ("--val-data", "v.txt", "data.val_path", "v.txt"),
    ("--val-fraction", "0", "data.val_fraction", 0.0),
    ("--train-on", "assistant", "data.train_on", "assistant"),
    ("--max-bad-rows", "0", "data.max_bad_rows", 0),
    ("--seq-len", "128", "sequences.length", 128),
    ("--no-pack", None, "sequences.pack", False),
    ("--targets", "none", "targets.kind", "none"),
    ("--profile", "lean", "targets.profile", "lean"),
    ("--tau", "1e-2", "targets.tau", 0.01),
    ("--temperatures", "1.5, 3", "targets.temperatures", (1.5, 3.0)),
    ("--target-temperature", "2", "targets.target_temperature", 2.0),
    ("--hidden-layers", "0.5,1.0", "hidden.layers", ("0.5", "1.0")),
    ("--hidden-layers", "6", "hidden.layers", ("6",)),
    ("--hidden-layers", "none", "hidden.pooled", False),
    ("--for-other-tokenizers", None, "targets.for_other_tokenizers", True),
    ("--devices", "cuda:1", "machine.devices", "cuda:1"),
    ("--seed", "7", "seed", 7),
]


@pytest.mark.parametrize(("flag", "word", "place", "value"), TYPED, ids=lambda value: str(value))
def test_a_flag_sets_its_setting_and_no_other(
    flag: str, word: str | None, place: str, value: Any, handed: list[CaptureSettings]
) -> None:
    plain = settings_of(handed)
    assert (plain.teacher.name, plain.data.path, plain.out) == ("teacher", "a.jsonl", "cache")
    assert (
        plain.model_copy(update={"teacher": CaptureSettings().teacher, "data": CaptureSettings().data, "out": None})
        == CaptureSettings()
    )
    changed = settings_of(handed, *([flag] if word is None else [flag, word]))
    assert at(changed, place) == value
    differing = [flag.key for flag in FLAGS if at(changed, flag.key) != at(plain, flag.key)]
    assert differing in ([place], ["hidden"], [place.split(".")[0], place])


@pytest.mark.parametrize(
    ("words", "place", "value"),
    [
        (["--targets", "topk", "--top-k", "8"], "targets.top_k", 8),
        (["--targets", "topp", "--top-p", "0.9"], "targets.top_p", 0.9),
        (["--targets", "sampled", "--draws", "12"], "targets.draws", 12),
        (["--hidden-layers", "3", "--hidden-dim", "16"], "hidden.dim", 16),
        (["--tokenizer", "t", "--allow-foreign-tokenizer"], "teacher.allow_foreign_tokenizer", True),
    ],
    ids=lambda value: str(value),
)
def test_a_flag_of_one_kind_goes_with_it(
    words: list[str], place: str, value: Any, handed: list[CaptureSettings]
) -> None:
    assert at(settings_of(handed, *words), place) == value


def test_every_flag_is_tried_here() -> None:
    tried = {flag for flag, *_ in TYPED} | {"--top-k", "--top-p", "--draws", "--hidden-dim", "--teacher", "--data"}
    tried.add("--allow-foreign-tokenizer")
    assert tried == {flag.name for flag in FLAGS}


@pytest.mark.parametrize("flag", [*FLAGS, OUT], ids=lambda flag: flag.name)
def test_a_default_in_the_help_is_the_default(flag: Flag) -> None:
    default = at(CaptureSettings(), flag.key)
    shown = flag.help.rpartition("[")[2].removesuffix("].").partition(":")[0] if flag.help.endswith("].") else None
    if shown is None or default is None:
        assert default in (None, False, True) or flag.name == "--hidden-layers"
    elif isinstance(default, tuple):
        assert (() if shown == "none" else tuple(map(float, shown.split(",")))) == default
    else:
        assert type(default)(shown) == default


def test_the_layers_join_in_their_order(
    handed: list[CaptureSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "kd.yaml"
    config.write_text(
        "seed: 1\ndata: {limit: 1, max_bad_rows: 1}\nsequences: {length: 11, pack: no}\n", encoding="utf-8"
    )
    monkeypatch.setenv("KDPIPE_DATA__LIMIT", "2")
    monkeypatch.setenv("KDPIPE_SEQUENCES__LENGTH", "12")
    monkeypatch.setenv("KDPIPE_SEED", "2")
    settings = settings_of(
        handed, "--config", str(config), "--set", "sequences.length=13", "--set", "seed=3", "--seed", "4"
    )
    reported = (settings.data.max_bad_rows, settings.data.limit, settings.sequences.length, settings.seed)
    assert reported == (1, 2, 13, 4)
    assert settings.sequences.pack is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--targets", "topk", "--tau", "0.1"], "--tau applies to the targets threshold, not to topk (--targets)"),
        (["--tau", "0.1", "--profile", "fine"], "--tau and --profile both set"),
        (["--tau", "7"], "--tau must be at most 1, not 7"),
        (["--temperatures", "2,x"], "--temperatures: item 2 must be a number, not 'x'"),
        (["--temperatures", "2,0"], "--temperatures: item 2 must be at least 0.001, not 0.0"),
        (["--temperatures", ""], "--temperatures: item 1 must be a number, not ''"),
        (["--targets", "topk", "--top-k", "5000"], "--top-k must be at most 4,096, not 5000"),
        (["--hidden-layers", "last"], "--hidden-layers: item 1: a layer is a number, or a share of"),
        (["--set", "targets.taus=1"], "--set targets.taus=1: unknown setting 'targets.taus': the nearest is 'ta"),
        (["--config", "missing.yaml"], "the file missing.yaml cannot be read: No such file or directory"),
        (["--targets", "top-k"], "Invalid value for '--targets'"),
        (["--limit", "many"], "Invalid value for '--limit'"),
        (["--top", "3"], "No such option: --top"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    words: list[str], message: str, handed: list[CaptureSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["say", *WORDS, *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {message}")
    assert not handed


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], "--teacher NAME --data PATH --out DIR"),
        (["--teacher", "t"], "--data PATH --out DIR"),
        (["--teacher", "t", "--data", "d"], "--out DIR"),
        (["--targets", "none"], "--tokenizer DIR --data PATH --out DIR"),
    ],
    ids=str,
)
def test_missing_settings_are_required(
    words: list[str], options: str, handed: list[CaptureSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["say", *words]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: missing: ") and hint == f"hint: give {options}"


def test_an_unknown_variable_is_refused_with_the_nearest(
    handed: list[CaptureSettings], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDPIPE_DATA__VAL_FRACTON", "0.1")
    assert run(["say", "--plan", "--teacher", "t", "--data", "d"]) == 2
    reported = "error: unknown setting 'KDPIPE_DATA__VAL_FRACTON': the nearest is 'KDPIPE_DATA__VAL_FRACTION'\n"
    assert capsys.readouterr().err.startswith(reported)


def test_the_table_imports_nothing_heavy() -> None:
    names = "kdpipe.cli.capture_options, kdpipe.cli.load_settings, kdpipe.cli.flags"
    program = f"import sys; import {names}; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert not set(answer.stdout.split()) & {"torch", "transformers", "numpy", "pydantic", "yaml", "rich.console"}

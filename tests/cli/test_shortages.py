"""Commands on a machine that lacks something: the temporary folder is full, files may not grow, too few may be open."""

import json
import resource
import signal
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from kdpipe.cli.main import run
from kdpipe.pipeline.evaluation import student_evaluation  # noqa: F401  (imported before files run short)
from kdpipe.pipeline.students import export_folder  # noqa: F401
from kdpipe.pipeline.training import training_run  # noqa: F401
from support.children import in_child, mount_memory, mounted
from support.stage_two import STUDENT, make_cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache, a student and a run of one step."""
    folder = tmp_path_factory.mktemp("shortages")
    make_cache(folder, "cache")
    (folder / "student.json").write_text(json.dumps(STUDENT))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdpipe.pipeline.training.finalize.check_reload", lambda *_, **__: 0.0)
        assert messages(*train_words(folder, folder / "run"))[0] == 0
    return folder


def train_words(folder: Path, out: Path) -> list[str]:
    small = ["--max-steps", "1", "--batch-size", "2", "--set", "machine.threads=1", "--set", "evaluation.limit=2"]
    given = ["--from-cache", str(folder / "cache"), "--student", str(folder / "student.json"), "--out", str(out)]
    return ["train", *given, *small]


def messages(*words: str) -> tuple[int, str]:
    """Exit code of a command, and its error message."""
    with redirect_stderr(StringIO()) as errors, redirect_stdout(StringIO()):
        code = run(words)
    text = errors.getvalue()
    return code, text[text.index("error: ") :] if "error: " in text else ""


@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_full_temporary_folder_is_named(command: str, folder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    words = {
        "train": train_words(folder, tmp_path / "other"),
        "eval": ["eval", "--from-cache", str(folder / "cache"), "--student", str(folder / "run")],
    }

    def work() -> str:
        mount_memory(small, 4096)
        tempfile.tempdir = str(small)
        code, text = messages(*words[command])
        return f"{code} {text}"

    ended = mounted(work)
    error, hint = ended.output.splitlines()
    assert error.startswith("1 error: unpacking the cache's tokenizer, ") and str(small) in error, ended.output
    assert "bytes: No space left on device" in error and " bytes free" in hint and "TMPDIR" in hint, ended.output


@pytest.mark.slow
def test_an_export_needs_no_temporary_folder(folder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"

    def work() -> str:
        mount_memory(small, 4096)
        tempfile.tempdir = str(small)
        return f"{messages('export', str(folder / 'run'), '--to', 'hf', '--out', str(tmp_path / 'model'))}"

    assert mounted(work).output == "(0, '')"


@pytest.mark.parametrize("most_bytes", [2000, 60_000], ids=["tokenizer", "checkpoint"])
def test_a_limit_on_the_size_of_files_is_named(most_bytes: int, folder: Path, tmp_path: Path) -> None:
    def work() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        code, text = messages(*train_words(folder, tmp_path / "other"))
        return f"{code} {text}"

    ended = in_child(work)
    assert ended.output.startswith("1 error: ") and "File too large" in ended.output, ended.output
    assert "ulimit -f" in ended.output and "report" not in ended.output, ended.output


def test_a_limit_on_open_files_is_named(folder: Path) -> None:
    def work() -> str:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        code, text = messages("cache", "verify", str(folder / "cache"))
        return f"{code} {text}"

    ended = in_child(work)
    assert ended.output.startswith("1 error: ") and "Too many open files" in ended.output, ended.output
    assert "hint: raise the limit on open files (ulimit -n)" in ended.output and "max_open" not in ended.output, (
        ended.output
    )

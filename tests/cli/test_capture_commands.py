"""The commands of stage one as people run them: real processes, a real small teacher, a real cache."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.commands import kdpipe, starts_fast

MAKE = """
import sys
from pathlib import Path
from kdpipe.pipeline.small_teacher import TeacherSizes, documents, make_teacher, write_corpus
folder = Path(sys.argv[1])
write_corpus(folder / "corpus.jsonl", documents())
sizes = TeacherSizes(vocabulary=300, width=32, layers=1, steps=2)
make_teacher(folder / "corpus.jsonl", folder / "teacher", sizes, print)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a nearly untrained teacher."""
    folder = tmp_path_factory.mktemp("stage_one")
    subprocess.run([sys.executable, "-c", MAKE, str(folder)], check=True, capture_output=True)
    return folder


def words(place: Path, command: str, *more: str) -> list[str]:
    data = ["--teacher", str(place / "teacher"), "--data", str(place / "corpus.jsonl"), "--seq-len", "128"]
    return [kdpipe(), command, *data, "--devices", "cpu", *more]


def answer(command: list[str], code: int = 0, **environment: str) -> Any:
    """The JSON document of a command that ends with a code."""
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["cache-teacher", "plan"])
def test_help_is_fast(command: str) -> None:
    assert starts_fast([kdpipe(), command, "--help"])


@pytest.mark.slow
def test_a_cache_is_planned_made_found_again_and_verified(place: Path) -> None:
    few = ["--limit", "12", "--set", "hidden.pooled=no"]
    planned = answer(words(place, "plan", *few))
    tried = answer(words(place, "cache-teacher", *few, "--out", str(place / "cache"), "--dry-run"))
    assert not tried["complete"]
    assert not (place / "cache").exists()
    made = answer(words(place, "cache-teacher", *few), KDPIPE_OUT=str(place / "cache"))
    assert made["complete"]
    assert sum(planned["parts"].values()) == made["parts"]["planned"] == made["parts"]["made"]
    again = answer(words(place, "cache-teacher", *few, "--out", str(place / "cache")))
    assert (again["cache_id"], again["parts"]["made"]) == (made["cache_id"], 0)
    against = ["--against", str(place / "teacher"), "--sample", "3"]
    checked = answer([kdpipe(), "cache", "verify", str(place / "cache"), *against])
    assert (checked["ok"], checked["against"]["documents"]) == (True, 3)


@pytest.mark.slow
def test_another_setting_into_the_same_folder_is_refused(place: Path) -> None:
    made = words(place, "cache-teacher", "--limit", "6", "--out", str(place / "first"))
    subprocess.run(made, check=True, capture_output=True)
    done = subprocess.run([*made, "--tau", "0.2"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "holds another cache" in done.stderr
    assert "--tau: existing 0.04, requested 0.2" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent the POSIX way")
def test_a_stopped_run_exits_75_and_resumes_later(place: Path) -> None:
    few = ["--limit", "30", "--targets", "topk", "--top-k", "4", "--temperatures", "none", "--hidden-layers", "none"]
    whole = answer(words(place, "cache-teacher", *few, "--out", str(place / "whole")))
    command = words(place, "cache-teacher", *few, "--out", str(place / "stopped"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (place / "stopped" / "parts" / "00000").is_dir():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, messages = process.communicate(timeout=900)
    assert (process.returncode, out) == (75, "")
    assert messages.endswith("stopped: interrupted\nhint: re-run the same command to resume\n")
    finished = answer(command)
    assert finished["cache_id"] == whole["cache_id"]
    assert finished["parts"]["made"] < whole["parts"]["made"]

"""The examples run unchanged, and the caches they write pass verification."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache.verify import verify_cache
from support.source import ROOT


@pytest.mark.slow
def test_write_and_read_writes_a_cache_and_reads_it(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "examples" / "write_and_read.py"), str(tmp_path / "cache")]
    first = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "after 'the': cat 0.70, dog 0.10, sat 0.10" in first.stdout.splitlines()
    assert verify_cache(tmp_path / "cache", "deep").ok
    again = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert again.stdout == first.stdout


@pytest.mark.slow
def test_train_a_student_trains_from_that_cache(tmp_path: Path) -> None:
    for name, folders in (("write_and_read", ["cache"]), ("train_a_student", ["cache", "run"])):
        words = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *folders]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"20 steps on 120 positions, with [\d,]+ parameters", lines[0])
    before, after = re.findall(r"\d\.\d{3}", lines[1])
    assert float(after) < float(before) / 2
    assert lines[2] == "the student is in run/final"
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()


NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
# Runs a notebook in a kernel of this Python, and writes it with its outputs; nbclient raises warnings of its own.
RUN_NOTEBOOK = """
import os, sys
import nbformat
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
source, out = sys.argv[1:]
os.environ["JUPYTER_PATH"] = f"{out}/jupyter"
write_kernel_spec(f"{out}/jupyter/kernels/python3")
notebook = nbformat.read(source, 4)
NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": out}}).execute()
nbformat.write(notebook, f"{out}/executed.ipynb")
"""


def outputs(cell: Any, form: str) -> str:
    """The outputs of a cell in one form: `stream`, `text/plain` or `text/html`."""
    texts = [item["text"] if form == "stream" else item["data"].get(form, "") for item in cell["outputs"]
             if (item["output_type"] == "stream") == (form == "stream")]  # fmt: skip
    return "".join("".join(text) for text in texts)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    environment = os.environ | {"KDPIPE_MACHINE__THREADS": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", RUN_NOTEBOOK, str(NOTEBOOK), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    executed = json.loads((tmp_path / "executed.ipynb").read_text(encoding="utf-8"))
    cells = {cell["id"]: cell for cell in executed["cells"]}
    assert "<kdpipe rows:" in outputs(cells["text"], "stream")
    for name in ("plan", "cache", "train", "metrics", "evaluate", "compare", "rows"):
        assert "<table" in outputs(cells[name], "text/html"), name
        assert "<script" not in outputs(cells[name], "text/html"), name
    assert "kdpipe cache" in outputs(cells["cache"], "text/plain")
    assert outputs(cells["generate"], "stream").startswith('The "with" statement')


def test_the_notebook_has_no_outputs_and_no_paths_of_a_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    notebook = json.loads(text)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert not re.search(r'"/|/(home|root|tmp|work|Users)/', text)
    assert text == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def test_every_example_has_a_test() -> None:
    """tests/test_train_docs.py runs the settings."""
    tested = ["curriculum.yaml", "quickstart.ipynb", "train_a_student.py", "write_and_read.py"]
    assert [path.name for path in sorted((ROOT / "examples").glob("*.*"))] == tested

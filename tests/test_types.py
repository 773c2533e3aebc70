"""What a type checker sees of the Python functions, in a script of a user."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.source import ROOT

SCRIPT = """
import kdpipe

cache = kdpipe.open_cache("cache", "train")
run = kdpipe.train(cache=cache, student="tiny", out="run", lr=1e-3, guard="standard", evaluation={"every": 2})
reveal_type(cache[0].text)  # str
reveal_type(run)  # kdpipe.run_result.RunResult
reveal_type(kdpipe.evaluate(cache=cache, student=run).kl_teacher)  # float | None
reveal_type(kdpipe.plan(teacher="t", data={"path": "d", "val_fraction": 0.1}).bytes)  # int
kdpipe.train(cache=cache, batchsize=8)  # error: "batch_size"
kdpipe.train(cache=cache, guard="standrd")  # error: "guard"
kdpipe.train(cache=cache, evaluation={"evry": 2})  # error: "evaluation"
kdpipe.evaluate(cache=cache, student=run, split="valid")  # error: "split"
kdpipe.cache_teacher(teacher="t", data="d", out="o", train_on="user")  # error: "train_on"
try:
    kdpipe.compare(run, "other")
except kdpipe.KdpipeError as error:
    reveal_type(error.nearest)  # str | None
"""


@pytest.mark.slow
def test_types_of_a_user_script_are_checked(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    words = [sys.executable, "-m", "mypy", "--no-error-summary", str(script)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    found = re.findall(r"script\.py:(\d+): (error|note): (.*)", done.stdout)
    lines = SCRIPT.splitlines()
    expected = {n: line.split("  # ")[1] for n, line in enumerate(lines, start=1) if "  # " in line}
    assert {int(n) for n, _, text in found if "defined in" not in text} == expected.keys(), done.stdout + done.stderr
    for number, text in expected.items():
        messages = [f"{kind}: {message}" for n, kind, message in found if int(n) == number]
        parts = text.split() if text.startswith("error") else ["Revealed type is", f'"{text}"']
        assert any(all(part in message for part in parts) for message in messages), (text, messages)

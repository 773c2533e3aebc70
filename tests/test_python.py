"""`import kdpipe`: what it loads, and how it refuses wrong keywords.

Run in a new process in the repository root, where Python finds the folder kdpipe/ itself.
"""

import subprocess
import sys

from support.source import ROOT


def output(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_kdpipe_and_its_cache_loads_no_torch() -> None:
    code = "import sys, kdpipe, kdpipe.cache; kdpipe.open_cache, kdpipe.train; print('torch' in sys.modules)"
    assert output("-c", code).strip() == "False"


def test_the_module_is_the_command() -> None:
    assert "cache-teacher" in output("-m", "kdpipe", "--help")


def test_a_wrong_keyword_is_refused_with_the_right_name() -> None:
    code = """
import kdpipe
from kdpipe.schemas.errors import ConfigError
for wrong in ({"learning_rate": 1}, {"batchsize": 1}, {"optimizer": {"lrr": 1}}):
    try:
        kdpipe.train(cache="c", student="tiny", out="o", **wrong)
    except ConfigError as error:
        print(error)
"""
    peer, near, nested = output("-c", code).splitlines()
    assert "optimizer.lr" in peer
    assert "'batch_size'" in near
    assert "'optimizer.lr'" in nested


def test_a_missing_name_is_an_attribute_error() -> None:
    assert output("-c", "import kdpipe; print(hasattr(kdpipe, 'nothing'), 'plan' in dir(kdpipe))").split() == [
        "False",
        "True",
    ]

"""Caches made on the oldest Python and zarr that are supported open on the newest, and the other way round.

Both environments make theirs here and now; `tests/golden` keeps what they made when the format was released.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support import environments, one_environment
from support.environments import newest_python, pinned, under
from support.kinds import KINDS

PROGRAM = Path(one_environment.__file__)
HERE, THERE = "constraints.txt", "requirements-newest.txt"


def python_of(pins: str) -> Path:
    return Path(sys.executable) if pins == HERE else newest_python()


def opened(pins: str, level: str, folder: Path, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an environment finds in a folder of caches: its verdicts at a level, and the arrays."""
    under(python_of(pins), PROGRAM, "read", folder, out, level)
    messages = json.loads(out.with_suffix(".json").read_bytes())
    assert messages["versions"].items() <= (pinned(pins) | {"python": messages["versions"]["python"]}).items()
    with np.load(out.with_suffix(".npz"), allow_pickle=False) as found:
        return messages, {name: found[name] for name in found.files}


@pytest.mark.slow
@pytest.mark.parametrize(("made", "read"), [(HERE, THERE), (THERE, HERE)], ids=["old-to-new", "new-to-old"])
def test_every_row_is_the_same_to_the_bit_in_the_other_environment(made: str, read: str, tmp_path: Path) -> None:
    caches = tmp_path / "caches"
    under(python_of(made), PROGRAM, "make", caches)
    home, mine = opened(made, "full", caches, tmp_path / "made")
    away, theirs = opened(read, "deep", caches, tmp_path / "read")

    assert len(home["cache_ids"]) == len(KINDS) + len(one_environment.BY_ZARR)
    assert away["cache_ids"] == home["cache_ids"]
    assert away["problems"] == home["problems"] == {name: [] for name in home["cache_ids"]}
    assert list(theirs) == list(mine)
    assert {name.split(":")[0] for name in mine} == home["cache_ids"].keys()
    for name, values in mine.items():
        assert (theirs[name].dtype, theirs[name].shape) == (values.dtype, values.shape), name
        assert theirs[name].tobytes() == values.tobytes(), name


def test_the_two_environments_are_the_ends_of_what_is_supported() -> None:
    old, new = pinned(HERE), pinned(THERE)
    assert old["zarr"] == "3.1.6"
    assert tuple(map(int, new["zarr"].split(".")[:2])) >= (3, 4)


def test_without_a_second_environment_ci_fails_and_others_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no second environment"):
        newest_python(tmp_path)
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="make test NEWEST=/path"):
        newest_python(tmp_path)
    (tmp_path / ".installed").touch()
    assert newest_python(tmp_path).parent.parent == tmp_path
    assert environments.NEWEST.name == ".venv-newest"

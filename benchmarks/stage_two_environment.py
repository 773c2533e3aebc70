"""The virtual environment in which the peers of stage two are, at the versions of `peers.txt`.

In: a folder. Out: its Python, which finds kdpipe and all it needs where they are. A peer that cannot be installed ends
the benchmark.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

PINS = Path(__file__).with_name("peers.txt")
CONSTRAINTS = PINS.parents[1] / "constraints.txt"


def python_with_peers(place: Path) -> Path:
    """A virtual environment that finds kdpipe and all it needs where they are, and has the peers; made once."""
    python, stamp = place / "bin" / "python", place / ".installed"
    wanted = PINS.read_text(encoding="utf-8")
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    _run(sys.executable, "-m", "venv", "--clear", str(place))
    own = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    # --system-site-packages would be those of the Python that this environment was made of.
    others = sysconfig.get_path("purelib")
    (own / "kdpipe.pth").write_text(f"import site; site.addsitedir({others!r})\n", encoding="utf-8")
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _run(str(python), *pip, "--requirement", str(PINS), "--constraint", str(CONSTRAINTS))
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the peers could not be installed: {' '.join(words)} failed\n{done.stderr[-2000:]}")

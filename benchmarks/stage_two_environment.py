"""The virtual environment of the peers of stage two, at the versions of `peers.txt`.

In: a folder. Out: its Python, which also sees this environment's packages. A peer that cannot be installed ends the
benchmark.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

PINS = Path(__file__).with_name("peers.txt")
CONSTRAINTS = PINS.parents[1] / "constraints.txt"


def python_with_peers(place: Path) -> Path:
    """A virtual environment with the peers and this environment's packages; made once."""
    python, stamp = place / "bin" / "python", place / ".installed"
    wanted = PINS.read_text(encoding="utf-8")
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    _run(sys.executable, "-m", "venv", "--clear", str(place))
    own = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    # --system-site-packages would add those of the base Python.
    others = sysconfig.get_path("purelib")
    (own / "kdpipe.pth").write_text(f"import site; site.addsitedir({others!r})\n", encoding="utf-8")
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _run(str(python), *pip, "--requirement", str(PINS), "--constraint", str(CONSTRAINTS))
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"could not install the peers: {' '.join(words)} failed\n{done.stderr[-2000:]}")

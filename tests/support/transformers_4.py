"""A real transformers 4.57 beside the one that kdpipe uses, in a folder that child processes look into first.

In: the package index, once a virtual environment. Out: the output of a program under 4.57.6.
"""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

# The last transformers that people still run by millions, with the newest that it takes of what it needs.
PINS = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface_hub==0.36.2", "requests==2.34.2",
    "urllib3==2.8.0", "charset-normalizer==3.5.2", "idna==3.20", "certifi==2026.10.18",
)  # fmt: skip
FOLDER = Path(sys.prefix) / "transformers-4"
STAMP = FOLDER / ".installed"


def installed() -> Path:
    """The folder with it, filled the first time; other test processes wait."""
    Path(sys.prefix).mkdir(exist_ok=True)
    with (Path(sys.prefix) / ".transformers-4.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not STAMP.is_file() or STAMP.read_text() != " ".join(PINS):
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--no-deps", "--target", str(FOLDER)]
            subprocess.run([*pip, *PINS], check=True)
            STAMP.write_text(" ".join(PINS))
    return FOLDER


def under_transformers_4(program: str, *words: str) -> str:
    """What a program writes to stdout when it imports transformers 4.57.6."""
    environment = {**os.environ, "PYTHONPATH": str(installed()), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", program, *words], env=environment, text=True, capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout

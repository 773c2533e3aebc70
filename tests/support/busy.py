"""The tests of timing, signals, locks and kills, run five times on a busy machine with SIGINT ignored at the start.

In: other tests, a number of rounds. Out: the closing line of each round; exit code 1 if one failed. A machine that
runs other jobs, or a shell that starts its jobs in the background, must not fail a test.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
# Folders and files below tests/ whose tests time something, send signals, take locks or kill processes.
MODULES = (
    "cache/durable",
    "cache/reshape/test_reshape_kills.py",
    "cache/stores/test_retries.py",
    "cache/test_reader_sharing.py",
    "cache/transfer/test_mirror.py",
    "cache/verify/test_children.py",
    "cache/verify/test_deep.py",
    "cache/writing/test_killed_writers.py",
    "cache/writing/test_two_writers.py",
    "cli/test_interrupts.py",
    "cli/test_progress.py",
    "cli/test_train_exits.py",
    "pipeline/batches/test_prefetch.py",
    "pipeline/cache_teacher/test_resume.py",
    "pipeline/capture/test_writer_thread.py",
    "pipeline/train/test_killed_runs.py",
    "pipeline/train/test_lock.py",
    "pipeline/train/test_thread_timing.py",
    "pipeline/training/test_interruptions.py",
)
BUSY_PROCESSES, WORKERS = 8, 10


def main() -> int:
    """Run the rounds and report them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tests", nargs="*", help="Other tests [those of timing, signals, locks and kills]")
    parser.add_argument("--rounds", type=int, default=5, help="How often they run [5]")
    options = parser.parse_args()
    words = [sys.executable, "-m", "pytest", "-q", "-n", str(WORKERS), "-m", "not soak and not gpu"]
    words += options.tests or [str(TESTS / name) for name in MODULES]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY_PROCESSES)]
    failed = 0
    try:
        for number in range(1, options.rounds + 1):
            began = time.monotonic()
            tests = subprocess.run(words, cwd=TESTS.parent, capture_output=True, text=True, env=os.environ)
            lines = tests.stdout.splitlines()
            if tests.returncode:
                failed += 1
                sys.stdout.write(tests.stdout)
            closing = lines[-1] if lines else tests.stderr
            sys.stdout.write(f"round {number} of {options.rounds}, {time.monotonic() - began:.0f} s: {closing}\n")
            sys.stdout.flush()
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

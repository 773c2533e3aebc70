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
# Folders, files and tests below tests/ that time something, send signals, take locks or kill processes.
MODULES = (
    "cache/durable",
    "cache/reshape/test_reshape_kills.py::test_a_merge_killed_again_and_again_ends_as_if_it_had_not_been",
    "cache/stores/test_retries.py::test_an_answer_that_trickles_is_a_stall_and_a_steady_one_is_not",
    "cache/stores/test_retries.py::test_a_server_that_trickles_is_disconnected_and_retried",
    "cache/stores/test_retries.py::test_headers_that_trickle_are_dropped_and_requested_again",
    "cache/stores/test_retries.py::test_a_server_whose_headers_always_trickle_ends_with_75",
    "cache/test_reader_sharing.py::test_a_child_forked_while_a_thread_opens_a_part_can_read",
    "cache/test_reader_sharing.py::test_children_forked_amid_reading_threads_read_the_same",
    "cache/transfer/test_mirror.py",
    "cache/verify/test_children.py",
    "cache/verify/test_deep.py::test_a_part_that_ends_its_child_costs_only_itself",
    "cache/verify/test_deep.py::test_a_child_that_never_becomes_ready_is_stopped",
    "cache/verify/test_deep.py::test_an_interrupt_leaves_no_child_behind",
    "cache/verify/test_deep.py::test_processor_time_ends_a_process_and_a_lower_limit_is_kept",
    "cache/writing/test_killed_writers.py",
    "cache/writing/test_two_writers.py",
    "cli/test_interrupts.py",
    "cli/test_progress.py",
    "cli/test_train_exits.py::test_an_interrupted_run_ends_with_75_and_resumes",
    "cli/test_train_exits.py::test_a_signal_before_the_first_step_ends_the_command_at_once",
    "cli/test_train_exits.py::test_a_run_interrupted_twice_ends_with_130",
    "cli/test_train_exits.py::test_a_second_signal_ends_the_process_at_once",
    "cli/test_train_exits.py::test_a_second_signal_when_the_checkpoint_is_there_ends_the_process_at_once",
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

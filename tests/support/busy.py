"""The tests of timing, signals, locks and kills, five times each on a busy machine with SIGINT ignored at the start.

In: other tests, how often each runs, the number of busy processes. Out: what pytest prints; its exit code. A machine
that runs other jobs, or a shell that starts its jobs in the background, must not fail a test.
"""

import argparse
import signal
import subprocess
import sys
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
# Kills at chosen calls, many of them, which are the same on every machine.
DESELECTED = (
    "pipeline/train/test_killed_runs.py::test_a_run_killed_around_its_last_save_has_one_line_per_step_and_evaluation",
    "pipeline/train/test_killed_runs.py::test_a_run_that_saves_its_best_student_survives_a_kill_anywhere",
)
WORKERS = 10


def main() -> int:
    """Run the tests beside busy processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tests", nargs="*", help="Other tests [those of timing, signals, locks and kills]")
    parser.add_argument("--count", type=int, default=5, help="How often each test runs [5]")
    parser.add_argument("--busy", type=int, default=8, help="Busy processes beside the tests [8]")
    options = parser.parse_args()
    words = [sys.executable, "-m", "pytest", "-q", "-n", str(WORKERS), "-m", "not soak and not gpu"]
    words += ["--count", str(options.count)]
    words += options.tests or [str(TESTS / name) for name in MODULES]
    words += [] if options.tests else [f"--deselect=tests/{name}" for name in DESELECTED]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
    try:
        return subprocess.run(words, cwd=TESTS.parent).returncode
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


if __name__ == "__main__":
    sys.exit(main())

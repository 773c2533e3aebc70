"""Test every causal family of transformers as teacher and as student, including save and reload.

In: nothing; small random models, each family in a child process with limits on memory and time. Out: one line of
results per family in WORK/families.jsonl, and the table in docs/families.md. Run again to resume.
"""

import argparse
import json
import os
import platform
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from kdpipe.pipeline.students.student import CALLED_HEAD, NO_HEAD, NOT_PACKED
from kdpipe.schemas.errors import KdpipeError

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.family_checks import check_student, check_teacher, make_model
from support.family_configs import CAUSAL, small_config

TABLE = Path(__file__).resolve().parents[1] / "docs" / "families.md"
MEMORY_BYTES = 4 << 30
SECONDS = 180
LIBRARIES = ("transformers", "torch")
HEAD = """# Model families

Written by `make families`, which builds a small random model of every causal family of transformers and compares it
with plain transformers, one document at a time in float32: rows of the teacher, losses of the student, three training
steps, saving, reloading. A cell is the largest difference of a log-probability, a loss or a logit. Random models do not
cover kernels, half precision, images or audio. Encoders such as BERT are built with `is_decoder`.
"""
REMARKS = {
    NO_HEAD.partition(":")[0]: "full logits",
    CALLED_HEAD.partition(":")[0]: "calls its head",
    NOT_PACKED.partition(":")[0]: "one document per row",
}
Result = dict[str, Any]


def main() -> None:
    """Check the remaining families and write the table."""
    options = _options()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / "families.jsonl"
    results = {} if options.fresh else _read(kept)
    for family in options.only or CAUSAL:
        if family in results and family not in options.only:
            continue
        results[family] = in_child(family)
        kept.write_text("".join(json.dumps(results[name]) + "\n" for name in sorted(results)))
        print(family, _cell(results[family]["teacher"]), _cell(results[family]["student"]), sep=" | ", flush=True)
    options.table.write_text(table([results[name] for name in sorted(results)]))
    failed = [
        name for name, result in results.items() if "fails" in (_state(result, "teacher"), _state(result, "student"))
    ]
    print(f"{len(results)} families, {len(failed)} fail: {', '.join(failed)}")
    sys.exit(1 if failed else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/families"), help="Folder for results")
    parser.add_argument("--table", type=Path, default=TABLE, help="Page to write")
    parser.add_argument("--only", nargs="*", default=[], help="Check only these families, again if necessary")
    parser.add_argument("--fresh", action="store_true", help="Ignore earlier results")
    return parser.parse_args()


def _read(kept: Path) -> dict[str, Result]:
    """Results of this version of transformers."""
    lines = kept.read_text().splitlines() if kept.exists() else []
    results = [json.loads(line) for line in lines]
    return {result["family"]: result for result in results if result["versions"] == _versions()}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def in_child(family: str) -> Result:
    """Check a family in a child process with limits on memory and time."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        answer = Path(work) / "result.json"
        pid = os.fork()
        if not pid:
            _limit()
            answer.write_text(json.dumps(check(family, Path(work))))
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        ended = {"state": "fails", "reason": f"the process ended with {code}"}
        result = json.loads(answer.read_text()) if code == 0 else {"teacher": ended, "student": ended}
    taken = round(time.perf_counter() - started, 1)
    day = datetime.now(UTC).date().isoformat()
    return {"family": family, "versions": _versions(), "date": day, "seconds": taken, **result}


def _limit() -> None:
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES,) * 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)


def check(family: str, work: Path) -> Result:
    """Results of a family as teacher and as student; if the model cannot be built, neither is checked."""
    made = _tried(lambda: {"n_parameters": make_model(small_config(family), work / "model")}, "not built")
    if made["state"] != "ok":
        return {"teacher": made, "student": made}
    teacher = _tried(lambda: {"difference": check_teacher(work / "model")})
    return {"teacher": teacher, "student": _tried(lambda: _student(work)), "n_parameters": made["n_parameters"]}


def _student(work: Path) -> Result:
    losses, reload, notes = check_student(work / "model", work / "student")
    return {"difference": max(losses, reload), "notes": [note.partition(": ")[2].partition(":")[0] for note in notes]}


def _tried(work: Callable[[], Result], otherwise: str = "fails") -> Result:
    """The result, or the reason of a failure; any exception of a family's code is a result."""
    try:
        return {"state": "ok", **work()}
    except KdpipeError as error:
        return {"state": "refused", "reason": _short(error.message)}
    except Exception as error:
        return {"state": otherwise, "reason": _short(f"{type(error).__name__}: {error}")}


def _short(text: str) -> str:
    """One line, without paths of the temporary folder."""
    words = [word for word in " ".join(text.split()).split(" ") if not word.startswith(tempfile.gettempdir())]
    return " ".join(words).replace("|", "/")[:160]


def _state(result: Result, side: str) -> str:
    return str(result[side]["state"])


def _cell(side: Result) -> str:
    return f"{side['difference']:.0e}" if side["state"] == "ok" else f"{side['state']}: {side['reason']}"


def table(results: Sequence[Result]) -> str:
    """The page: working families, then those refused, failing or not built."""
    return "\n".join([*_head(results), *_works(results), *_others(results)]) + "\n"


def _head(results: Sequence[Result]) -> Iterator[str]:
    both = sum(_state(result, "teacher") == _state(result, "student") == "ok" for result in results)
    days = sorted({result["date"] for result in results})
    span = " to ".join(sorted({days[0], days[-1]}))
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    yield HEAD
    n_works = f"{both} of {len(results)} families work as teacher and as student"
    yield f"{span}, {libraries}, {platform.machine()}: {n_works}."
    yield ""


def _works(results: Sequence[Result]) -> Iterator[str]:
    yield "| family | teacher | student | remark |"
    yield "|---|---|---|---|"
    for result in results:
        if _state(result, "teacher") == "ok" or _state(result, "student") == "ok":
            notes = "; ".join(REMARKS.get(note, note) for note in result["student"].get("notes", []))
            yield f"| `{result['family']}` | {_cell(result['teacher'])} | {_cell(result['student'])} | {notes} |"
    yield ""


def _others(results: Sequence[Result]) -> Iterator[str]:
    yield "Refused, failing, or not built:"
    yield ""
    yield "| family | reason |"
    yield "|---|---|"
    for result in results:
        if _state(result, "teacher") != "ok" and _state(result, "student") != "ok":
            yield f"| `{result['family']}` | {_cell(result['teacher'])} |"


if __name__ == "__main__":
    main()

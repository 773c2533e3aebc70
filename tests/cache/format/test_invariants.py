"""Every number of a manifest and of a part.json, set to what no number there can be: a refusal, or nothing at all."""

import json
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache import layout
from kdpipe.cache.inspect import inspect_cache
from kdpipe.cache.opening import open_cache
from kdpipe.cache.reshape.merge import merge
from kdpipe.cache.verify import verify_cache
from kdpipe.schemas.errors import KdpipeError
from support.damage import RECIPES, edit_json, everything_of, fresh_cache, reseal
from support.limits import SECONDS, deep_problems_of, in_limits
from support.tiny import copy_cache, unsynced

RECORDS = {"manifest": layout.MANIFEST, "part": f"{layout.part_dir(0)}/{layout.PART_RECORD}"}
NUMBERS = (1e308, -1e308, 5e-324, -1, -1.0, 0, 0.0, 1.5, 1 << 31, 1 << 48, (1 << 63) - 1, 1 << 64, 10**400)
Place = tuple[str | int, ...]


def measured_cache(path: Path, kind: str) -> Path:
    """A cache whose parts say how near their targets are to the teacher's."""
    cache = fresh_cache(path, kind)
    fidelity = {
        "n_rows": 3, "kl_nats": 0.01, "total_variation": 0.1, "kept_mass": [[2.0, 0.5]], "gradient_angle_degrees": 1.0,
    }  # fmt: skip
    for record in cache.glob(f"{layout.PARTS}/*/{layout.PART_RECORD}"):
        edit_json(record, lambda r: r.update(fidelity=fidelity))
    reseal(cache)
    return cache


def places(value: Any, above: Place = ()) -> Iterator[Place]:
    """The place of every number of a record, and of every null where one might stand; of a list its first and last."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        yield above
    elif isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*above, key))
    elif isinstance(value, list):
        for i in sorted({0, len(value) - 1}) if value else ():
            yield from places(value[i], (*above, i))


def put(record: Any, place: Place, number: float) -> None:
    """Set a number in a record."""
    for step in place[:-1]:
        record = record[step]
    record[place[-1]] = number


def answers(cache: Path, other: Path, out: Path) -> list[str]:
    """What each use of a cache comes to: "fine", or the exit code of its refusal; anything else goes through."""
    uses = {
        "inspect": lambda: inspect_cache(cache).model_dump_json(),
        "fast": lambda: verify_cache(cache, "fast"),
        "full": lambda: verify_cache(cache, "full"),
        "deep": lambda: deep_problems_of(cache),
        "open": lambda: everything_of(cache),
        "dense": lambda: open_cache(cache).dense(0),
        "merge": lambda: merge([str(cache), str(other)], str(out), "keep-first"),
    }
    found = []
    for name, use in uses.items():
        try:
            use()
        except KdpipeError as error:
            assert error.message.isprintable() and len(error.message) < 5000
            found.append(f"{name} {error.exit_code}")
        except BaseException as error:
            raise AssertionError(f"{name}: {error!r}") from error
        else:
            found.append(f"{name} fine")
    return found


def run_all(folder: Path, kind: str, record: str, numbers: tuple[float, ...], keys: set[str] | None = None) -> str:
    """Set each number in each place, one after the other; a line for each, the last one unfinished if it died."""
    good = measured_cache(folder / "good", kind)
    log = folder / "log"

    def say(text: str) -> None:
        with log.open("a") as file:
            file.write(text)

    found = list(places(json.loads((good / RECORDS[record]).read_bytes())))
    cases = [(place, number) for place in found if keys is None or place[-1] in keys for number in numbers]

    def work() -> None:
        with unsynced(), warnings.catch_warnings():
            warnings.simplefilter("error")
            for n, (place, number) in enumerate(cases):
                signal.alarm(SECONDS)
                say(f"{'.'.join(map(str, place))} = {str(number)[:30]}: ")
                cache = copy_cache(good, folder / "changed" / str(n))
                edit_json(cache / RECORDS[record], lambda r, p=place, v=number: put(r, p, v))  # type: ignore[misc]
                reseal(cache)
                say(f"{', '.join(answers(cache, good, folder / 'merged' / str(n)))}\n")

    ended = in_limits(work, seconds=3000)
    lines = log.read_text().splitlines()
    assert ended.code == 0, f"ended with {ended.code} at {lines[-1:]}\n{ended.output}"
    assert len(lines) == len(cases) > 0
    return "\n".join(lines)


def codes(lines: str, use: str) -> set[str]:
    """How a use ended, over all cases."""
    return {
        word.split()[1] for line in lines.splitlines() for word in line.rpartition(": ")[2].split(", ") if use in word
    }


def assert_refused_or_fine(lines: str) -> None:
    """A number that cannot be is damage, or a format of the future; a merge may also find caches that do not fit."""
    for use in ("inspect", "fast", "full", "deep", "open", "dense"):
        assert codes(lines, use) <= {"3", "4", "fine"}
        assert all("format." in line for line in lines.splitlines() if f"{use} 4" in line)
    assert codes(lines, "merge") <= {"2", "3", "4", "fine"}
    assert "3" in codes(lines, "open")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("record", "kind", "keys"),
    [
        ("part", "threshold", {"kl_nats", "entropy_nats", "label_nats", "tail_mass", "gradient_angle_degrees"}),
        ("part", "topk", {"n_documents", "n_exact", "token", "batches_halved", "label_is_top1"}),
        ("manifest", "state", {"logit_scale", "soft_cap", "sequence_length"}),
    ],
)
def test_a_number_that_overflows_is_refused(tmp_path: Path, record: str, kind: str, keys: set[str]) -> None:
    lines = run_all(tmp_path, kind, record, (1e308, -1e308, (1 << 63) - 1), keys)
    assert_refused_or_fine(lines)
    assert codes(lines, "inspect") == codes(lines, "open") == {"3"}


@pytest.mark.slow
@pytest.mark.parametrize("record", RECORDS)
def test_a_number_that_cannot_be_is_refused_or_harmless(tmp_path: Path, record: str) -> None:
    assert_refused_or_fine(run_all(tmp_path, "threshold", record, (1e308, -1, (1 << 63) - 1)))


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("kind", RECIPES)
def test_no_number_at_all_ends_otherwise(tmp_path: Path, kind: str, record: str) -> None:
    lines = run_all(tmp_path, kind, record, NUMBERS)
    assert_refused_or_fine(lines)
    sys.stdout.write(f"{len(lines.splitlines()):,} wrong numbers in the {record} of a cache of kind {kind}\n")

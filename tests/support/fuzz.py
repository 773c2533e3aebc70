"""A fuzzer for the readers of a cache: bytes changed at random, read in forked children with little memory and time.

In: a reader, which takes bytes whose digests it puts right itself, and good inputs for it. Out: how often it refused
and read, or a failure that names each input that ended in a signal, in another error than a refusal, in a warning, or
beyond its memory or processor time. Every input follows from the reader's name and the number of its batch.
"""

import faulthandler
import os
import random
import resource
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

from kdpipe.schemas.errors import KdpipeError
from support.children import in_child
from support.mutate import CHANGES, Change, set_value

# Inputs of a batch, in one child; the short version of a test and the long one.
BATCH, LONG_BATCH = 100, 1000
GOOD = ("read", "refused")
MEMORY_BYTES = 1 << 30
# Processor time, so that a busy machine finds nothing; where it ends, a signal ends the child.
SECONDS, MOST_SECONDS = 2.0, 20.0
MAX_INPUT_BYTES = 1 << 20
# Inputs of a batch that came to something new, and are changed further.
MAX_KEPT = 200


@dataclass(frozen=True, slots=True)
class Reader:
    """What reads bytes, and good ones; `is_json` marks records."""

    name: str
    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    is_json: bool = False


def fuzz(reader: Reader, folder: Path, batches: Iterable[int], n_inputs: int = BATCH) -> Counter[str]:
    """Read the inputs of some batches; how often each outcome came. Fails with all findings of the first bad batch."""
    outcomes: Counter[str] = Counter()
    for batch in batches:
        findings, first = [], 0
        while first < n_inputs:
            done, found = _child(reader, batch, range(first, n_inputs), folder / f"{reader.name}-{batch}")
            outcomes.update(word for word in found if word in GOOD)
            findings += [f"input {number}: {word}" for number, word in enumerate(found, first) if word not in GOOD]
            first += done
        assert not findings, f"{reader.name}, batch {batch}, inputs in {folder}: {findings}"
    return outcomes


def fuzzed(reader: Reader, batch: int) -> Generator[bytes, str, None]:
    """The inputs of a batch; the reader's answer to each is sent back, so that those with new answers are kept."""
    rng = random.Random(f"{reader.name} {batch}")
    kept, known = list(reader.seeds), set()
    while True:
        data = rng.choice(kept)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            data = _change(reader, rng)(data, rng) if data else rng.randbytes(rng.randrange(1, 64))
        if rng.random() < 0.1:
            other = rng.choice(reader.seeds)
            data = data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]
        data = data[:MAX_INPUT_BYTES]
        answer = yield data
        if answer not in known and len(kept) < MAX_KEPT:
            known.add(answer)
            kept.append(data)


def _change(reader: Reader, rng: random.Random) -> Change:
    return set_value if reader.is_json and rng.random() < 0.7 else rng.choice(CHANGES)


def _child(reader: Reader, batch: int, numbers: range, log: Path) -> tuple[int, list[str]]:
    """Read some inputs of a batch in a child: how many it did, with the one that ended it, and what came of each."""
    log.write_text("")

    def work() -> None:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES,) * 2)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        faulthandler.disable()
        warnings.simplefilter("error")
        current = Path(f"{log}-input")
        with log.open("a", buffering=1) as file:
            inputs = fuzzed(reader, batch)
            data = next(inputs)
            for number in range(numbers.stop):
                answer = ""
                if number in numbers:
                    current.write_bytes(data)
                    answer, word = _outcome(reader, data)
                    file.write(f"{word}\n")
                    if word not in GOOD:
                        current.rename(f"{log}-finding-{number}")
                data = inputs.send(answer)
        current.unlink(missing_ok=True)

    ended = in_child(work, timeout_seconds=900)
    found = log.read_text().splitlines()
    log.unlink()
    if ended.code == 0:
        return len(numbers), found
    Path(f"{log}-input").rename(f"{log}-finding-{numbers.start + len(found)}")
    return len(found) + 1, [*found, f"ended with {ended.code}: {ended.output[-300:]}"]


def _outcome(reader: Reader, data: bytes) -> tuple[str, str]:
    """The reader's message without its numbers, and its class: read, refused, or a finding in words."""
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = outcome = "read"
    try:
        reader.read(data)
    except KdpipeError as error:
        answer, outcome = "".join(c for c in error.message if not c.isdigit())[:200], "refused"
    except BaseException as error:
        return repr(error)[:200], f"{type(error).__name__}: {error}"[:300].replace("\n", " ")
    seconds = time.process_time() - began
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    signal.setitimer(signal.ITIMER_PROF, 0)
    if seconds > SECONDS:
        outcome = f"took {seconds:.1f} seconds of processor time"
    elif more > MEMORY_BYTES // 4:
        outcome = f"took {more:,} bytes"
    return answer, outcome

"""Out of memory: said in two lines, with what to lower so that the run goes on.

In: work, and the settings that it is done with. Out: a `KdpipeError` in place of what torch or Python raise.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from kdpipe.pipeline.models.memory import is_out_of_memory
from kdpipe.schemas.errors import KdpipeError
from kdpipe.schemas.train_rules import compares_groups
from kdpipe.schemas.train_settings import TrainSettings

LONGEST = 160


@contextmanager
def explained(settings: TrainSettings, when: str) -> Iterator[None]:
    """Say what to lower where memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        said = next(iter(str(error).splitlines()), "")[:LONGEST]
        raise KdpipeError(f"out of memory {when}" + (f": {said}" if said else ""), hint=_advice(settings)) from error


def _advice(settings: TrainSettings) -> str:
    """What needs less: first what leaves the run as it is, so that it goes on from its last checkpoint."""
    run, student = settings.run, settings.student
    same, other = [], ["a smaller student"]
    least = settings.losses.hidden.group if compares_groups(settings) else 1
    if min(run.batch_size, settings.machine.portion or run.batch_size) > least:
        same.append(f"--set machine.portion={least}")
    if not student.gradient_checkpointing:
        same.append("--set student.gradient_checkpointing=true")
    if not student.lora:
        other.append("--lora for one that has been trained")
    other.append("a cache with a shorter --seq-len")
    begin = f"run it again with {' or '.join(same)}, which goes on from the last checkpoint; or " if same else ""
    return f"{begin}begin anew with {', or '.join(other)}"

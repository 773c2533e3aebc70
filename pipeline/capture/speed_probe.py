"""The probe: the real teacher runs for a few seconds on documents that will be cached.

In: settings, documents, seconds. Out: rates, the cost of caching over a bare forward pass, entries and bytes.
"""

from dataclasses import dataclass

from kdpipe.pipeline.capture.cache_manifest import make_manifest
from kdpipe.pipeline.capture.capture_teacher import open_teacher
from kdpipe.pipeline.capture.inputs import Inputs
from kdpipe.pipeline.capture.part_capture import read_part
from kdpipe.pipeline.capture.trial_run import run_trial
from kdpipe.schemas.capture_report import ProbeReport
from kdpipe.schemas.capture_settings import CaptureSettings

# Share of the time for the trial itself; the rest is for sizing it and for the bare forward pass.
TRIAL_SHARE = 0.5
# A trial is one part, no larger than the parts of a cache.
MOST_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedSpeed:
    """Measurements of a probe."""

    positions_per_second: float
    seconds: float
    overhead_ratio: float | None
    entries_per_position: float | None
    bytes_per_position: dict[str, float]

    def report(self) -> ProbeReport:
        return ProbeReport(
            positions_per_second=self.positions_per_second,
            seconds=self.seconds,
            overhead_ratio=self.overhead_ratio,
            entries_per_position=self.entries_per_position,
        )


def run_probe(settings: CaptureSettings, inputs: Inputs, seconds: float) -> ProbedSpeed:
    """Measure the speed on two batches, then cache as much as fits into half of the time."""
    teacher = open_teacher(settings, inputs.tokenizer)
    manifest = make_manifest(settings, inputs, teacher)
    first = run_trial(manifest, inputs, teacher, 2 * teacher.batch_tokens).tally
    rate = first.positions / first.capture_seconds
    n_tokens = min(max(2 * teacher.batch_tokens, int(rate * seconds * TRIAL_SHARE)), MOST_TOKENS)
    trial = run_trial(manifest, inputs, teacher, n_tokens)
    tally, summary = trial.tally, trial.summary
    part = read_part(inputs.corpus, trial.plan, 0, teacher.batch_tokens)
    bare = teacher.model.bare_seconds([[part.segments[i] for i in batch] for batch in part.batches])
    entries = summary.entries_per_position
    return ProbedSpeed(
        positions_per_second=tally.positions / tally.capture_seconds,
        seconds=first.capture_seconds + tally.capture_seconds + (bare or 0.0),
        overhead_ratio=None if bare is None else tally.capture_seconds / bare,
        entries_per_position=None if entries is None else entries.mean,
        bytes_per_position=dict(summary.bytes_per_position),
    )

"""The probe: the real teacher for half a minute, on documents that are going to be cached.

In: settings, documents, seconds. Out: rates, the cost of caching over a bare forward pass, entries and bytes.
"""

from dataclasses import dataclass

from kdpipe.pipeline.capture.cache_manifest import make_manifest
from kdpipe.pipeline.capture.capture_teacher import open_speaker
from kdpipe.pipeline.capture.inputs import Inputs
from kdpipe.pipeline.capture.part_capture import read_part
from kdpipe.pipeline.capture.trial_run import make_trial
from kdpipe.schemas.capture_report import ProbeReport
from kdpipe.schemas.capture_settings import CaptureSettings

# Of the time, what the trial itself gets; the rest is for finding out how much fits, and for the bare forward pass.
TRIAL_SHARE = 0.5
# A trial is one part, and is as large as parts of a cache are at most.
MOST_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedSpeed:
    """What the teacher showed."""

    positions_per_second: float
    seconds: float
    overhead_ratio: float | None
    entries_per_position: float | None
    bytes_per_position: dict[str, float]

    def report(self) -> ProbeReport:
        """As the plan's report has it."""
        return ProbeReport(
            positions_per_second=self.positions_per_second,
            seconds=self.seconds,
            overhead_ratio=self.overhead_ratio,
            entries_per_position=self.entries_per_position,
        )


def run_probe(settings: CaptureSettings, inputs: Inputs, seconds: float) -> ProbedSpeed:
    """Two batches tell how fast the teacher is, then as much is cached as fits into half of the time."""
    speaker = open_speaker(settings, inputs.tokenizer)
    manifest = make_manifest(settings, inputs, speaker)
    first = make_trial(manifest, inputs, speaker, 2 * speaker.batch_tokens).tally
    rate = first.positions / first.making_seconds
    n_tokens = min(max(2 * speaker.batch_tokens, int(rate * seconds * TRIAL_SHARE)), MOST_TOKENS)
    trial = make_trial(manifest, inputs, speaker, n_tokens)
    tally, summary = trial.tally, trial.summary
    part = read_part(inputs.corpus, trial.plan, 0, speaker.batch_tokens)
    bare = speaker.bare_seconds([[part.pieces[i] for i in batch] for batch in part.batches])
    entries = summary.entries_per_position
    return ProbedSpeed(
        positions_per_second=tally.positions / tally.making_seconds,
        seconds=first.making_seconds + tally.making_seconds + (bare or 0.0),
        overhead_ratio=None if bare is None else tally.making_seconds / bare,
        entries_per_position=None if entries is None else entries.mean,
        bytes_per_position=dict(summary.bytes_per_position),
    )

"""A trial run: the first documents go through all of stage one, into a temporary cache.

In: documents and teacher. Out: the summary of that cache, and the tally of making it.
"""

import time
from dataclasses import dataclass

from kdpipe.cache.durable.scratch import scratch_folder
from kdpipe.cache.inspect import inspect_cache
from kdpipe.pipeline.capture.capture_teacher import CaptureTeacher
from kdpipe.pipeline.capture.create import begin_cache
from kdpipe.pipeline.capture.inputs import Inputs
from kdpipe.pipeline.capture.part_capture import CaptureTally, PartCapture
from kdpipe.schemas.cache_plan import CachePlan, SplitPlan
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.summary import CacheSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    plan: CachePlan
    summary: CacheSummary
    tally: CaptureTally


def run_trial(manifest: Manifest, inputs: Inputs, teacher: CaptureTeacher, n_tokens: int) -> TrialResult:
    """Make a cache of one part from the first documents with about this many tokens in total."""
    n = inputs.corpus.first_documents("train", n_tokens, manifest.plan.sequence_length)
    splits = (SplitPlan(name="train", bounds=(0, n)),)
    small = manifest.model_copy(update={"plan": CachePlan(**{**dict(manifest.plan), "splits": splits})})
    with scratch_folder("kdpipe-trial-", "writing a trial cache") as folder:
        cache, request = begin_cache(str(folder / "cache"), small, inputs, teacher)
        tally = CaptureTally(started=time.perf_counter())
        PartCapture(cache, inputs.corpus, teacher, request, tally).make([0], _ignore, _ignore)
        tally.stop()
        cache.seal()
        return TrialResult(plan=small.plan, summary=inspect_cache(cache.path), tally=tally)


def _ignore(_: object) -> None:
    """A trial reports no progress."""

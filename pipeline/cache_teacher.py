"""Stage one: the teacher is run once, and what it says at every token goes into a cache.

In: the settings of `kdpipe cache-teacher`. Out: a cache, finished or a step further, and a report. Run again, it finds
what is there and fills the holes.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from kdpipe.cache.catalog import same_manifest
from kdpipe.cache.inspect import inspect_cache
from kdpipe.cache.stores.dispatch import open_store
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.verify.first_use import remember_written
from kdpipe.pipeline.capture.cache_manifest import check_description, make_manifest
from kdpipe.pipeline.capture.capture_progress import ProgressFollower
from kdpipe.pipeline.capture.capture_teacher import open_speaker
from kdpipe.pipeline.capture.create import begin_cache
from kdpipe.pipeline.capture.extension import open_extension
from kdpipe.pipeline.capture.inputs import Inputs, explain_cuts, read_inputs
from kdpipe.pipeline.capture.part_capture import CaptureTally, PartMaker
from kdpipe.pipeline.capture.part_queue import WorkerShard, turns
from kdpipe.pipeline.capture.preflight import check_out, is_begun, look_first
from kdpipe.pipeline.capture.trial_run import make_trial
from kdpipe.pipeline.capture.workers import one_device_each, run_workers
from kdpipe.pipeline.watch import Watch
from kdpipe.schemas.capture_report import CaptureReport, PartsMade
from kdpipe.schemas.capture_settings import CaptureOptions, CaptureSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.summary import CacheSummary

DRY_RUN_BATCHES = 2


def cache_teacher(settings: CaptureSettings, options: CaptureOptions, watch: Watch) -> CaptureReport:
    """Do what is left to do of a cache, in this process or in one for each GPU."""
    if options.dry_run:
        return dry_run(settings, watch, options.retry_for)
    shard = WorkerShard(index=options.shard, count=options.n_shards)
    each = one_device_each(settings)
    if len(each) == 1:
        return work(each[0], shard, watch, options.retry_for)
    started = time.perf_counter()
    return _together(
        run_workers(partial(work, retry_for=options.retry_for), each, shard, watch), time.perf_counter() - started
    )


def work(settings: CaptureSettings, shard: WorkerShard, watch: Watch, retry_for: float) -> CaptureReport:
    """One worker: read what there is, load the teacher, make parts until none is left, complete the cache."""
    if settings.out is None:
        raise ConfigError("it is not said where the cache goes", hint="give --out, a folder")
    tally, retry_policy = CaptureTally(started=time.perf_counter()), RetryPolicy(budget=retry_for, report=watch.say)
    check_out(settings)
    extension = open_extension(settings, retry_policy)
    tokenizer, ahead = look_first(settings, watch)
    inputs = read_inputs(settings, watch, tokenizer)
    speaker = open_speaker(settings, tokenizer, ahead)
    if not is_begun(settings.out, retry_policy):
        inputs.corpus.check_lengths(speaker.sequence_length)
    manifest, old = make_manifest(settings, inputs, speaker), None
    if extension is not None:
        old, manifest = extension.source, extension.extended(manifest, settings.teacher)
        inputs = replace(inputs, corpus=inputs.corpus.continuing(extension.documents, extension.known))
    cache, asked = begin_cache(settings.out, manifest, inputs, speaker, old, retry_policy)
    check_description(settings, cache.manifest)
    if extension is not None:
        extension.adopt(cache, shard)
    follower = ProgressFollower(cache, inputs.corpus, shard, watch)
    maker = PartMaker(cache, inputs.corpus, speaker, asked, tally)
    maker.make(turns(cache, shard), follower.tell, follower.committed)
    follower.tell(tally)
    explain_cuts(inputs.corpus.counts, cache.manifest.plan.sequence_length, watch)
    if left := cache.missing():
        watch.say(f"parts that are left to workers that seem to be at them: {len(left):,}")
    else:
        cache.seal()
        remember_written(cache, watch)
    return _report(settings.out, inspect_cache(settings.out, retry_policy), inputs, tally)


def dry_run(settings: CaptureSettings, watch: Watch, retry_for: float) -> CaptureReport:
    """The whole way for two batches, into a folder that is thrown away."""
    tally, retry_policy = CaptureTally(started=time.perf_counter()), RetryPolicy(budget=retry_for, report=watch.say)
    settings = one_device_each(settings)[0]
    check_out(settings)
    tokenizer, ahead = look_first(settings, watch)
    inputs = read_inputs(settings, watch, tokenizer)
    speaker = open_speaker(settings, tokenizer, ahead)
    manifest = make_manifest(settings, inputs, speaker)
    extension = open_extension(settings, retry_policy)
    whole = manifest if extension is None else extension.extended(manifest, settings.teacher)
    if settings.out is not None and is_begun(settings.out, retry_policy):
        check_description(settings, same_manifest(open_store(settings.out, retry_policy), whole, settings.out))
    trial = make_trial(manifest, inputs, speaker, DRY_RUN_BATCHES * speaker.batch_tokens)
    report = _report(settings.out or "", trial.summary, inputs, trial.tally)
    planned = PartsMade(planned=whole.plan.n_parts, present=0, made=0)
    update = {"cache_id": None, "complete": False, "parts": planned, "seconds": tally.seconds}
    return report.model_copy(update=update)


def _report(cache: str, summary: CacheSummary, inputs: Inputs, tally: CaptureTally) -> CaptureReport:
    counts = inputs.corpus.counts
    entries = summary.entries_per_position
    made = tally.positions
    return CaptureReport(
        cache=cache,
        cache_id=summary.cache_id,
        complete=summary.complete,
        parts=PartsMade(planned=summary.parts.planned, present=summary.parts.present, made=tally.parts),
        positions=summary.positions,
        bytes=summary.bytes,
        sizes=summary.sizes,
        bytes_per_position=summary.bytes_per_position["total"] if summary.positions else None,
        entries_per_position=None if entries is None else entries.mean,
        positions_per_second=made / tally.making_seconds if made else None,
        teacher_share=tally.waiting_seconds / tally.making_seconds if made else None,
        batches_halved=tally.batches_halved,
        bad_rows=inputs.corpus.bad_rows[0],
        cut_documents=counts.split_documents + counts.truncated_documents,
        known_documents=counts.known_documents,
        untrainable_documents=counts.untrainable_documents,
        fidelity=summary.fidelity,
        seconds=tally.seconds,
    )


def _together(reports: Sequence[CaptureReport], seconds: float) -> CaptureReport:
    """What several workers did: the cache as the last to look saw it, their work added up."""
    last = max(reports, key=lambda report: (report.complete, report.parts.present))
    made = sum(report.parts.made for report in reports)
    rates = [report.positions_per_second for report in reports if report.positions_per_second is not None]
    shares = [report.teacher_share for report in reports if report.teacher_share is not None]
    return last.model_copy(
        update={
            "parts": last.parts.model_copy(update={"made": made}),
            "positions_per_second": sum(rates) if rates else None,
            "teacher_share": sum(shares) / len(shares) if shares else None,
            "batches_halved": sum(report.batches_halved for report in reports),
            "cut_documents": sum(report.cut_documents for report in reports),
            "known_documents": sum(report.known_documents for report in reports),
            "untrainable_documents": sum(report.untrainable_documents for report in reports),
            "seconds": seconds,
        }
    )

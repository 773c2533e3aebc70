"""Workers of stage one: each makes the parts of its shard, and the last to finish completes the cache.

In: settings whose paths were checked. Out: a cache with more parts, and a `CaptureReport`; a dry run leaves nothing.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from kdpipe.cache.catalog import same_manifest
from kdpipe.cache.inspect import inspect_cache
from kdpipe.cache.stores.dispatch import open_store
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.verify.first_use import record_written
from kdpipe.pipeline.capture.cache_manifest import check_description, make_manifest
from kdpipe.pipeline.capture.capture_progress import ProgressFollower
from kdpipe.pipeline.capture.capture_teacher import open_teacher
from kdpipe.pipeline.capture.create import begin_cache
from kdpipe.pipeline.capture.extension import open_extension
from kdpipe.pipeline.capture.inputs import Inputs, explain_cuts, read_inputs
from kdpipe.pipeline.capture.part_capture import CaptureTally, PartCapture
from kdpipe.pipeline.capture.part_queue import WorkerShard, part_numbers
from kdpipe.pipeline.capture.path_checks import is_begun
from kdpipe.pipeline.capture.preflight import check_before_reading
from kdpipe.pipeline.capture.trial_run import run_trial
from kdpipe.pipeline.capture.workers import run_workers, worker_settings
from kdpipe.schemas.capture_report import CaptureReport, PartCounts
from kdpipe.schemas.capture_settings import CaptureOptions, CaptureSettings
from kdpipe.schemas.counts import counted
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.progress import Progress, Task, running
from kdpipe.schemas.summary import CacheSummary

DRY_RUN_BATCHES = 2


def capture(settings: CaptureSettings, options: CaptureOptions, progress: Progress) -> CaptureReport:
    """Make the missing parts of a cache, in this process or in one per GPU."""
    if options.dry_run:
        return dry_run(settings, progress, options.retry_for)
    shard = WorkerShard(index=options.shard, count=options.n_shards)
    workers = worker_settings(settings)
    if len(workers) == 1:
        return work(workers[0], shard, progress, options.retry_for)
    started = time.perf_counter()
    return _combined_report(
        run_workers(partial(work, retry_for=options.retry_for), workers, shard, progress), time.perf_counter() - started
    )


def work(settings: CaptureSettings, shard: WorkerShard, progress: Progress, retry_for: float) -> CaptureReport:
    """One worker: read the inputs, load the teacher, make parts until none is missing, complete the cache."""
    if settings.out is None:
        raise ConfigError("no output directory given", hint="give --out DIR")
    tally, retry_policy = (
        CaptureTally(started=time.perf_counter()),
        RetryPolicy(budget=retry_for, report=progress.message),
    )
    with running(progress, Task(name="read cache")):
        extension = open_extension(settings, retry_policy)
    tokenizer, capture_plan = check_before_reading(settings, progress)
    inputs = read_inputs(settings, progress, tokenizer)
    with running(progress, Task(name="load teacher")):
        teacher = open_teacher(settings, tokenizer, capture_plan)
    if not is_begun(settings.out, retry_policy):
        inputs.corpus.check_lengths(teacher.sequence_length)
    manifest, source = make_manifest(settings, inputs, teacher), None
    if extension is not None:
        source, manifest = extension.source, extension.extended(manifest, settings.teacher)
        inputs = replace(inputs, corpus=inputs.corpus.continuing(extension.documents, extension.known))
    with running(progress, Task(name="prepare cache")):
        cache, request = begin_cache(settings.out, manifest, inputs, teacher, source, retry_policy)
        check_description(settings, cache.manifest)
        if extension is not None:
            extension.adopt(cache, shard)
    follower = ProgressFollower(cache, inputs.corpus, shard, progress)
    maker = PartCapture(cache, inputs.corpus, teacher, request, tally)
    maker.make(part_numbers(cache, shard), follower.update, follower.committed)
    follower.update(tally)
    follower.finish()
    explain_cuts(inputs.corpus.counts, cache.manifest.plan.sequence_length, progress)
    if left := cache.missing():
        progress.message(f"{counted(len(left), 'part')} in progress on other workers: left to them")
    else:
        cache.seal()
        record_written(cache, progress)
    return _report(settings.out, inspect_cache(settings.out, retry_policy), inputs, tally)


def dry_run(settings: CaptureSettings, progress: Progress, retry_for: float) -> CaptureReport:
    """Run everything for two batches, into a temporary folder."""
    tally, retry_policy = (
        CaptureTally(started=time.perf_counter()),
        RetryPolicy(budget=retry_for, report=progress.message),
    )
    settings = worker_settings(settings)[0]
    tokenizer, capture_plan = check_before_reading(settings, progress)
    inputs = read_inputs(settings, progress, tokenizer)
    with running(progress, Task(name="load teacher")):
        teacher = open_teacher(settings, tokenizer, capture_plan)
    manifest = make_manifest(settings, inputs, teacher)
    extension = open_extension(settings, retry_policy)
    full_manifest = manifest if extension is None else extension.extended(manifest, settings.teacher)
    if settings.out is not None and is_begun(settings.out, retry_policy):
        check_description(settings, same_manifest(open_store(settings.out, retry_policy), full_manifest, settings.out))
    with running(progress, Task(name="run two batches")):
        trial = run_trial(manifest, inputs, teacher, DRY_RUN_BATCHES * teacher.batch_tokens)
    report = _report(settings.out or "", trial.summary, inputs, trial.tally)
    planned = PartCounts(planned=full_manifest.plan.n_parts, present=0, made=0)
    update = {"cache_id": None, "complete": False, "parts": planned, "seconds": tally.seconds}
    return report.model_copy(update=update)


def _report(cache: str, summary: CacheSummary, inputs: Inputs, tally: CaptureTally) -> CaptureReport:
    counts = inputs.corpus.counts
    entries = summary.entries_per_position
    return CaptureReport(
        cache=cache,
        cache_id=summary.cache_id,
        complete=summary.complete,
        parts=PartCounts(planned=summary.parts.planned, present=summary.parts.present, made=tally.parts),
        positions=summary.positions,
        bytes=summary.bytes,
        sizes=summary.sizes,
        bytes_per_position=summary.bytes_per_position["total"] if summary.positions else None,
        entries_per_position=None if entries is None else entries.mean,
        positions_per_second=tally.positions / tally.capture_seconds if tally.positions else None,
        teacher_share=tally.waiting_seconds / tally.capture_seconds if tally.positions else None,
        batches_halved=tally.batches_halved,
        bad_rows=inputs.corpus.bad_rows[0],
        cut_documents=counts.split_documents + counts.truncated_documents,
        known_documents=counts.known_documents,
        untrainable_documents=counts.untrainable_documents,
        fidelity=summary.fidelity,
        seconds=tally.seconds,
    )


def _combined_report(reports: Sequence[CaptureReport], seconds: float) -> CaptureReport:
    """One report for several workers: the cache as the last one saw it, their work added up."""
    last = max(reports, key=lambda report: (report.complete, report.parts.present))
    n_made = sum(report.parts.made for report in reports)
    rates = [report.positions_per_second for report in reports if report.positions_per_second is not None]
    shares = [report.teacher_share for report in reports if report.teacher_share is not None]
    return last.model_copy(
        update={
            "parts": last.parts.model_copy(update={"made": n_made}),
            "positions_per_second": sum(rates) if rates else None,
            "teacher_share": sum(shares) / len(shares) if shares else None,
            "batches_halved": sum(report.batches_halved for report in reports),
            "cut_documents": sum(report.cut_documents for report in reports),
            "known_documents": sum(report.known_documents for report in reports),
            "untrainable_documents": sum(report.untrainable_documents for report in reports),
            "seconds": seconds,
        }
    )

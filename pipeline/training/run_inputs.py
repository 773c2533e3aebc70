"""`RunInputs`: what settings and cache alone decide about a run, checked before torch is imported.

In: settings. Out: the cache, the step plan and the loss weights of every step, or a refusal: a wrong path, setting or
tokenizer is reported at once, while importing torch takes seconds.
"""

from dataclasses import dataclass

from kdpipe.cache.reader import Cache
from kdpipe.pipeline.batches.run_cache import open_run_cache
from kdpipe.pipeline.students.student_name import check_student, check_vocabulary_file
from kdpipe.pipeline.training import cache_requirements, memorization
from kdpipe.pipeline.training.curriculum import Curriculum
from kdpipe.pipeline.training.guard import clamp_warnings
from kdpipe.pipeline.training.schedules import StepPlan, make_plan
from kdpipe.pipeline.training.trackers import check_installed
from kdpipe.schemas.progress import Progress
from kdpipe.schemas.train_settings import TrainSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """`validation`: None without a validation split, or with an empty one."""

    cache: Cache
    validation: Cache | None
    plan: StepPlan
    curriculum: Curriculum


def open_inputs(settings: TrainSettings, progress: Progress) -> RunInputs:
    """Open the cache and check settings, student name and tokenizer against it."""
    check_installed(settings.report_to)
    check_student(settings.student)
    cache = open_run_cache(settings.cache, progress, "train")
    manifest = cache.manifest
    plan = make_plan(settings, len(cache))
    curriculum = Curriculum(settings, plan, cache_requirements.default_tail_weight(manifest.targets))
    cache_requirements.check_targets(settings.losses, curriculum, manifest)
    validation = open_validation(cache)
    cache_requirements.check_metric(settings, manifest, validates=validation is not None)
    check_vocabulary_file(settings.student, cache)
    clamps = clamp_warnings(settings.guard, manifest.vocabulary_size)
    memorized = memorization.warnings(plan, curriculum, manifest.targets, cache.n_positions)
    for text in (*cache_requirements.warnings(settings, curriculum, manifest), *clamps, *memorized):
        progress.warning(text)
    return RunInputs(cache=cache, validation=validation, plan=plan, curriculum=curriculum)


def open_validation(cache: Cache) -> Cache | None:
    """The validation split; None if the cache has none or it is empty."""
    if "validation" not in cache.split_names:
        return None
    validation = cache.split("validation")
    return validation if len(validation) and validation.n_positions else None

"""What a run requires of its cache: targets, temperatures, statistics.

In: the curriculum, selections, the manifest. Out: warnings, or `Incompatible` (exit 4), before weights are loaded.
"""

from collections.abc import Iterator

from kdpipe.pipeline.losses.exactness import check_spec, estimate, statistic_missing
from kdpipe.pipeline.losses.terms import LOGIT_NAMES
from kdpipe.pipeline.training.curriculum import Curriculum
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.targets import TargetSpec
from kdpipe.schemas.train_settings import LossSettings, PositionSelection, TrainSettings


def default_tail_weight(spec: TargetSpec) -> float:
    """1 if samples or states cover the tail, else 0."""
    return 1.0 if spec.has_draws or spec.keep.complete else 0.0


def check_targets(losses: LossSettings, curriculum: Curriculum, manifest: Manifest) -> None:
    """Refuse losses and selections that the cache has no data for."""
    spec = manifest.targets
    names = [name for name in LOGIT_NAMES if name in curriculum.terms]
    for temperature in curriculum.temperatures:
        check_spec(names, spec, temperature)
    if losses.tail_weight and names != ["ce"] and not default_tail_weight(spec):
        raise Incompatible(
            f"losses.tail_weight is {losses.tail_weight:g}, but {spec.keep.kind} targets hold only its total mass",
            hint="omit it, or make a cache with threshold or sampled targets",
        )
    for selection in losses.select:
        _check_selection(selection, curriculum, spec)


def check_metric(settings: TrainSettings, manifest: Manifest, *, validates: bool) -> None:
    """Refuse to choose the best student by a metric that cannot be computed."""
    metric, spec = settings.evaluation.metric, manifest.targets
    if settings.saving.final == "best" and not validates:
        raise ConfigError(
            "saving.final is best, but the cache has no validation split",
            hint="omit it, or make a cache with --val-fraction",
        )
    unknown = {"kl_teacher": estimate(spec) is None, "top1_agreement": not spec.keep.has_teacher}
    if validates and unknown.get(metric or "", False):
        raise Incompatible(
            f"evaluation.metric is {metric}, which cannot be computed from this cache",
            hint="choose loss or cross_entropy",
        )


def _check_selection(selection: PositionSelection, curriculum: Curriculum, spec: TargetSpec) -> None:
    """Refuse a selection for a term without weight, or by a statistic that the cache does not hold."""
    terms = curriculum.terms & set(LOGIT_NAMES)
    if not (terms & {"ce"} if selection.term == "ce" else terms - {"ce"}):
        raise ConfigError(
            f"losses.select chooses positions for {selection.term}, which has no weight at any step",
            hint="omit it, or give the term a weight",
        )
    by = selection.by
    if (by == "teacher_entropy" and not spec.entropy) or (by == "label_logprob" and not spec.keep.has_teacher):
        raise statistic_missing(selection)


def warnings(settings: TrainSettings, curriculum: Curriculum, manifest: Manifest) -> Iterator[str]:
    """Warnings about settings that work but are probably a mistake."""
    spec, losses = manifest.targets, settings.losses
    if settings.evaluation.metric == "loss" and not curriculum.is_constant:
        yield ("evaluation.metric is loss, but loss weights change between steps: use cross_entropy")
    kd = curriculum.terms & set(LOGIT_NAMES) - {"ce"}
    if "renormalized" in kd:
        yield "renormalized top-k is biased: the student becomes overconfident; use it only as a baseline"
    if not kd or spec.keep.complete:
        return
    for temperature in sorted(curriculum.temperatures - {spec.target_temperature}):
        yield (
            f"at temperature {temperature:g} everything but the exact ids is one coarse bin: the samples of this cache "
            f"are for temperature {spec.target_temperature:g}"
        )
    at_target = spec.target_temperature in curriculum.temperatures and losses.tail_weight != 0
    if "forward_kl" in curriculum.terms and at_target and spec.is_shifted:
        yield (
            f"forward_kl at temperature {spec.target_temperature:g} is shifted: its gradient is unbiased, but its "
            "value is too large by the teacher's entropy within the bin; caches made without "
            "--set targets.draw_values=false hold that entropy"
        )
    if spec.has_draws and losses.tail_weight == 0:
        yield "losses.tail_weight is 0: samples of the tail are not used"

"""What a run asks of a cache: targets, temperatures, statistics; held against what the cache keeps.

In: the curriculum, selections, the manifest. Out: what is warned of, or `Incompatible` (exit 4) in two lines.
Everything is refused before a weight is loaded.
"""

from collections.abc import Iterator

import numpy as np
import torch

from kdpipe.cache.reader import Cache
from kdpipe.pipeline.evaluation.measure import estimate
from kdpipe.pipeline.losses.dense_chunk import TeacherHead
from kdpipe.pipeline.losses.exactness import check_spec
from kdpipe.pipeline.losses.selection import statistic_missing
from kdpipe.pipeline.losses.terms import LOGIT_NAMES
from kdpipe.pipeline.training.curriculum import Curriculum
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.targets import State, TargetSpec
from kdpipe.schemas.train_settings import LossSettings, PositionSelection, TrainSettings


def default_tail_weight(spec: TargetSpec) -> float:
    """1 where draws or states tell of the tail, else a bucket."""
    return 1.0 if spec.has_draws or spec.keep.kind == "state" else 0.0


def check_needs(losses: LossSettings, curriculum: Curriculum, manifest: Manifest) -> None:
    """Refuse what a cache cannot serve."""
    spec = manifest.targets
    names = [name for name in LOGIT_NAMES if name in curriculum.terms]
    for temperature in curriculum.temperatures:
        check_spec(names, spec, temperature)
    if losses.tail_weight and names != ["ce"] and not default_tail_weight(spec):
        raise Incompatible(
            f"losses.tail_weight is {losses.tail_weight:g}, and {spec.keep.kind} targets know nothing of their tail but"
            " its mass",
            hint="leave it out, or make a cache with threshold or sampled targets",
        )
    for one in losses.select:
        _check_selection(one, curriculum, spec)


def check_choice(settings: TrainSettings, manifest: Manifest, *, validates: bool) -> None:
    """Refuse to choose the best student by what will not be known."""
    metric, spec = settings.evaluation.metric, manifest.targets
    if settings.saving.final == "best" and not validates:
        raise ConfigError(
            "saving.final is best, and the cache has no validation split to tell it by",
            hint="leave it out, or make a cache with --val-fraction",
        )
    unknown = {"kl_teacher": estimate(spec) is None, "top1_agreement": spec.keep.kind == "none"}
    if validates and unknown.get(metric or "", False):
        raise Incompatible(
            f"evaluation.metric is {metric}, which this cache cannot tell of a student",
            hint="choose loss or cross_entropy",
        )


def _check_selection(one: PositionSelection, curriculum: Curriculum, spec: TargetSpec) -> None:
    """Refuse a selection that nothing is taken over, or by what the cache does not hold."""
    terms = curriculum.terms & set(LOGIT_NAMES)
    if not (terms & {"ce"} if one.term == "ce" else terms - {"ce"}):
        raise ConfigError(
            f"losses.select chooses positions for {one.term}, which has no weight at any step",
            hint="leave it out, or give the term a weight",
        )
    if (one.by == "teacher_entropy" and not spec.entropy) or (one.by == "label_logprob" and spec.keep.kind == "none"):
        raise statistic_missing(one)


def warnings(settings: TrainSettings, curriculum: Curriculum, manifest: Manifest) -> Iterator[str]:
    """What works and is likely not what was wanted."""
    spec, losses = manifest.targets, settings.losses
    if settings.evaluation.metric == "loss" and not curriculum.is_constant:
        yield (
            "evaluation.metric is loss, which means another thing at another step: the best of a phase with small "
            "weights looks best of all"
        )
    kd = curriculum.terms & set(LOGIT_NAMES) - {"ce"}
    if "renormalized" in kd:
        yield "renormalized top-k is biased: what was kept becomes too sure; it is there to compare with"
    if not kd or spec.keep.kind == "state":
        return
    for temperature in sorted(curriculum.temperatures - {spec.target_temperature}):
        yield (
            f"at temperature {temperature:g} all but the exact ids is one bin, which is coarse: draws of this cache "
            f"are for {spec.target_temperature:g}"
        )
    at_target = spec.target_temperature in curriculum.temperatures and losses.tail_weight != 0
    if "forward_kl" in curriculum.terms and at_target and spec.is_shifted:
        yield (
            f"forward_kl at temperature {spec.target_temperature:g} is shifted: its gradient is unbiased, but its "
            "value is too large by the teacher's entropy within the bin; caches made without "
            "--set targets.draw_values=false know that entropy"
        )
    if spec.has_draws and losses.tail_weight == 0:
        yield "losses.tail_weight is 0: what the draws say of the tail is left unused"


def teacher_head(cache: Cache) -> TeacherHead | None:
    """The output head that a cache of states keeps."""
    keep = cache.manifest.targets.keep
    if not isinstance(keep, State):
        return None
    bias = torch.from_numpy(np.array(cache.table("output_bias"))) if keep.head_bias else None
    return TeacherHead(
        weight_VH=_tensor(cache.table("output_head"), keep.head_dtype),
        bias_V=bias,
        soft_cap=keep.soft_cap,
        logit_scale=keep.logit_scale,
    )


def _tensor(table: np.ndarray[tuple[int, ...], np.dtype[np.float32]], dtype: str) -> torch.Tensor:
    """A table as a tensor of its stored type; numpy has no bfloat16, and reads it as float32."""
    found = torch.from_numpy(np.array(table, np.float32))
    stored: torch.dtype = getattr(torch, dtype)
    return found.to(stored)

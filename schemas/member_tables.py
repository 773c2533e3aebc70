"""Tables of target kinds and teacher backends: where each member is defined, as "module:Class".

In: nothing but the standard library. Out: a row per name. The choices of `--targets` and `teacher.backend`, the `keep`
object of the manifest and the settings of each kind follow from them: a new member is a row and what the row names.
"""

from dataclasses import dataclass

RECORDS_MODULE = "kdpipe.schemas.target_kinds"
SAMPLERS_PACKAGE = "kdpipe.pipeline.targets"
TEACHERS_PACKAGE = "kdpipe.pipeline.teachers"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetKindRow:
    """Where a kind is defined. `captured`: cache-teacher makes it; `requantized`: a smaller cache of it can be made
    from a larger one, and from a cache of states."""

    record: str
    sampler: str | None = None
    captured: bool = True
    requantized: bool = False


TARGET_KINDS: dict[str, TargetKindRow] = {
    "threshold": TargetKindRow(
        record=f"{RECORDS_MODULE}:Threshold", sampler=f"{SAMPLERS_PACKAGE}.threshold:ThresholdSampler", requantized=True
    ),
    "sampled": TargetKindRow(
        record=f"{RECORDS_MODULE}:Sampled", sampler=f"{SAMPLERS_PACKAGE}.sampled:DrawSampler", requantized=True
    ),
    "topk": TargetKindRow(
        record=f"{RECORDS_MODULE}:TopK", sampler=f"{SAMPLERS_PACKAGE}.topk:TopKSampler", requantized=True
    ),
    "topp": TargetKindRow(
        record=f"{RECORDS_MODULE}:TopP", sampler=f"{SAMPLERS_PACKAGE}.topp:TopPSampler", requantized=True
    ),
    "state": TargetKindRow(record=f"{RECORDS_MODULE}:State"),
    "imported": TargetKindRow(record=f"{RECORDS_MODULE}:Imported", captured=False),
    "none": TargetKindRow(record=f"{RECORDS_MODULE}:NoTargets"),
}

TEACHER_BACKENDS: dict[str, str] = {
    "transformers": f"{TEACHERS_PACKAGE}.transformers_backend:TransformersBackend",
}
DEFAULT_BACKEND = "transformers"

"""The types of the keywords of `cache_teacher` and `plan`: flags, and groups of settings as in a YAML file."""

import os
from collections.abc import Sequence
from typing import TypedDict

from kdpipe.schemas.choices import (
    DtypeSetting,
    LongDocuments,
    PooledProjection,
    Profile,
    TargetKind,
    TeacherBackendName,
    TrainOnSetting,
    UntrainableDocuments,
    WeightQuantization,
)

PathLike = str | os.PathLike[str]


class ColumnsKeywords(TypedDict, total=False):
    text: str | None
    prompt: str | None
    response: str | None
    messages: str | None
    keep: Sequence[str]


class DataKeywords(TypedDict, total=False):
    path: PathLike | None
    split: str | None
    text_files: Sequence[str]
    limit: int | None
    val_path: PathLike | None
    val_fraction: float
    columns: ColumnsKeywords
    train_on: TrainOnSetting
    chat_template: PathLike | None
    append_stop: bool
    long_documents: LongDocuments
    untrainable: UntrainableDocuments
    max_bad_rows: int
    max_document_bytes: int
    max_row_bytes: int


class SequenceKeywords(TypedDict, total=False):
    length: int | None
    pack: bool
    part_rows: int | None


class TeacherKeywords(TypedDict, total=False):
    name: PathLike | None
    revision: str | None
    trust_remote_code: bool
    backend: TeacherBackendName
    tokenizer: PathLike | None
    allow_foreign_tokenizer: bool
    dtype: DtypeSetting
    quantize: WeightQuantization
    display_name: str | None
    license: str | None


class TargetKeywords(TypedDict, total=False):
    kind: TargetKind
    profile: Profile
    tau: float | None
    top_k: int
    top_p: float
    draws: int
    max_entries: int | None
    target_temperature: float
    temperatures: Sequence[float]
    draw_values: bool | None
    for_other_tokenizers: bool


class HiddenKeywords(TypedDict, total=False):
    pooled: bool
    layers: Sequence[str | float]
    dim: int
    projection: PooledProjection


class CaptureMachineKeywords(TypedDict, total=False):
    devices: str
    batch_tokens: int | None
    threads: int | None


class PlanKeywords(TypedDict, total=False):
    allow_foreign_tokenizer: bool | None
    data_split: str | None
    devices: str | None
    draws: int | None
    dtype: DtypeSetting | None
    for_other_tokenizers: bool | None
    hidden: HiddenKeywords | None
    hidden_dim: int | None
    hidden_layers: str | Sequence[str | float] | None
    limit: int | None
    machine: CaptureMachineKeywords | None
    max_bad_rows: int | None
    no_pack: bool | None
    profile: Profile | None
    revision: str | None
    seed: int | None
    seq_len: int | None
    sequences: SequenceKeywords | None
    target_temperature: float | None
    targets: TargetKind | TargetKeywords | None
    tau: float | None
    teacher_license: str | None
    teacher_name: str | None
    text_files: str | Sequence[str] | None
    temperatures: Sequence[float] | str | None
    tokenizer: PathLike | None
    top_k: int | None
    top_p: float | None
    train_on: TrainOnSetting | None
    trust_remote_code: bool | None
    val_data: PathLike | None
    val_fraction: float | None


class CaptureKeywords(PlanKeywords, total=False):
    extend: PathLike | None

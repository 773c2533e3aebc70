"""Closed choices, each defined once: records check them and the command line offers them.

Standard library only, so that `--help` needs no pydantic. `...Setting` adds `auto` to the choices that it resolves to.
"""

from typing import TYPE_CHECKING, Literal

from kdpipe.schemas.member_tables import TARGET_KINDS, TEACHER_BACKENDS

# Documents, teacher and targets
SplitName = Literal["train", "validation"]
TrainOn = Literal["all", "assistant"]
TrainOnSetting = Literal["auto", TrainOn]
LongDocuments = Literal["split", "truncate", "refuse"]
UntrainableDocuments = Literal["refuse", "skip"]
DtypeName = Literal["float32", "bfloat16", "float16"]
DtypeSetting = Literal["auto", DtypeName]
WeightQuantization = Literal["none", "int8", "int4"]
# What a cache of states can be requantized to, and what a teacher can be cached as.
if TYPE_CHECKING:
    RequantizedKind = str
    TargetKind = str
    TeacherBackendName = str
else:
    RequantizedKind = Literal[tuple(name for name, row in TARGET_KINDS.items() if row.requantized)]
    TargetKind = Literal[tuple(name for name, row in TARGET_KINDS.items() if row.captured)]
    TeacherBackendName = Literal[tuple(TEACHER_BACKENDS)]
Profile = Literal["lean", "standard", "fine"]
PooledProjection = Literal["random", "pca"]

# Caches
VerifyLevel = Literal["fast", "full", "deep"]
# When every byte of a cache is checked before it is used.
VerifyWhen = Literal["first", "always", "never"]
ReshapeAction = Literal["merge", "subset", "requantize"]
OriginAction = Literal[ReshapeAction, "extend", "import", "copy"]
Overlap = Literal["refuse", "keep-first"]
DocumentMeasure = Literal["teacher-entropy", "likelihood", "confident-wrong"]
# What requantizing can leave out.
Dropped = Literal["draw-values", "boundary", "entropy", "hidden"]
ImportFormat = Literal["distillkit", "axolotl", "nemo", "topk"]
ExportFormat = Literal["parquet", "axolotl"]
StatedTail = Literal["rest", "unknown"]
ImportedTail = Literal["given", StatedTail]
Align = Literal["next", "own"]
# How the numbers of an array are stored in a cache: `kdpipe.cache.format.codecs.CODECS` has one codec for each name.
NumberCodec = Literal["pcodec"]
VectorCodec = Literal["plain"]
CodecName = Literal[NumberCodec, VectorCodec]

# Students and training
StudentSource = Literal["preset", "config", "folder", "hub"]
OptimizerName = Literal["adamw", "muon"]
# Of a student's parameters, by what they do: linear maps within the model, embeddings and head, everything else.
Role = Literal["matrices", "tables", "vectors"]
LossMode = Literal["output", "logit", "hybrid"]
Statistic = Literal["teacher_entropy", "label_logprob", "student_entropy", "student_cross_entropy"]
LossTerm = Literal["ce", "kd"]
KeptEnd = Literal["lowest", "highest"]
AlphaSchedule = Literal["constant", "wsd"]
RateSchedule = Literal["linear", "cosine", "wsd", "constant"]
OrderName = Literal["shuffled", "entropy", "length"]
BestMetric = Literal["loss", "cross_entropy", "kl_teacher", "top1_agreement"]
ComparedKind = Literal["run", "model", "teacher"]
EvalMetric = Literal["cross_entropy", "kl_teacher", "top1_agreement", "ece"]
# How well a cache's targets determine a loss.
Estimate = Literal["exact", "unbiased", "lower_bound"]
LossName = Literal["loss", "loss_shifted"]
FinalStudent = Literal["last", "best"]
PrecisionName = Literal["fp32", "bf16", "fp16", "fp16-pure"]
PrecisionSetting = Literal["auto", PrecisionName]
GuardPreset = Literal["standard", "fp16-safe", "ultra-stable"]
TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
# How a line or a word is shown on a terminal with colors.
TableFormat = Literal["text", "md", "csv", "html"]
TextStyle = Literal["plain", "heading", "best", "warning", "error"]
# Commands whose settings `kdpipe config` handles.
ConfiguredCommand = Literal["train", "cache-teacher"]

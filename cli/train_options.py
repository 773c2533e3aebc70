"""Flags of `kdpipe train`, as one table of flag and setting."""

from typing import Any, Literal

from kdpipe.cli import common_options
from kdpipe.cli.flags import Flag
from kdpipe.schemas.choices import GuardPreset, LossMode, OptimizerName, PrecisionSetting, RateSchedule, VerifyWhen
from kdpipe.schemas.losses import LOGIT_LOSSES

TEACHER_LOSSES: Any = Literal[tuple(name for name, loss in LOGIT_LOSSES.items() if loss.compares != "label")]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip() and word.strip() != "none"]


def _threads(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


SET_EXAMPLE = "schedule.kind=wsd"
FLAGS = (
    Flag(name="--from-cache", key="cache.path", metavar="DIR", help="Cache to train from: a folder or a URL."),
    Flag(
        name="--allow-partial",
        key="cache.allow_partial",
        type=bool,
        help="Train on the finished parts of an incomplete cache.",
    ),
    Flag(name="--pin", key="cache.pin", metavar="CACHE_ID", help="Require the cache to have this cache_id."),
    Flag(
        name="--verify",
        key="cache.verify",
        type=VerifyWhen,
        help="When to verify the cache's checksums: first use on this machine, always or never [first].",
    ),
    Flag(
        name="--cache-dir",
        key="cache.dir",
        metavar="DIR",
        help="Local directory for parts of a remote cache [~/.cache/kdpipe].",
    ),
    Flag(
        name="--cache-limit",
        key="cache.limit",
        metavar="SIZE",
        help="Maximum disk space of --cache-dir, e.g. 20GB [100GB].",
    ),
    Flag(
        name=common_options.RETRY_NAME,
        key="cache.retry_for",
        metavar=common_options.RETRY_METAVAR,
        help=common_options.RETRY_HELP,
    ),
    Flag(
        name="--student",
        key="student.name",
        metavar="NAME",
        help="Student: a model folder, a Hub id, a config.json (random init), or tiny, 100m, 350m.",
    ),
    Flag(name="--out", key="out", metavar="DIR", help="Output directory. Re-run the command to resume."),
    Flag(
        name="--mode",
        key="losses.mode",
        type=LossMode,
        help="Loss: output (labels), logit (teacher) or hybrid (both) [hybrid].",
    ),
    Flag(name="--loss", key="losses.logit", type=TEACHER_LOSSES, help="Loss between student and teacher [forward_kl]."),
    Flag(
        name="--alpha", key="losses.alpha", type=float, metavar="FRACTION", help="hybrid: weight of the labels [0.1]."
    ),
    Flag(
        name="--temperature",
        key="losses.temperature",
        type=float,
        metavar="T",
        help="Distillation temperature [1].",
    ),
    Flag(
        name="--allow-coarse",
        key="losses.allow_coarse",
        type=bool,
        help="Accept a --temperature at which the cache's exact ids cover under 20 % of the teacher's mass.",
    ),
    Flag(
        name="--lr",
        key="optimizer.lr",
        type=float,
        metavar="RATE",
        help="Peak learning rate of weight matrices; other groups scale with it [by student type and size].",
    ),
    Flag(
        name="--optimizer",
        key="optimizer.kind",
        type=OptimizerName,
        help="adamw, or muon for matrices and AdamW for the rest [muon from scratch, adamw pretrained and LoRA].",
    ),
    Flag(name="--schedule", key="schedule.kind", type=RateSchedule, help="Learning rate schedule [cosine]."),
    Flag(
        name="--warmup",
        key="schedule.warmup",
        metavar="N|10%",
        help="Warm-up: a number of steps, or a share such as 10% or 0.05 [0.1].",
    ),
    Flag(name="--weight-decay", key="optimizer.weight_decay", type=float, metavar="RATE", help="Weight decay [0.01]."),
    Flag(
        name="--clip",
        key="optimizer.clip",
        type=float,
        metavar="NORM",
        help="Maximum gradient norm [by optimizer].",
    ),
    Flag(name="--epochs", key="run.epochs", type=float, metavar="N", help="Number of epochs [1]."),
    Flag(name="--max-steps", key="run.max_steps", type=int, help="Number of optimizer steps, instead of --epochs."),
    Flag(name="--batch-size", key="run.batch_size", type=int, help="Sequences per batch [8]."),
    Flag(name="--accumulate", key="run.accumulate", type=int, help="Gradient accumulation steps [1]."),
    Flag(name="--eval-every", key="evaluation.every", type=int, help="Steps between evaluations [a tenth of the run]."),
    Flag(name="--save-every", key="saving.every", type=int, help="Steps between checkpoints [a tenth of the run]."),
    Flag(
        name="--keep-checkpoints",
        key="saving.keep",
        type=int,
        help="Newest checkpoints to keep besides the best [2].",
    ),
    Flag(
        name="--devices",
        key="machine.device",
        metavar="WHICH",
        help="auto, cpu, cuda, mps (untested), or one GPU such as cuda:0 [auto].",
    ),
    Flag(
        name="--threads",
        key="machine.threads",
        metavar="N|auto",
        convert=_threads,
        help="CPU threads; auto times one and all [auto].",
    ),
    Flag(
        name="--precision",
        key="machine.precision",
        type=PrecisionSetting,
        help="auto: fp32 on CPU, bf16 on GPUs that support it, else fp16 with fp32 master weights.",
    ),
    Flag(
        name="--guard",
        key="guard.preset",
        type=GuardPreset,
        help="Policy for bad steps: non-finite values, gradient spikes [standard].",
    ),
    Flag(
        name="--gradient-checkpointing",
        key="student.gradient_checkpointing",
        type=bool,
        help="Recompute activations in the backward pass: less memory, more time.",
    ),
    Flag(name="--lora", key="student.lora", type=bool, help="Train a LoRA adapter instead of all weights."),
    Flag(
        name="--report-to",
        key="report_to",
        metavar="NAME,NAME",
        convert=_words,
        help="Trackers: tensorboard, wandb, trackio, mlflow. metrics.jsonl is always written.",
    ),
    Flag(name="--seed", key="seed", type=int, help="Random seed [0]."),
)

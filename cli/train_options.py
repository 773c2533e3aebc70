"""Flags of `kdpipe train`, as one table of flag and setting."""

from typing import Any, Literal

from kdpipe.cli.common_options import DEVICE, OUT, RETRY, SEED
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
    Flag("--from-cache", "cache.path", metavar="DIR", help="Cache to train from: a folder or a URL."),
    Flag("--allow-partial", "cache.allow_partial", bool, help="Train on the finished parts of an incomplete cache."),
    Flag("--pin", "cache.pin", metavar="CACHE_ID", help="Require the cache to have this cache_id."),
    Flag(
        "--verify",
        "cache.verify",
        VerifyWhen,
        help="When to verify the cache's checksums: first use on this machine, always or never [first].",
    ),
    Flag(
        "--cache-dir", "cache.dir", metavar="DIR", help="Local directory for parts of a remote cache [~/.cache/kdpipe]."
    ),
    Flag("--cache-limit", "cache.limit", metavar="SIZE", help="Maximum disk space of --cache-dir, e.g. 20GB [100GB]."),
    RETRY,
    Flag(
        "--student",
        "student.name",
        metavar="NAME",
        help="Student: a model folder, a Hub id, a config.json (random init), or tiny, 100m, 350m.",
    ),
    OUT,
    Flag("--mode", "losses.mode", LossMode, help="Loss: output (labels), logit (teacher) or hybrid (both) [hybrid]."),
    Flag("--loss", "losses.logit", TEACHER_LOSSES, help="Loss between student and teacher [forward_kl]."),
    Flag("--alpha", "losses.alpha", float, metavar="FRACTION", help="hybrid: weight of the labels [0.1]."),
    Flag("--temperature", "losses.temperature", float, metavar="T", help="Distillation temperature [1]."),
    Flag(
        "--allow-coarse",
        "losses.allow_coarse",
        bool,
        help="Accept a --temperature at which the cache's exact ids cover under 20 % of the teacher's mass.",
    ),
    Flag(
        "--lr",
        "optimizer.lr",
        float,
        metavar="RATE",
        help="Peak learning rate of weight matrices; other groups scale with it [by student type and size].",
    ),
    Flag(
        "--optimizer",
        "optimizer.kind",
        OptimizerName,
        help="adamw, or muon for matrices and AdamW for the rest [muon from scratch, adamw pretrained and LoRA].",
    ),
    Flag("--schedule", "schedule.kind", RateSchedule, help="Learning rate schedule [cosine]."),
    Flag(
        "--warmup",
        "schedule.warmup",
        metavar="N|10%",
        help="Warm-up: a number of steps, or a share such as 10% or 0.05 [0.1].",
    ),
    Flag("--weight-decay", "optimizer.weight_decay", float, metavar="RATE", help="Weight decay [0.01]."),
    Flag("--clip", "optimizer.clip", float, metavar="NORM", help="Maximum gradient norm [by optimizer]."),
    Flag("--epochs", "run.epochs", float, metavar="N", help="Number of epochs [1]."),
    Flag("--max-steps", "run.max_steps", int, help="Number of optimizer steps, instead of --epochs."),
    Flag("--batch-size", "run.batch_size", int, help="Sequences per batch [8]."),
    Flag("--accumulate", "run.accumulate", int, help="Gradient accumulation steps [1]."),
    Flag("--eval-every", "evaluation.every", int, help="Steps between evaluations [a tenth of the run]."),
    Flag("--save-every", "saving.every", int, help="Steps between checkpoints [a tenth of the run]."),
    Flag("--keep-checkpoints", "saving.keep", int, help="Newest checkpoints to keep besides the best [2]."),
    DEVICE,
    Flag(
        "--threads",
        "machine.threads",
        metavar="N|auto",
        convert=_threads,
        help="CPU threads; auto times one and all [auto].",
    ),
    Flag(
        "--precision",
        "machine.precision",
        PrecisionSetting,
        help="auto: fp32 on CPU, bf16 on GPUs that support it, else fp16 with fp32 master weights.",
    ),
    Flag(
        "--guard",
        "guard.preset",
        GuardPreset,
        help="Policy for bad steps: non-finite values, gradient spikes [standard].",
    ),
    Flag(
        "--gradient-checkpointing",
        "student.gradient_checkpointing",
        bool,
        help="Recompute activations in the backward pass: less memory, more time.",
    ),
    Flag("--lora", "student.lora", bool, help="Train a LoRA adapter instead of all weights."),
    Flag(
        "--report-to",
        "report_to",
        metavar="NAME,NAME",
        convert=_words,
        help="Trackers: tensorboard, wandb, trackio, mlflow. metrics.jsonl is always written.",
    ),
    SEED,
)

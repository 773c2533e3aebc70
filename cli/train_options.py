"""Flags of `kdpipe train`, as one table of flag and setting."""

from kdpipe.cli import common_options
from kdpipe.cli.flags import Flag
from kdpipe.schemas.choices import GuardPreset, LossMode, OptimizerName, PrecisionSetting, VerifyWhen


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip() and word.strip() != "none"]


SET_EXAMPLE = "schedule.kind=wsd"
FLAGS = (
    Flag(name="--from-cache", place="cache.path", metavar="DIR", help="Cache to train from: a folder or a URL."),
    Flag(
        name="--allow-partial",
        place="cache.allow_partial",
        type=bool,
        help="Train on the finished parts of an incomplete cache.",
    ),
    Flag(name="--pin", place="cache.pin", metavar="CACHE_ID", help="Require the cache to have this cache_id."),
    Flag(
        name="--verify",
        place="cache.verify",
        type=VerifyWhen,
        help="When to verify the cache's checksums: first use on this machine, always or never [first].",
    ),
    Flag(
        name="--cache-dir",
        place="cache.dir",
        metavar="DIR",
        help="Local directory for parts of a remote cache [~/.cache/kdpipe].",
    ),
    Flag(
        name="--cache-limit",
        place="cache.limit",
        metavar="SIZE",
        help="Maximum disk space of --cache-dir, e.g. 20GB [100GB].",
    ),
    Flag(
        name=common_options.RETRY_NAME,
        place="cache.retry_for",
        metavar=common_options.RETRY_METAVAR,
        help=common_options.RETRY_HELP,
    ),
    Flag(
        name="--student",
        place="student.name",
        metavar="NAME",
        help="Student: a model folder, a Hub id, a config.json (random init), or tiny, 100m, 350m.",
    ),
    Flag(name="--out", place="out", metavar="DIR", help="Output directory. Re-run the command to resume."),
    Flag(
        name="--mode",
        place="losses.mode",
        type=LossMode,
        help="Loss: output (labels), logit (teacher) or hybrid (both) [hybrid].",
    ),
    Flag(
        name="--alpha", place="losses.alpha", type=float, metavar="FRACTION", help="hybrid: weight of the labels [0.1]."
    ),
    Flag(
        name="--temperature",
        place="losses.temperature",
        type=float,
        metavar="T",
        help="Distillation temperature [1].",
    ),
    Flag(
        name="--allow-coarse",
        place="losses.allow_coarse",
        type=bool,
        help="Accept a --temperature at which the cache's exact ids cover under 20 % of the teacher's mass.",
    ),
    Flag(
        name="--lr",
        place="optimizer.lr",
        type=float,
        metavar="RATE",
        help="Peak learning rate of weight matrices; other groups scale with it [by student type and size].",
    ),
    Flag(
        name="--optimizer",
        place="optimizer.kind",
        type=OptimizerName,
        help="adamw, or muon for matrices and AdamW for the rest [muon from scratch, adamw pretrained and LoRA].",
    ),
    Flag(name="--epochs", place="run.epochs", type=float, metavar="N", help="Number of epochs [1]."),
    Flag(name="--max-steps", place="run.max_steps", type=int, help="Number of optimizer steps, instead of --epochs."),
    Flag(name="--batch-size", place="run.batch_size", type=int, help="Sequences per batch [8]."),
    Flag(name="--accumulate", place="run.accumulate", type=int, help="Gradient accumulation steps [1]."),
    Flag(
        name="--precision",
        place="machine.precision",
        type=PrecisionSetting,
        help="auto: fp32 on CPU, bf16 on GPUs that support it, else fp16 with fp32 master weights.",
    ),
    Flag(
        name="--guard",
        place="guard.preset",
        type=GuardPreset,
        help="Policy for bad steps: non-finite values, gradient spikes [standard].",
    ),
    Flag(name="--lora", place="student.lora", type=bool, help="Train a LoRA adapter instead of all weights."),
    Flag(
        name="--report-to",
        place="report_to",
        metavar="NAME,NAME",
        convert=_words,
        help="Trackers: tensorboard, wandb, trackio, mlflow. metrics.jsonl is always written.",
    ),
    Flag(name="--seed", place="seed", type=int, help="Random seed [0]."),
)

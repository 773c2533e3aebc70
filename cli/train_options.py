"""The flags of `kdpipe train`: one table, with the setting that each of them says.

In: nothing. Out: `FLAGS`, `SET_EXAMPLE`.
"""

from kdpipe.cli import remote_options
from kdpipe.cli.flags import Flag
from kdpipe.schemas.choices import GuardPreset, LossMode, OptimizerName, PrecisionSetting, VerifyWhen


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip() and word.strip() != "none"]


SET_EXAMPLE = "schedule.kind=wsd"
FLAGS = (
    Flag(name="--from-cache", place="cache.path", metavar="DIR", help="The cache to learn from."),
    Flag(
        name="--allow-partial",
        place="cache.allow_partial",
        type=bool,
        help="Learn from the parts that an unfinished cache has.",
    ),
    Flag(name="--pin", place="cache.pin", metavar="CACHE_ID", help="Learn from the cache of this cache_id alone."),
    Flag(
        name="--verify",
        place="cache.verify",
        type=VerifyWhen,
        help="When every byte of the cache is checked: before its first use on this machine, always, never [first].",
    ),
    Flag(
        name="--cache-dir",
        place="cache.dir",
        metavar="DIR",
        help="Where parts of a cache behind a URL are kept [~/.cache/kdpipe].",
    ),
    Flag(
        name="--cache-limit",
        place="cache.limit",
        metavar="SIZE",
        help="How much of it is kept there at most, as in 20GB [100GB].",
    ),
    Flag(
        name=remote_options.NAME,
        place="cache.retry_for",
        metavar=remote_options.METAVAR,
        help=remote_options.HELP,
    ),
    Flag(
        name="--student",
        place="student.name",
        metavar="NAME",
        help="Who learns: a model folder, a hub id, a config.json for a fresh one, or tiny, 100m, 350m.",
    ),
    Flag(name="--out", place="out", metavar="DIR", help="The folder of the run; run again, it goes on there."),
    Flag(
        name="--mode",
        place="losses.mode",
        type=LossMode,
        help="output: labels only; logit: the teacher only; hybrid: both [hybrid].",
    ),
    Flag(name="--alpha", place="losses.alpha", type=float, metavar="SHARE", help="hybrid: weight of the labels [0.1]."),
    Flag(
        name="--temperature",
        place="losses.temperature",
        type=float,
        metavar="T",
        help="The temperature at which student and teacher are compared [1].",
    ),
    Flag(
        name="--allow-coarse",
        place="losses.allow_coarse",
        type=bool,
        help="Accept a --temperature at which the cache's exact ids hold under 20 % of the teacher's mass.",
    ),
    Flag(
        name="--lr",
        place="optimizer.lr",
        type=float,
        metavar="RATE",
        help="Peak learning rate of matrices; scales that of every parameter group [by kind and size of student].",
    ),
    Flag(
        name="--optimizer",
        place="optimizer.kind",
        type=OptimizerName,
        help="adamw, or muon (for matrices; AdamW for the rest) [muon fresh, adamw pretrained and LoRA].",
    ),
    Flag(name="--epochs", place="run.epochs", type=float, metavar="N", help="How often the cache is read [1]."),
    Flag(name="--max-steps", place="run.max_steps", type=int, help="Optimizer steps, instead of epochs."),
    Flag(name="--batch-size", place="run.batch_size", type=int, help="Sequences at once [8]."),
    Flag(name="--accumulate", place="run.accumulate", type=int, help="Batches of an optimizer step [1]."),
    Flag(
        name="--precision",
        place="machine.precision",
        type=PrecisionSetting,
        help="auto: fp32 on a CPU, bf16 where the GPU has it, else fp16 with fp32 masters.",
    ),
    Flag(
        name="--guard",
        place="guard.preset",
        type=GuardPreset,
        help="What is done about steps that go wrong [standard].",
    ),
    Flag(name="--lora", place="student.lora", type=bool, help="Train an adapter of low rank instead of all weights."),
    Flag(
        name="--report-to",
        place="report_to",
        metavar="NAME,NAME",
        means=_words,
        help="tensorboard, wandb, trackio, mlflow; metrics.jsonl is always there.",
    ),
    Flag(name="--seed", place="seed", type=int, help="Of everything drawn [0]."),
)

"""Flags of `kdpipe cache-teacher` and `kdpipe plan`, as one table of flag and setting.

`OUT` and `EXTEND` are for cache-teacher alone, which writes a cache.
"""

from typing import Any

from kdpipe.cli.flags import Flag
from kdpipe.schemas.choices import DtypeSetting, Profile, TargetKind, TrainOnSetting


def _numbers(text: str) -> list[Any]:
    """A comma list of numbers, or `none`; other words stay text, so that the settings reject them by position."""
    return [] if text.strip() == "none" else [_number(word.strip()) for word in text.split(",")]


def _number(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def _layers(text: str) -> dict[str, Any]:
    """`none` turns off the mean per document; layers add hidden states per position."""
    if text.strip() == "none":
        return {"pooled": False, "layers": []}
    return {"layers": [word.strip() for word in text.split(",")]}


SET_EXAMPLE = "data.columns.text=body"
FLAGS = (
    Flag(
        name="--teacher",
        key="teacher.name",
        metavar="NAME",
        help="Teacher: a causal language model, as a folder or a Hugging Face Hub id.",
    ),
    Flag(
        name="--revision",
        key="teacher.revision",
        metavar="REV",
        help="Commit, tag or branch of the teacher on the Hub.",
    ),
    Flag(
        name="--teacher-name",
        key="teacher.display_name",
        metavar="NAME",
        help="Teacher's name for manifest and model cards [Hub id or folder].",
    ),
    Flag(
        name="--teacher-license",
        key="teacher.license",
        metavar="NAME",
        help="Teacher's license, e.g. apache-2.0 [from its model card].",
    ),
    Flag(
        name="--tokenizer",
        key="teacher.tokenizer",
        metavar="NAME",
        help="Tokenizer: a folder or Hub id; must have the content of the teacher's [the teacher's].",
    ),
    Flag(
        name="--allow-foreign-tokenizer",
        key="teacher.allow_foreign_tokenizer",
        type=bool,
        help="Accept a --tokenizer that differs from the teacher's; predictions for differing ids are meaningless.",
    ),
    Flag(
        name="--trust-remote-code",
        key="teacher.trust_remote_code",
        type=bool,
        help="Run Python code from the teacher's repository; review it first.",
    ),
    Flag(name="--dtype", key="teacher.dtype", type=DtypeSetting, help="Data type of the teacher's weights [auto]."),
    Flag(
        name="--data",
        key="data.path",
        metavar="PATH",
        help="Documents: .jsonl, .json, .parquet or .txt files, a folder or glob of them, or a dataset on the Hub.",
    ),
    Flag(name="--data-split", key="data.split", metavar="NAME", help="Split of a Hub dataset."),
    Flag(name="--limit", key="data.limit", type=int, help="Use only the first N documents."),
    Flag(name="--val-data", key="data.val_path", metavar="PATH", help="Documents of the validation split."),
    Flag(
        name="--val-fraction",
        key="data.val_fraction",
        type=float,
        metavar="FRACTION",
        help="Fraction of documents held out for validation, selected by hash [0.02].",
    ),
    Flag(
        name="--train-on",
        key="data.train_on",
        type=TrainOnSetting,
        help="Tokens to train on. auto: assistant turns and responses; all tokens of plain text [auto].",
    ),
    Flag(
        name="--max-bad-rows",
        key="data.max_bad_rows",
        type=int,
        help="Fail after more than N unusable rows [100].",
    ),
    Flag(
        name="--seq-len",
        key="sequences.length",
        type=int,
        help="Sequence length in tokens [2048, or the teacher's context if shorter].",
    ),
    Flag(
        name="--no-pack",
        key="sequences.pack",
        type=bool,
        convert=lambda given: not given,
        help="One document per sequence, without packing.",
    ),
    Flag(name="--targets", key="targets.kind", type=TargetKind, help="Teacher predictions to store [threshold]."),
    Flag(
        name="--profile",
        key="targets.profile",
        type=Profile,
        help="Size of threshold targets: tau is 1/10, 1/25 or 1/50 [standard].",
    ),
    Flag(
        name="--tau",
        key="targets.tau",
        type=float,
        metavar="P",
        help="threshold: store ids of at least this probability exactly, sample the rest.",
    ),
    Flag(name="--top-k", key="targets.top_k", type=int, metavar="K", help="topk: ids kept per position [64]."),
    Flag(
        name="--top-p",
        key="targets.top_p",
        type=float,
        metavar="P",
        help="topp: probability mass kept per position [0.95].",
    ),
    Flag(name="--draws", key="targets.draws", type=int, help="sampled: draws per position [50]."),
    Flag(
        name="--target-temperature",
        key="targets.target_temperature",
        type=float,
        metavar="T",
        help="Temperature at which sampled targets are unbiased [1].",
    ),
    Flag(
        name="--temperatures",
        key="targets.temperatures",
        metavar="T,T",
        convert=_numbers,
        help="Other temperatures at which exact ids can be used [none].",
    ),
    Flag(
        name="--hidden-layers",
        key="hidden",
        metavar="L,L",
        convert=_layers,
        help="Hidden states to store per position: layer numbers or fractions of the depth (0.5,1.0); none: not even a"
        " mean per document.",
    ),
    Flag(
        name="--hidden-dim",
        key="hidden.dim",
        type=int,
        help="Projected width of per-position hidden states [64].",
    ),
    Flag(
        name="--for-other-tokenizers",
        key="targets.for_other_tokenizers",
        type=bool,
        help="Also store the text, for students with another tokenizer.",
    ),
    Flag(
        name="--devices",
        key="machine.devices",
        metavar="WHICH",
        help="auto, cpu, cuda:0, or all (one worker per GPU) [auto].",
    ),
    Flag(name="--seed", key="seed", type=int, help="Random seed [0]."),
)
EXTEND = Flag(
    name="--extend",
    key="extend",
    metavar="CACHE",
    help="Extend this finished cache with the documents of --data.",
)
OUT = Flag(name="--out", key="out", metavar="DIR", help="Output directory. Re-run the command to resume.")

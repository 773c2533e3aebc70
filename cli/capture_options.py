"""Flags of `kdpipe cache-teacher` and `kdpipe plan`, as one table of flag and setting.

`EXTEND` is for cache-teacher alone, which writes a cache.
"""

from dataclasses import replace
from typing import Any

from kdpipe.cli.common_options import DEVICE, SEED, TEACHER_CODE
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


def _patterns(text: str) -> list[str]:
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]


def _layers(text: str) -> dict[str, Any]:
    """`none` turns off the mean per document; layers add hidden states per position."""
    if text.strip() == "none":
        return {"pooled": False, "layers": []}
    return {"layers": [word.strip() for word in text.split(",")]}


SET_EXAMPLE = "data.columns.text=body"
FLAGS = (
    Flag(
        "--teacher",
        "teacher.name",
        metavar="NAME",
        help="Teacher: a causal language model, as a folder or a Hugging Face Hub id.",
    ),
    Flag("--revision", "teacher.revision", metavar="REV", help="Commit, tag or branch of the teacher on the Hub."),
    Flag(
        "--teacher-name",
        "teacher.display_name",
        metavar="NAME",
        help="Teacher's name for manifest and model cards [Hub id or folder].",
    ),
    Flag(
        "--teacher-license",
        "teacher.license",
        metavar="NAME",
        help="Teacher's license, e.g. apache-2.0 [from its model card].",
    ),
    Flag(
        "--tokenizer",
        "teacher.tokenizer",
        metavar="NAME",
        help="Tokenizer: a folder or Hub id; must have the content of the teacher's [the teacher's].",
    ),
    Flag(
        "--allow-foreign-tokenizer",
        "teacher.allow_foreign_tokenizer",
        bool,
        help="Accept a --tokenizer that differs from the teacher's; predictions for differing ids are meaningless.",
    ),
    TEACHER_CODE,
    Flag("--dtype", "teacher.dtype", DtypeSetting, help="Data type of the teacher's weights [auto]."),
    Flag(
        "--data",
        "data.path",
        metavar="PATH",
        help="Documents: .jsonl, .json, .csv, .tsv, .parquet, .txt, .md (also .gz, .zst), a folder or glob, or a Hub"
        " dataset.",
    ),
    Flag(
        "--text-files",
        "data.text_files",
        metavar="GLOB,GLOB",
        convert=_patterns,
        help="Also read files of these names as text, one document each, e.g. '*.py' [none].",
    ),
    Flag("--data-split", "data.split", metavar="NAME", help="Split of a Hub dataset."),
    Flag("--limit", "data.limit", int, help="Use only the first N documents."),
    Flag("--val-data", "data.val_path", metavar="PATH", help="Documents of the validation split."),
    Flag(
        "--val-fraction",
        "data.val_fraction",
        float,
        metavar="FRACTION",
        help="Fraction of documents held out for validation, selected by hash [0.02].",
    ),
    Flag(
        "--train-on",
        "data.train_on",
        TrainOnSetting,
        help="Tokens to train on. auto: assistant turns and responses; all tokens of plain text [auto].",
    ),
    Flag("--max-bad-rows", "data.max_bad_rows", int, help="Fail after more than N unusable rows [100]."),
    Flag(
        "--seq-len",
        "sequences.length",
        int,
        help="Sequence length in tokens [2048, or the teacher's context if shorter].",
    ),
    Flag(
        "--no-pack",
        "sequences.pack",
        bool,
        convert=lambda given: not given,
        help="One document per sequence, without packing.",
    ),
    Flag("--targets", "targets.kind", TargetKind, help="Teacher predictions to store [threshold]."),
    Flag(
        "--profile", "targets.profile", Profile, help="Size of threshold targets: tau is 1/10, 1/25 or 1/50 [standard]."
    ),
    Flag(
        "--tau",
        "targets.tau",
        float,
        metavar="P",
        help="threshold: store ids of at least this probability exactly, sample the rest.",
    ),
    Flag("--top-k", "targets.top_k", int, metavar="K", help="topk: ids kept per position [64]."),
    Flag("--top-p", "targets.top_p", float, metavar="P", help="topp: probability mass kept per position [0.95]."),
    Flag("--draws", "targets.draws", int, help="sampled: draws per position [50]."),
    Flag(
        "--target-temperature",
        "targets.target_temperature",
        float,
        metavar="T",
        help="Temperature at which sampled targets are unbiased [1].",
    ),
    Flag(
        "--temperatures",
        "targets.temperatures",
        metavar="T,T",
        convert=_numbers,
        help="Other temperatures at which exact ids can be used [none].",
    ),
    Flag(
        "--hidden-layers",
        "hidden",
        metavar="L,L",
        convert=_layers,
        help="Hidden states to store per position: layer numbers or fractions of the depth (0.5,1.0); none: not even a"
        " mean per document.",
    ),
    Flag("--hidden-dim", "hidden.dim", int, help="Projected width of per-position hidden states [64]."),
    Flag(
        "--for-other-tokenizers",
        "targets.for_other_tokenizers",
        bool,
        help="Also store the text, for students with another tokenizer.",
    ),
    replace(DEVICE, key="machine.devices"),
    SEED,
)
EXTEND = Flag(
    "--extend",
    "extend",
    metavar="CACHE",
    help="Extend this finished cache with the documents of --data.",
)

"""The flags of `kdpipe cache-teacher` and `kdpipe plan`: one table, with the setting that each of them says.

In: nothing. Out: `FLAGS`, `SET_EXAMPLE`, and `OUT` and `EXTEND` for the command that writes.
"""

from typing import Any

from kdpipe.cli.flags import Flag
from kdpipe.schemas.choices import DtypeSetting, Profile, TargetKind


def _numbers(text: str) -> list[Any]:
    """A comma list of numbers, or `none`; what is no number stays as it is and is refused with its place."""
    return [] if text.strip() == "none" else [_number(word.strip()) for word in text.split(",")]


def _number(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def _layers(text: str) -> dict[str, Any]:
    """`none` turns off what is pooled over documents; layers are kept of every position besides."""
    if text.strip() == "none":
        return {"pooled": False, "layers": []}
    return {"layers": [word.strip() for word in text.split(",")]}


SET_EXAMPLE = "data.columns.text=body"
FLAGS = (
    Flag(name="--teacher", place="teacher.name", metavar="NAME", help="A causal language model: a folder or a hub id."),
    Flag(name="--revision", place="teacher.revision", metavar="REV", help="The teacher's revision on the hub."),
    Flag(
        name="--teacher-name",
        place="teacher.display_name",
        metavar="NAME",
        help="Teacher's name in manifest and model cards; the hub id or folder unless given.",
    ),
    Flag(
        name="--teacher-license",
        place="teacher.license",
        metavar="NAME",
        help="Teacher's license, as in apache-2.0; that of its model card unless given.",
    ),
    Flag(
        name="--tokenizer",
        place="teacher.tokenizer",
        metavar="NAME",
        help="Where the tokenizer is [the teacher's own]; must be equal to that by content.",
    ),
    Flag(
        name="--allow-foreign-tokenizer",
        place="teacher.allow_foreign_tokenizer",
        type=bool,
        help="Accept a --tokenizer other than the teacher's own: predictions for ids that differ are nonsense.",
    ),
    Flag(
        name="--trust-remote-code",
        place="teacher.trust_remote_code",
        type=bool,
        help="Let the teacher's repository run code of its own.",
    ),
    Flag(name="--dtype", place="teacher.dtype", type=DtypeSetting, help="Type of the weights [auto]."),
    Flag(
        name="--data",
        place="data.path",
        metavar="PATH",
        help="Documents: .jsonl, .json, .parquet or .txt, a folder or a glob of them, or a data set on the hub.",
    ),
    Flag(name="--data-split", place="data.split", metavar="NAME", help="Which split of a data set on the hub."),
    Flag(name="--limit", place="data.limit", type=int, help="The first N documents only."),
    Flag(name="--val-data", place="data.val_path", metavar="PATH", help="Documents of the validation split."),
    Flag(
        name="--val-fraction",
        place="data.val_fraction",
        type=float,
        metavar="SHARE",
        help="Share of the documents held out for validation, chosen by their hash [0.02].",
    ),
    Flag(
        name="--max-bad-rows",
        place="data.max_bad_rows",
        type=int,
        help="Stop at more rows than this that cannot be used [100].",
    ),
    Flag(
        name="--seq-len",
        place="sequences.length",
        type=int,
        help="Tokens of a sequence: 2048, or what the teacher reads.",
    ),
    Flag(
        name="--no-pack",
        place="sequences.pack",
        type=bool,
        means=lambda given: not given,
        help="One document a sequence, instead of several behind each other.",
    ),
    Flag(name="--targets", place="targets.kind", type=TargetKind, help="What is kept of the teacher [threshold]."),
    Flag(
        name="--profile",
        place="targets.profile",
        type=Profile,
        help="How much threshold targets keep [standard: 1/25].",
    ),
    Flag(
        name="--tau",
        place="targets.tau",
        type=float,
        metavar="P",
        help="threshold: keep what is at least as probable, sample the rest.",
    ),
    Flag(name="--top-k", place="targets.top_k", type=int, metavar="K", help="topk: ids of a position [64]."),
    Flag(name="--top-p", place="targets.top_p", type=float, metavar="P", help="topp: mass of a position [0.95]."),
    Flag(name="--draws", place="targets.draws", type=int, help="sampled: draws of a position [50]."),
    Flag(
        name="--target-temperature",
        place="targets.target_temperature",
        type=float,
        metavar="T",
        help="The temperature at which draws are unbiased [1].",
    ),
    Flag(
        name="--temperatures",
        place="targets.temperatures",
        metavar="T,T",
        means=_numbers,
        help="Temperatures at which exact ids can be read too [none].",
    ),
    Flag(
        name="--hidden-layers",
        place="hidden",
        metavar="L,L",
        means=_layers,
        help="Layers to keep of every position, as numbers or shares of the depth (0.5,1.0); none: not even a"
        " document's mean.",
    ),
    Flag(
        name="--hidden-dim",
        place="hidden.dim",
        type=int,
        help="Dimensions that layers of a position are projected to [64].",
    ),
    Flag(
        name="--for-other-tokenizers",
        place="targets.for_other_tokenizers",
        type=bool,
        help="Keep the text, and what students with another tokenizer need.",
    ),
    Flag(
        name="--devices",
        place="machine.devices",
        metavar="WHICH",
        help="auto, cpu, cuda:0 or all (a worker a GPU) [auto].",
    ),
    Flag(name="--seed", place="seed", type=int, help="Of everything drawn [0]."),
)
EXTEND = Flag(
    name="--extend",
    place="extend",
    metavar="CACHE",
    help="A finished cache whose parts the new one begins with; --data are documents that come behind.",
)
OUT = Flag(name="--out", place="out", metavar="DIR", help="The folder of the cache; run again, it goes on there.")

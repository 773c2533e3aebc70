"""Import sources for tests: DistillKit's own files, random rows in the other formats, and a tokenizer for them.

In: a folder. Out: files in it, and the values that a cache of them must have.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from kdpipe.pipeline.config_file import read_file
from kdpipe.pipeline.import_cache import import_cache, open_source
from kdpipe.pipeline.interop.survey import SourceSurvey
from kdpipe.schemas.interop import DistillkitCodec, ImportReport, ImportSettings
from kdpipe.schemas.progress import SilentProgress
from kdpipe.schemas.strict_json import canonical

DISTILLKIT = Path(__file__).parents[1] / "data" / "distillkit"
SETS = ("recommended", "released-delta", "residual-bins")
DISTILLKIT_IDS = 4096
Row = dict[str, Any]


def expected(name: str) -> dict[str, npt.NDArray[Any]]:
    """The output of DistillKit's own decoder for one of its sets, [sequences, tokens, k]."""
    with np.load(DISTILLKIT / name / "expected.npz") as arrays:
        return dict(arrays)


def distillkit_rows(name: str) -> list[Row]:
    """The stored rows of a set."""
    return pq.read_table(DISTILLKIT / name / "data_0.parquet").to_pylist()


def distillkit_codec(name: str) -> DistillkitCodec:
    """The codec settings of a set of the recommended codec."""
    return DistillkitCodec.model_validate_json(canonical(read_file(DISTILLKIT / name / "compression_config.yaml")))


def word_tokenizer(folder: Path, n_ids: int) -> Path:
    """A tokenizer of words w0, w1, ... and an end token."""
    words = {"<end>": 0, **{f"w{i}": i for i in range(1, n_ids)}}
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "<end>")), eos_token="<end>")
    fast.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Sequence[Row], **options: Any) -> Path:
    """Write rows as Parquet or as JSON lines, by the suffix of the path."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path, **options)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def imported(**settings: Any) -> ImportReport:
    """Run an import without progress output."""
    return import_cache(ImportSettings(**settings), SilentProgress())


def surveyed(n_ids: int, **settings: Any) -> SourceSurvey:
    """The first pass of an import, which checks every row and writes nothing."""
    given = ImportSettings(tokenizer="-", out="-", **settings)
    return open_source(given, n_ids).survey(given)


def random_rows(seed: int, n_ids: int, k: int, lengths: Sequence[int]) -> list[Row]:
    """Plain top-k of random distributions: for each token k ids and their log p; the last list predicts no token."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in lengths:
        logits = rng.normal(size=(n, n_ids)) * 2
        logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        ids = np.argsort(-logp, axis=1)[:, :k]
        rows.append(
            {
                "tokens": rng.integers(1, n_ids, n).tolist(),
                "ids": ids.tolist(),
                "logprobs": np.take_along_axis(logp, ids, axis=1).astype(np.float32).astype(float).tolist(),
            }
        )
    return rows


def axolotl_row(row: Row, **changes: Any) -> Row:
    """Axolotl's columns: list t predicts token t + 1, the last is empty; the first three tokens are a prompt."""
    columns = {
        "input_ids": row["tokens"],
        "labels": [-100] * 3 + row["tokens"][3:],
        "attention_mask": [1] * len(row["tokens"]),
        "target_token_ids": [*row["ids"][:-1], []],
        "target_logprobs": [*row["logprobs"][:-1], []],
    }
    return {**columns, **changes}


def nemo_row(row: Row) -> Row:
    """NeMo-Aligner's columns: logits minus the largest, log-sum-exp, labels shifted by one, two rows of padding."""
    ids, values = row["ids"][:-1], row["logprobs"][:-1]
    n, k = len(ids), len(ids[0])
    top = [max(logprobs) for logprobs in values]
    padding = [float(-i) for i in range(k)]
    return {
        "tokens": [*row["tokens"][:-1], 1, 1],
        "labels": [*row["tokens"][1:], 1, 1],
        "loss_mask": [0.0, 0.0, *([1.0] * (n - 2)), 0.0, 0.0],
        "topk_token_ids": [*ids, list(range(k)), list(range(k))],
        "topk_logits": [[v - t for v in logprobs] for logprobs, t in zip(values, top, strict=True)] + [padding] * 2,
        "log_sum_exp_logits": [*(-t for t in top), 1.0, 1.0],
        "index": 5,
        "metadata": "unused",
    }


def topk_row(row: Row) -> Row:
    """Plain top-k with a loss mask and tails."""
    tails = [math.log1p(-math.fsum(map(math.exp, logprobs))) for logprobs in row["logprobs"]]
    return {**row, "loss_mask": [False] * 2 + [True] * (len(row["tokens"]) - 2), "log_tail": tails}

"""What other tools have stored, for tests of importing: DistillKit's own files, rows for the others, a tokenizer.

In: a folder. Out: files in it, and what they must become.
"""

import json
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
from kdpipe.pipeline.watch import SilentWatch
from kdpipe.schemas.interop import DistillkitCodec, ImportReport, ImportSettings
from kdpipe.schemas.strict_json import canonical

DISTILLKIT = Path(__file__).parents[1] / "data" / "distillkit"
SETS = ("recommended", "released-delta", "residual-bins")
DISTILLKIT_IDS = 4096
Row = dict[str, Any]


def expected(name: str) -> dict[str, npt.NDArray[Any]]:
    """What DistillKit's own decoder gives of one of its sets, [sequences, tokens, k]."""
    with np.load(DISTILLKIT / name / "expected.npz") as found:
        return dict(found)


def distillkit_rows(name: str) -> list[Row]:
    """The rows of a set as they are stored."""
    return pq.read_table(DISTILLKIT / name / "data_0.parquet").to_pylist()


def distillkit_codec(name: str) -> DistillkitCodec:
    """The settings of one of the newer sets."""
    return DistillkitCodec.model_validate_json(canonical(read_file(DISTILLKIT / name / "compression_config.yaml")))


def word_tokenizer(folder: Path, n_ids: int) -> Path:
    """A tokenizer of words w0, w1, ... and an end."""
    words = {"<end>": 0, **{f"w{i}": i for i in range(1, n_ids)}}
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "<end>")), eos_token="<end>")
    fast.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Sequence[Row], **options: Any) -> Path:
    """Rows as Parquet or as lines of JSON, by the ending of the path."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path, **options)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def imported(**settings: Any) -> ImportReport:
    """An import that nobody watches."""
    return import_cache(ImportSettings(**settings), SilentWatch())


def surveyed(n_ids: int, **settings: Any) -> SourceSurvey:
    """The first pass of an import, which reads and checks everything and writes nothing."""
    asked = ImportSettings(tokenizer="-", out="-", **settings)
    return open_source(asked, n_ids).survey(asked)


def random_rows(seed: int, n_ids: int, k: int, lengths: Sequence[int]) -> list[Row]:
    """Plain top-k of random distributions: for each token k ids and their log p, the last list about nothing."""
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

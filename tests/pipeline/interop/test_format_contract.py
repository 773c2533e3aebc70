"""Each import format does what the contract demands."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from kdpipe.schemas.choices import ImportFormat, StatedTail
from kdpipe.schemas.interop import DistillkitCodec
from support.distillkit_twin import bits_of, packed_values
from support.import_contract import ImportFormatContract
from support.interop_sources import Row, axolotl_row, nemo_row, random_rows, topk_row, write_rows

ROWS = random_rows(7, 30, 4, (9, 5, 12))


class RowsContract(ImportFormatContract):
    """A source of JSON lines, made from plain top-k row by row."""

    n_ids: ClassVar[int] = 30
    trained: ClassVar[int] = 2
    columns: ClassVar[Callable[[Row], Row]]
    cut: ClassVar[str]

    def rows(self) -> list[Row]:
        return ROWS

    def write(self, folder: Path, change: Callable[[Row], Row] = lambda row: row) -> Path:
        columns = [type(self).columns(row) for row in ROWS]
        return write_rows(folder / "rows.jsonl", [columns[0], change(columns[1]), *columns[2:]])

    def broken(self, columns: Row) -> Row:
        return {**columns, self.cut: columns[self.cut][:2]}


class TestAxolotl(RowsContract):
    name: ClassVar[ImportFormat] = "axolotl"
    tail: ClassVar[StatedTail | None] = "unknown"
    columns = staticmethod(axolotl_row)
    cut = "target_token_ids"


class TestNemo(RowsContract):
    name: ClassVar[ImportFormat] = "nemo"
    tail: ClassVar[StatedTail | None] = "rest"
    columns = staticmethod(nemo_row)
    cut = "log_sum_exp_logits"


class TestTopK(RowsContract):
    name: ClassVar[ImportFormat] = "topk"
    tail: ClassVar[StatedTail | None] = None
    columns = staticmethod(topk_row)
    cut = "log_tail"


CODEC = DistillkitCodec(d=30, k=4, exact_k=4, residual_bins=(), delta_encoding=False)


def distillkit_row(row: Row) -> Row:
    return {
        "input_ids": row["tokens"],
        "compressed_logprobs": [list(packed_values(CODEC, logprobs, [], [])) for logprobs in row["logprobs"]],
        "bytepacked_indices": [list(bits_of(ids, 5)) for ids in row["ids"]],
    }


class TestDistillkit(RowsContract):
    name: ClassVar[ImportFormat] = "distillkit"
    tail: ClassVar[StatedTail | None] = "rest"
    trained: ClassVar[int] = 0
    columns = staticmethod(distillkit_row)
    cut = "compressed_logprobs"

    def write(self, folder: Path, change: Callable[[Row], Row] = lambda row: row) -> Path:
        (folder / "compression_config.yaml").write_text(CODEC.model_dump_json(), encoding="utf-8")
        return super().write(folder, change)

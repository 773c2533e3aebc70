"""docs/import-export.md: its commands run, and its tables list the formats and columns of the code."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from kdpipe.cli import main
from kdpipe.pipeline.interop import FORMATS, axolotl, distillkit, nemo
from kdpipe.pipeline.interop import topk_lists as topk
from kdpipe.pipeline.interop.distillkit import MAX_FITTED_MASS
from kdpipe.pipeline.interop.export_tables import AXOLOTL, column_types
from kdpipe.pipeline.interop.validated_row import MAX_MASS, MIN_LOGPROB
from support.interop_sources import (
    DISTILLKIT,
    DISTILLKIT_IDS,
    axolotl_row,
    nemo_row,
    random_rows,
    word_tokenizer,
    write_rows,
)
from support.source import ROOT
from support.tiny import SMALL, manifest_of

PAGE = (ROOT / "docs" / "import-export.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """The lines of the page's sh blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(1, 100, 4, range(5, 25))
    shutil.copytree(DISTILLKIT / "recommended", tmp_path / "captured")
    word_tokenizer(tmp_path / "teacher", DISTILLKIT_IDS)
    write_rows(tmp_path / "kd.jsonl", [axolotl_row(row) for row in rows])
    write_rows(tmp_path / "topk_logits.jsonl", [nemo_row(row) for row in rows])
    write_rows(tmp_path / "rows.jsonl", [{**row, "scores": row.pop("logprobs")} for row in rows])
    monkeypatch.chdir(tmp_path)
    assert len(commands()) >= 7
    for line in commands():
        words = shlex.split(line, comments=True)
        assert words[0] == "kdpipe"
        assert main.run(words[1:]) == 0, line


def quoted(cells: str) -> set[str]:
    return set(re.findall(r"`([\w@]+)`", cells))


def test_every_format_is_on_the_page_with_its_columns() -> None:
    documented: dict[str, set[str]] = {}
    for which, columns in re.findall(r"^\| (`\w+`(?:, legacy)?) \| ([^|]+) \| (?:predicts|detected)", PAGE, re.M):
        documented[which] = quoted(columns.partition(";")[0])
    expected = {
        "`distillkit`": set(distillkit.COLUMNS),
        "`distillkit`, legacy": set(distillkit.LEGACY_COLUMNS),
        "`axolotl`": {"input_ids", axolotl.IDS, axolotl.VALUES, "labels", "attention_mask"},
        "`nemo`": set(nemo.COLUMNS),
        "`topk`": {*topk.NEEDED, *topk.OPTIONAL},
    }
    assert documented == expected
    assert {re.findall(r"\w+", which)[0] for which in documented} == set(FORMATS)


def test_every_column_of_an_export_is_on_the_page() -> None:
    documented = {}
    for columns, kind in re.findall(r"^\| (`[^|]+`) \| (list of [^|]+) \|", PAGE, re.M):
        documented |= dict.fromkeys(quoted(columns), kind)
    types = {"int32": "int32", "float32": "float32", "bool": "bool"}
    expected = {
        name: f"list of {'lists of ' if deep == 2 else ''}{types[kind]}"
        for name, (kind, deep) in column_types("parquet", manifest_of(SMALL)).items()
        if not name.startswith("log_z_")
    }
    assert documented == {**expected, "log_z_T": "list of float32", "boundary_logprob": "list of float32"}
    form = PAGE.partition("`--to axolotl` writes")[2].partition("list t predicts")[0]
    assert quoted(form) == set(AXOLOTL)


def test_limits_on_the_page_are_those_of_the_code() -> None:
    assert f"below {MIN_LOGPROB:.0f} are padding" in " ".join(PAGE.split())
    assert f"hold up to {MAX_MASS}" in PAGE
    assert f"up to {MAX_FITTED_MASS:,.0f} is allowed" in PAGE

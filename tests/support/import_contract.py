"""What every import format must do, as a suite of tests to inherit.

In: a format, given by the class that inherits: its name, its tail, and files in it. Out: its tests.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pytest

from kdpipe.pipeline.import_cache import ImportSource, open_source
from kdpipe.pipeline.interop import FORMATS, FormatOption
from kdpipe.schemas.choices import ImportFormat, StatedTail
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.interop import ImportSettings
from support.interop_sources import Row


class ImportFormatContract:
    """Subclasses give the members below, and are collected as Test*.

    `rows` are plain top-k: `tokens`, and lists of `ids` and `logprobs` of which list t predicts token t + 1. `trained`
    is the first row that is trained on, `tolerance` the largest error of a log-probability.
    """

    name: ClassVar[ImportFormat]
    n_ids: ClassVar[int]
    tail: ClassVar[StatedTail | None]
    trained: ClassVar[int] = 0
    tolerance: ClassVar[float] = 1e-5

    def rows(self) -> list[Row]:
        """The rows that the source contains."""
        raise NotImplementedError

    def write(self, folder: Path, change: Callable[[Row], Row] = lambda row: row) -> Path:
        """Write the rows in this format, with a change applied to the columns of the second one."""
        raise NotImplementedError

    def broken(self, columns: Row) -> Row:
        """The columns of a row with one of them cut off."""
        raise NotImplementedError

    def settings(self, source: Path, **changes: Any) -> ImportSettings:
        place = {"source_format": self.name, "source": str(source), "tokenizer": "-", "out": "-"}
        return ImportSettings(**{**place, **changes})

    def source(self, folder: Path, **changes: Any) -> ImportSource:
        return open_source(self.settings(self.write(folder), **changes), self.n_ids)

    def test_the_format_is_a_choice_and_a_row_of_the_table(self) -> None:
        assert set(FORMATS) == set(get_args(ImportFormat)) >= {self.name}

    def test_row_t_has_the_distribution_of_token_t_plus_one(self, tmp_path: Path) -> None:
        source = self.source(tmp_path)
        survey = source.survey(self.settings(tmp_path))
        found = list(source.rows(survey, survey.rows_of("train")))
        assert len(found) == len(self.rows())
        for row, expected in zip(found, self.rows(), strict=True):
            n = len(expected["tokens"])
            assert row.tokens.tolist() == expected["tokens"]
            assert row.loss_mask.tolist() == [self.trained <= t < n - 1 for t in range(n)]
            assert row.ids.tolist() == [i for ids in expected["ids"][self.trained : n - 1] for i in ids]
            logprobs = [p for logprobs in expected["logprobs"][self.trained : n - 1] for p in logprobs]
            np.testing.assert_allclose(row.logprobs, logprobs, rtol=0, atol=self.tolerance)

    def test_the_tail_is_that_of_the_format_or_as_given(self, tmp_path: Path) -> None:
        info = self.source(tmp_path).info
        assert info.tail_given if self.tail is None else info.tail == self.tail
        if self.tail is not None:
            assert self.source(tmp_path, tail="unknown").info.tail == "unknown"

    def test_a_survey_counts_all_rows_and_depends_on_them_alone(self, tmp_path: Path) -> None:
        surveys = [self.source(tmp_path).survey(self.settings(tmp_path)) for _ in range(2)]
        assert surveys[0].fingerprint == surveys[1].fingerprint
        assert surveys[0].sizes.tolist() == [len(row["tokens"]) for row in self.rows()]
        assert surveys[0].n_positions == sum(len(row["tokens"]) - 1 - self.trained for row in self.rows())

    def test_a_broken_row_is_refused_by_file_and_number(self, tmp_path: Path) -> None:
        source = self.write(tmp_path, self.broken)
        with pytest.raises(ConfigError, match=r"(parquet|jsonl), row 2: "):
            open_source(self.settings(source), self.n_ids).survey(self.settings(source))

    def test_tokens_outside_the_vocabulary_are_refused(self, tmp_path: Path) -> None:
        source = self.write(tmp_path)
        with pytest.raises(ConfigError, match=r"row 1: .*outside the tokenizer's vocabulary of 2"):
            open_source(self.settings(source), 2).survey(self.settings(source))

    def test_options_of_other_formats_are_refused(self, tmp_path: Path) -> None:
        values: dict[FormatOption, Any] = {"codec": "codec.yaml", "align": "own", "columns": {"tokens": "x"}}
        assert set(values) == set(get_args(FormatOption))
        for option in set(values) - set(self.source(tmp_path).form.options):
            with pytest.raises(ConfigError, match=f"--{option} .* --from {self.name}"):
                self.source(tmp_path, **{option: values[option]})

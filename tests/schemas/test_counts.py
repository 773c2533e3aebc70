"""Counts in messages: the singular for one, the plural for any other number."""

import pytest

from kdpipe.schemas.counts import compact, counted


@pytest.mark.parametrize(("n", "text"), [(0, "0 parts"), (1, "1 part"), (2, "2 parts"), (1234, "1,234 parts")])
def test_a_count_is_singular_for_one_alone(n: int, text: str) -> None:
    assert counted(n, "part") == text


def test_a_plural_that_takes_no_s_is_given() -> None:
    assert [counted(n, "row is", "rows are") for n in (1, 2)] == ["1 row is", "2 rows are"]


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"),
        (896, "896"),
        (999, "999"),
        (1000, "1 k"),
        (12_345, "12.3 k"),
        (999_499, "999 k"),
        (999_500, "1 M"),
        (2_600_000, "2.6 M"),
        (1_234_000_000, "1.23 B"),
        (70_000_000_000, "70 B"),
    ],
)
def test_large_counts_have_three_digits_and_a_unit(n: int, text: str) -> None:
    assert compact(n) == text

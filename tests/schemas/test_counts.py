"""Counts in messages: the singular for one, the plural for any other number."""

import pytest

from kdpipe.schemas.counts import counted


@pytest.mark.parametrize(("n", "text"), [(0, "0 parts"), (1, "1 part"), (2, "2 parts"), (1234, "1,234 parts")])
def test_a_count_is_singular_for_one_alone(n: int, text: str) -> None:
    assert counted(n, "part") == text


def test_a_plural_that_takes_no_s_is_given() -> None:
    assert [counted(n, "row is", "rows are") for n in (1, 2)] == ["1 row is", "2 rows are"]

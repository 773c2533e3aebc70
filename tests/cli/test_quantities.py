"""Numbers as people say them, at the edges of their units."""

import pytest

from kdpipe.cli.quantities import duration, share, size


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"),
        (34_500_000, "34.5 MB"), (2.5e9, "2.5 GB"), (7e12, "7.0 TB"), (1.2e16, "12,000.0 TB"),
    ],
)  # fmt: skip
def test_a_size_has_a_decimal_unit(n_bytes: float, text: str) -> None:
    assert size(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (99.4, "99 s"), (99.6, "2 min"), (3569, "59 min"),
        (3571, "1 h"), (3900, "1 h 5 min"), (47 * 3600 + 1800, "47 h 30 min"), (48 * 3600, "2 days"),
        (51 * 3600, "2 days 3 h"), (71.9 * 3600, "3 days"),
    ],
)  # fmt: skip
def test_a_duration_is_shown_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_share_is_shown_in_percent() -> None:
    assert (share(0.0), share(0.914), share(1.0)) == ("0%", "91%", "100%")

"""Sizes as people write them."""

import pytest
from pydantic import TypeAdapter, ValidationError

from kdpipe.schemas.sizes import Size

READ = TypeAdapter(Size)


@pytest.mark.parametrize(
    ("written", "n_bytes"),
    [("500", 500), (500, 500), ("20GB", 20 * 10**9), ("1.5 TiB", 3 * 2**39), ("7kb", 7000), (" 2 MB ", 2_000_000)],
)
def test_a_size_is_read_with_its_unit(written: str | int, n_bytes: int) -> None:
    assert READ.validate_python(written) == n_bytes


@pytest.mark.parametrize("written", ["20 gigs", "", "GB", "-1GB", "0", "1e9", 0])
def test_what_is_no_size_is_refused(written: str | int) -> None:
    with pytest.raises(ValidationError):
        READ.validate_python(written)

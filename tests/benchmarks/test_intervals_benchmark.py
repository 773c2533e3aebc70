"""The benchmark of `compare`'s intervals runs in its small version and prints its keys."""

import json

from support.scripts import check_script


def test_coverage_is_over_documents_and_over_sequences() -> None:
    table = json.loads(check_script("intervals", "--tries", "20").out)["coverage"]
    assert len({(row["documents"], row["log_spread"], row["correlation"]) for row in table}) == len(table) == 30
    assert all(0 <= row["over_sequences"] <= 1 and 0 <= row["over_documents"] <= 1 for row in table)

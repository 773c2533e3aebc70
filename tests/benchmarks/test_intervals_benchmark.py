"""The benchmark of `compare`'s intervals runs, small, for its keys and not for its figures."""

import json
import subprocess
import sys

from support.source import ROOT


def test_the_table_has_both_ways_of_counting() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "intervals.py"), "--tries", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    table = json.loads(done.stdout)["coverage"]
    assert len({(row["documents"], row["log_spread"], row["correlation"]) for row in table}) == len(table) == 30
    assert all(0 <= row["over_sequences"] <= 1 and 0 <= row["over_documents"] <= 1 for row in table)

"""Measures of documents where positions are missing, or say minus infinity."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.cache.reshape import measures
from kdpipe.cache.reshape.measures import measured
from support.tiny import make_cache


def test_what_a_position_does_not_tell_does_not_count_and_minus_infinity_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cache(tmp_path / "a")
    cache = open_cache(tmp_path / "a")
    part = cache.part(0)
    values = np.arange(part.record.n_rows, dtype=np.float64)
    rows = part.rows(0, len(part.sequences))
    firsts = [*rows.document_starts.tolist(), len(rows)]
    trained = [[t for t in range(a, b) if rows.loss_mask[t]] for a, b in itertools.pairwise(firsts)]
    long = [i for i, positions in enumerate(trained) if len(positions) > 2]
    values[trained[long[0]][1]], values[trained[long[1]][0]] = np.nan, -np.inf
    monkeypatch.setattr(measures, "_likelihood", lambda part, manifest: values)
    due = []
    for positions in trained:
        reported = [float(values[t]) for t in positions if not math.isnan(values[t])]
        due.append(sum(reported) / len(reported) if reported else math.nan)
    found = measured("likelihood", part, cache.manifest)
    assert due[long[1]] == -math.inf
    assert found.tolist() == pytest.approx(due, nan_ok=True)


def test_a_document_without_a_trained_position_has_no_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cache(tmp_path / "a")
    cache = open_cache(tmp_path / "a")
    part = cache.part(0)
    monkeypatch.setattr(measures, "_likelihood", lambda part, manifest: np.full(part.record.n_rows, np.nan))
    assert np.isnan(measured("likelihood", part, cache.manifest)).all()

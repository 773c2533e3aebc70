"""Nothing here is about power cuts, and a small cache is hundreds of syncs: they are left out."""

import os

import pytest


@pytest.fixture(autouse=True)
def _no_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)

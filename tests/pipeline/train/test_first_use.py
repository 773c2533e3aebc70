"""A run verifies its cache before its first use, and refuses a damaged copy before it creates a folder."""

from pathlib import Path

import pytest

from kdpipe.cache import layout
from kdpipe.pipeline.training import completed_run
from kdpipe.schemas.errors import CacheDamaged
from support.recording import RecordingProgress
from support.stage_two import make_cache, run, settings_for
from support.tiny import copy_cache, flip_bit

CHECKED = "before its first use on this machine"
SMALL = {"run": {"max_steps": 1}, "evaluation": {"every": 1, "limit": 1}}


@pytest.mark.slow
def test_a_copied_cache_is_verified_by_the_first_run_only(folder: Path) -> None:
    copy_cache(folder / "cache", folder / "copied")
    heard = [RecordingProgress(), RecordingProgress()]
    for number, progress in enumerate(heard):
        run(settings_for(folder, f"moved-{number}", kept="copied", **SMALL), progress)
    assert [sum(CHECKED in line for line in progress.messages) for progress in heard] == [1, 0]


@pytest.mark.slow
def test_a_cache_made_on_this_machine_is_not_verified_again(folder: Path) -> None:
    make_cache(folder, "own")  # links to the files of the one that all tests share would count as changes
    progress = RecordingProgress()
    run(settings_for(folder, "at-home", kept="own", **SMALL), progress)
    assert not [line for line in progress.messages if CHECKED in line]


def test_a_damaged_copy_is_refused_before_a_run_is_created(folder: Path) -> None:
    copy = copy_cache(folder / "cache", folder / "torn")
    flip_bit(copy / "parts" / "00000" / layout.array_shard("id"), 5)
    with pytest.raises(CacheDamaged, match="torn is damaged: parts/00000/targets") as raised:
        run(settings_for(folder, "never", kept="torn", **SMALL))
    assert raised.value.exit_code == 3
    assert "--repair-from SRC" in str(raised.value.hint)
    assert not (folder / "never").exists()


def test_a_run_resumes_with_another_verify_setting(folder: Path) -> None:
    run(settings_for(folder, "verified", **SMALL))
    (folder / "verified" / completed_run.RECORD).unlink()  # as if stopped just before its end
    heard = RecordingProgress()
    settings = settings_for(folder, "verified", cache={"path": str(folder / "cache"), "verify": "always"}, **SMALL)
    run(settings, heard)
    assert [line for line in heard.messages if CHECKED in line]

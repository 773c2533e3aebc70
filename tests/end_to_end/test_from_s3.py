"""A cache made in a bucket by two workers, copied, verified, trained from there and from here: the same, to the bit."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import s3fs

from kdpipe.cache import open_cache
from kdpipe.cli import main
from kdpipe.schemas.errors import ConfigError, Incompatible
from support import stage_one
from support.s3 import KEY, SECRET, s3_server
from support.stage_two import losses, run, settings_for, weights

pytestmark = pytest.mark.slow
BUCKET = "s3://teachers/cache"


WORKER = """
import sys
from kdpipe.cli.main import main
sys.argv[0] = "kdpipe"
raise SystemExit(main())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A teacher, its cache in a bucket, made there by two workers at once, and a copy of that."""
    path = tmp_path_factory.mktemp("from-s3")
    stage_one.make_inputs(path, n_documents=60)
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        fsspec.filesystem("s3").mkdir("teachers")
        words = [
            *(sys.executable, "-c", WORKER, "cache-teacher", "--teacher", str(path / "teacher")),
            *("--data", str(path / "corpus.jsonl"), "--out", BUCKET, "--seq-len", "96", "--val-fraction", "0.2"),
            *("--devices", "cpu", "--set", "sequences.part_rows=512", "--set", "machine.threads=1"),
        ]
        workers = [
            subprocess.Popen([*words, "--shard", f"{number}/2"], stderr=subprocess.PIPE, text=True)
            for number in range(2)
        ]
        reported = [worker.communicate(timeout=900)[1] for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0], "\n".join(reported)
        assert main.run(["cache", "copy", BUCKET, str(path / "cache")]) == 0
        yield path
        s3fs.S3FileSystem.clear_instance_cache()


def test_the_copy_matches_the_teacher(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["cache", "verify", str(folder / "cache"), "--against", str(folder / "teacher")]) == 0
    assert main.run(["cache", "verify", BUCKET, "--level", "full"]) == 0
    assert open_cache(BUCKET).cache_id == open_cache(folder / "cache").cache_id


def test_losses_and_weights_are_those_of_the_folder(folder: Path) -> None:
    cache = open_cache(folder / "cache")
    largest = max(row.n_bytes for row in cache.parts)
    assert len(cache.parts) > 2
    near = {"path": BUCKET, "dir": str(folder / "near"), "limit": 2 * largest, "pin": cache.cache_id}
    run(settings_for(folder, "local"))
    run(settings_for(folder, "remote", cache=near))
    assert losses(folder / "remote") == losses(folder / "local")
    for name, value in weights(folder / "local").items():
        assert value.equal(weights(folder / "remote")[name]), name
    there = [file for file in (folder / "near").rglob("*") if file.is_file() and "parts" in file.parts]
    assert 0 < sum(file.stat().st_size for file in there) <= 2 * largest
    reported = "".join(
        file.read_text(errors="replace") for file in (folder / "remote").rglob("*") if file.suffix in TEXTS
    )
    assert SECRET not in reported and KEY not in reported
    assert json.loads((folder / "remote" / "run.json").read_text())["settings"]["cache"]["path"] == BUCKET


TEXTS = (".json", ".jsonl", ".yaml", ".md")


def test_a_cache_that_was_not_pinned_is_refused(folder: Path) -> None:
    cache = {"path": str(folder / "cache"), "pin": "0" * 16}
    with pytest.raises(Incompatible, match="0000000000000000") as caught:
        run(settings_for(folder, "unpinned", cache=cache))
    assert caught.value.exit_code == 4
    with pytest.raises(ConfigError, match=r"cache\.limit applies to remote caches only"):
        run(settings_for(folder, "limited", cache={"limit": "20GB"}))

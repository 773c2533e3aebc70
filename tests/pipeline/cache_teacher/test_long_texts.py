"""A cache of one long text: validation by ranges, the same from one worker, two, or after an interrupt."""

from pathlib import Path

import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.pipeline.verify_against import verify_against
from kdpipe.schemas.choices import SplitName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.progress import SilentProgress, TaskUpdate
from support.corpora import TEXTS
from support.reshaped import problems_in
from support.stage_one import RecordingProgress, make_inputs, run, settings_for
from support.tiny import digests_of

pytestmark = pytest.mark.usefixtures("hurried")

SPLITS: tuple[SplitName, ...] = ("train", "validation")
BOOK = "\n\n".join(TEXTS[:60])
PARTS = {"part_rows": 512}


class Impatient(RecordingProgress):
    """One that stops the command when so many parts are made."""

    def __init__(self, n_parts: int) -> None:
        super().__init__()
        self._n_parts = n_parts

    def update(self, update: TaskUpdate) -> None:
        super().update(update)
        if update.facts["parts"] == self._n_parts:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a book, and `whole`, its cache."""
    path = tmp_path_factory.mktemp("book")
    make_inputs(path, 1)
    (path / "book.txt").write_text(BOOK, encoding="utf-8")
    run(settings_for(path, "whole", data=data(path), sequences=PARTS))
    return path


def documents(path: Path, split: SplitName) -> set[int]:
    """The numbers of the documents of a split."""
    cache = open_cache(path, split)
    return {int(number) for i in range(len(cache)) for number in cache[i].documents}


def data(folder: Path) -> dict[str, object]:
    return {"path": str(folder / "book.txt"), "val_fraction": 0.1}


def test_a_cache_of_one_text_has_a_validation_split_that_is_reported_and_recorded(folder: Path, tmp_path: Path) -> None:
    progress = RecordingProgress()
    settings = settings_for(folder, "again", data=data(folder), sequences=PARTS)
    run(settings, progress, dry_run=True)
    cache = open_cache(folder / "whole")
    n = {split.name: split.bounds[-1] for split in cache.manifest.plan.splits}
    assert n == {"train": 4, "validation": 3}
    assert cache.manifest.data.source == "book.txt (1 document in 7 ranges)"
    assert "data       book.txt (1 document in 7 ranges): 4 of train and 3 of validation" in progress.messages
    assert any(line.startswith("ranges     1 long text cut") for line in progress.messages)
    held_out, trained = (sum(map(len, open_cache(folder / "whole", split))) for split in ("validation", "train"))
    assert held_out / (held_out + trained) == pytest.approx(0.1, abs=0.03)
    assert problems_in(folder / "whole") == []


def test_the_cache_agrees_with_its_teacher(folder: Path) -> None:
    report = verify_against(str(folder / "whole"), str(folder / "teacher"), 7, SilentProgress())
    assert report.ok and report.documents == 7


@pytest.mark.slow
def test_after_an_interrupt_another_worker_ends_with_the_same_cache(folder: Path) -> None:
    settings = settings_for(folder, "shared", data=data(folder), sequences=PARTS)
    with pytest.raises(KeyboardInterrupt):
        run(settings, Impatient(2), shard=1, n_shards=2)
    report = run(settings, shard=0, n_shards=2)
    assert 0 < report.parts.made < report.parts.planned
    assert report.cache_id == open_cache(folder / "whole").cache_id
    shared, whole = (
        {name: digest for name, digest in digests_of(folder / out).items() if name.startswith("parts/")}
        for out in ("shared", "whole")
    )
    assert shared == whole


@pytest.mark.slow
def test_a_text_that_the_extended_cache_has_is_known_and_another_adds_to_both_splits(folder: Path) -> None:
    both = folder / "both"
    both.mkdir()
    (both / "a.txt").write_text(BOOK, encoding="utf-8")
    (both / "b.txt").write_text("\n\n".join(TEXTS[60:120]), encoding="utf-8")
    settings = settings_for(folder, "longer", data=data(folder) | {"path": str(both)}, sequences=PARTS)
    report = run(settings.model_copy(update={"extend": str(folder / "whole")}))
    assert report.known_documents == 7
    for split in SPLITS:
        old, new = (documents(folder / out, split) for out in ("whole", "longer"))
        assert old < new
    assert problems_in(folder / "longer") == []


def test_another_share_is_another_data_set_in_the_same_folder(folder: Path) -> None:
    changed = data(folder) | {"val_fraction": 0.2}
    with pytest.raises(ConfigError):
        run(settings_for(folder, "whole", data=changed, sequences=PARTS))

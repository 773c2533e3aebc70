"""Transfer benchmarks: local copies, copies from S3, training from S3, file sizes.

In: nothing; synthetic caches are made in a folder, the S3 server is moto's on loopback, in its own process. Out: one
JSON document, on stderr the same as text. `--quick` runs a small version, for tests. Pairs run in alternating order,
and ratios are medians of pairs.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
from measure import machine, rounded
from stage_two_inputs import Case, make_cache, settings_for

from kdpipe.cache import layout, open_cache
from kdpipe.cache.mirror.mirror import MirrorStore, mirrored_store
from kdpipe.cache.opening import create_cache, reopen
from kdpipe.cache.parts.part_files import read_part_record
from kdpipe.cache.reader import Cache, ReaderOptions
from kdpipe.cache.reshape.adopt import adopt_part, with_changes
from kdpipe.cache.stores.addresses import MirrorSettings
from kdpipe.cache.stores.dispatch import open_store
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.transfer import copy_cache
from kdpipe.cache.verify import verify_cache
from kdpipe.pipeline.documents.part_plan import rows_per_part
from kdpipe.pipeline.train import train
from kdpipe.schemas.cache_plan import SplitPlan
from kdpipe.schemas.manifest import FileRecord
from kdpipe.schemas.progress import SilentProgress
from kdpipe.schemas.train_settings import TrainOptions

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.s3 import s3_server
from support.synthetic import Recipe, synthetic_manifest, synthetic_part, synthetic_tables
from support.web import Site, serving

TARGETS = {
    "local_over_cp_and_sha256sum": 0.5,
    "s3_over_plain_download": 0.8,
    "verify_by_url_over_copy": 1.0,
    "training_from_s3_over_local": 0.95,
    "bytes_in_files_of_16_MB_from_20_million_positions": 0.9,
    "files_per_part": 16,
}
LARGE_FILE = 16_000_000
# Latency of a request to a web server.
REQUEST_SECONDS = 0.02
MANY_ROWS = 20_000_000
MIRRORED_PARTS = 2
# Tokens per document of a synthetic cache; they have up to 500.
ROWS_PER_DOCUMENT = 308

STUDENT = Case(vocabulary=4_096, preset="tiny", batch=8, length=256, sequences=512, threads=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes of the measurements."""

    documents_per_part: int = 2_000
    document_tokens: int = 500
    parts: int = 16
    many_parts: int = 130
    rounds: int = 5
    case: Case = STUDENT
    steps: int = 60


QUICK = Scale(
    documents_per_part=10,
    document_tokens=100,
    parts=4,
    many_parts=4,
    rounds=1,
    case=Case(vocabulary=1_000, preset="tiny", batch=2, length=64, sequences=32, threads=1),
    steps=3,
)


class Bench:
    """The measurements."""

    def __init__(self, scale: Scale, work: Path) -> None:
        self.scale, self.work = scale, work
        self._cache = work / "cache"

    def local(self) -> dict[str, Any]:
        """A copy with every byte checked and synced, against cp -r and sha256sum of the same files."""
        cache, n_bytes = self._made(), self._bytes()
        target = self.work / "copy"

        def plain() -> None:
            subprocess.run(["cp", "-r", str(cache), str(target)], check=True)
            listing = subprocess.run(["find", str(target), "-type", "f", "-print0"], check=True, capture_output=True)
            subprocess.run(["xargs", "-0", "sha256sum"], input=listing.stdout, check=True, stdout=subprocess.DEVNULL)

        return self._compare(plain, lambda: copy_cache(cache, target), target, n_bytes)

    def s3(self) -> dict[str, Any]:
        """A copy from a bucket, against s3fs downloading the same objects with its default concurrency."""
        cache, target = self._made(), self.work / "copy"
        system = fsspec.filesystem("s3", use_listings_cache=False)
        if not system.exists("transfer"):
            system.mkdir("transfer")
        copy_cache(cache, "s3://transfer/cache")

        def plain() -> None:
            system.get("transfer/cache", str(target), recursive=True)

        return self._compare(plain, lambda: copy_cache("s3://transfer/cache", target), target, self._bytes())

    def verify(self) -> dict[str, Any]:
        """A verification by URL against a copy, with many small parts and a latency per request."""
        first, cache, target = self.work / "small", self.work / "many", self.work / "copy"
        if not cache.exists():
            recipe = Recipe(documents={"train": 10}, documents_per_part=10, document_tokens=100, hidden=False)
            _make(first, recipe)
            _repeat(first, cache, self.scale.many_parts)
        copied, verified = Site(cache, seconds=REQUEST_SECONDS), Site(cache, seconds=REQUEST_SECONDS)
        n_bytes = sum(row.n_bytes for row in open_cache(cache).parts)
        with serving(copied) as one, serving(verified) as other:
            result = self._compare(lambda: copy_cache(one, target), lambda: verify_cache(other), target, n_bytes)
        requests = [site.n_requests / self.scale.rounds for site in (copied, verified)]
        return result | {"parts": self.scale.many_parts, "requests": requests}

    def mirror(self) -> dict[str, Any]:
        """CPU seconds of the first reading of a mirrored cache, without and with a check of every mirrored byte."""
        self._made()
        cache, folder = self.work / "few", self.work / "mirror"
        if not cache.exists():
            _repeat(self.work / "first", cache, MIRRORED_PARTS)
        mirror = MirrorSettings(folder=folder, limit=1 << 40)
        with serving(Site(cache)) as url:
            for number in range(MIRRORED_PARTS):
                mirrored_store(url, mirror).hold(number).release()

            def seconds(checked: bool) -> float:
                store = MirrorStore(open_store(url), mirror, RetryPolicy())
                if not checked:
                    store._checked.update(range(MIRRORED_PARTS))
                start = time.process_time()
                for _ in Cache(store, None, ReaderOptions(False, 2, mirror), reopen, store).scan():
                    pass
                return time.process_time() - start

            seconds(True)  # files into memory
            pairs = [_in_turns((False, True), seconds, number) for number in range(self.scale.rounds)]
        ratio = statistics.median(checked / trusted for trusted, checked in pairs)
        n_bytes = sum(row.n_bytes for row in open_cache(cache).parts)
        return {"bytes": n_bytes, "seconds": pairs, "ratio": ratio}

    def training(self) -> dict[str, Any]:
        """Positions per second of a run from a bucket with all parts mirrored, over those of a local run."""
        case = self.scale.case
        local = make_cache(self.work, case)
        system = fsspec.filesystem("s3", use_listings_cache=False)
        if not system.exists("training"):
            system.mkdir("training")
        copy_cache(local, "s3://training/cache")
        self._rate("s3://training/cache")
        places = (str(local), "s3://training/cache")
        pairs = [_in_turns(places, self._rate, number) for number in range(self.scale.rounds)]
        return {"positions_per_second": pairs, "ratio": statistics.median(far / near for near, far in pairs)}

    def _rate(self, cache: str) -> float:
        out = self.work / "run"
        shutil.rmtree(out, ignore_errors=True)
        n = self.scale.steps
        settings = settings_for(
            self.scale.case, Path("cache"), out, run={"max_steps": n}, evaluation={"every": n}, saving={"every": n}
        )
        near = {"dir": str(self.work / "near")} if "://" in cache else {}
        settings = settings.model_validate(settings.model_dump() | {"cache": {"path": cache, **near}})
        report = train(settings, TrainOptions(), SilentProgress())
        assert report.positions_per_second is not None
        return report.positions_per_second

    def files(self) -> dict[str, Any]:
        """The files of a part of the default size in a cache of 20 million positions."""
        rows = int(rows_per_part(MANY_ROWS)) if self.scale.rounds > 1 else 20_000
        n = round(rows / ROWS_PER_DOCUMENT)
        recipe = Recipe(documents={"train": n}, documents_per_part=n, document_tokens=500, hidden=False)
        folder = self.work / "one-part"
        if not folder.exists():
            _make(folder, recipe)
        sizes = sorted(file.stat().st_size for file in (folder / "parts/00000").rglob("*") if file.is_file())
        large = sum(size for size in sizes if size >= LARGE_FILE)
        (part,) = open_cache(folder).parts
        return {"rows": part.n_rows, "files": len(sizes), "bytes": sum(sizes), "share_in_large": large / sum(sizes)}

    def _made(self) -> Path:
        scale = self.scale
        if not self._cache.exists():
            recipe = Recipe(
                documents={"train": scale.documents_per_part},
                documents_per_part=scale.documents_per_part,
                document_tokens=scale.document_tokens,
                hidden=False,
            )
            _make(self.work / "first", recipe)
            _repeat(self.work / "first", self._cache, scale.parts)
        return self._cache

    def _bytes(self) -> int:
        return sum(row.n_bytes for row in open_cache(self._cache).parts)

    def _compare(
        self, plain: Callable[[], object], ours: Callable[[], object], target: Path, n_bytes: int
    ) -> dict[str, Any]:
        """Both alternating, into an empty folder each time; the ratio is of rates, so above 1 is faster than the
        baseline.
        """

        def seconds(work: Callable[[], object]) -> float:
            shutil.rmtree(target, ignore_errors=True)
            os.sync()
            start = time.perf_counter()
            work()
            return time.perf_counter() - start

        pairs = [_in_turns((plain, ours), seconds, number) for number in range(self.scale.rounds)]
        shutil.rmtree(target, ignore_errors=True)
        return {"bytes": n_bytes, "seconds": pairs, "ratio": statistics.median(one / other for one, other in pairs)}


def _make(folder: Path, recipe: Recipe) -> None:
    manifest = synthetic_manifest(recipe)
    writer = create_cache(folder, manifest)
    writer.publish_tables(synthetic_tables(recipe))
    for number in range(manifest.plan.n_parts):
        with writer.part(number) as part:
            for sequence, block in synthetic_part(recipe, manifest, number):
                part.add(sequence, block)
    writer.seal()


def _in_turns(both: tuple[Any, Any], measured: Callable[[Any], float], number: int) -> tuple[float, float]:
    """Measurements of both; every other time the second runs first."""
    if number % 2:
        other = measured(both[1])
        return measured(both[0]), other
    return measured(both[0]), measured(both[1])


def _repeat(first: Path, folder: Path, n_parts: int) -> None:
    """A cache whose parts are copies of one, which is faster to make and as slow to copy."""
    manifest, store = open_cache(first).manifest, LocalStore(first)
    (split,) = manifest.plan.splits
    plan = manifest.plan.model_copy(
        update={"splits": (SplitPlan(name=split.name, bounds=tuple(split.bounds[1] * n for n in range(n_parts + 1))),)}
    )
    record, _ = read_part_record(store, manifest, 0, None)

    def copied(name: str, file: FileRecord, target: Path) -> None:
        shutil.copyfile(first / layout.part_dir(0) / name, target)

    writer = create_cache(folder, with_changes(manifest, plan=plan))
    writer.publish_tables({table.name: open_cache(first).table(table.name) for table in manifest.tables})
    for number in range(n_parts):
        adopt_part(writer, number, manifest, record, copied)
    writer.seal()


def main() -> None:
    """Run the measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help="Measurements: local, s3, verify, mirror, training, files [all]")
    parser.add_argument("--quick", action="store_true", help="Small, for tests only")
    parser.add_argument("--rounds", type=int, help="Repetitions")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else Scale()
    scale = replace(scale, rounds=arguments.rounds or scale.rounds)
    names = ("local", "s3", "verify", "mirror", "training", "files")
    if odd := set(arguments.what) - set(names):
        parser.error(f"unknown measurement {', '.join(sorted(odd))}; available: {', '.join(names)}")
    result: dict[str, Any] = {"machine": machine(), "target": TARGETS}
    with tempfile.TemporaryDirectory(prefix="kdpipe-bench-") as folder, s3_server() as environment:
        os.environ.update(environment)
        bench = Bench(scale, Path(folder))
        for name in names:
            if not arguments.what or name in arguments.what:
                result[name] = getattr(bench, name)()
                print(f"{name}: {json.dumps(rounded(result[name]))}", file=sys.stderr, flush=True)
    print(json.dumps(rounded(result), indent=2))


if __name__ == "__main__":
    main()

"""Digests of the contents of caches and students, to show that a refactoring changed no number.

In: a folder. Out: a JSON document with a digest for each of 12 caches (tokens, ids, log probabilities, weights,
scalars, states) and 6 students (tensors, losses), without names of keys and files. `--compare BEFORE` lists
differences to an earlier document and exits with 1. Digests depend on machine and torch: run the old and the new commit
on the same.
"""

import argparse
import contextlib
import hashlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measure import machine
from safetensors.numpy import load_file
from stage_one_inputs import texts, trained_teacher

from kdpipe.cache import open_cache
from kdpipe.cli.main import run
from kdpipe.pipeline.small_teacher import TeacherSizes, write_corpus

TEACHER = TeacherSizes(vocabulary=512, width=64, layers=4, context=128, batch=8, steps=60)
TEXTS, IMPORTED, TOP_K = 60, 24, 8
STEPS = "24"
# The options of `cache-teacher` for each cache.
MADE: dict[str, tuple[str, ...]] = {
    "threshold": (),
    "threshold at 2": ("--target-temperature", "2", "--temperatures", "2,4"),
    "sampled": ("--targets", "sampled", "--draws", "20", "--temperatures", "4"),
    "topk": ("--targets", "topk", "--top-k", "24"),
    "topp": ("--targets", "topp", "--top-p", "0.8", "--no-pack"),
    "state": ("--targets", "state"),
    "none": ("--targets", "none", "--hidden-layers", "none"),
    "hidden": ("--hidden-layers", "0.5,1.0", "--hidden-dim", "16", "--temperatures", "2"),
    "for other tokenizers": ("--for-other-tokenizers", "--profile", "lean"),
}
COMMON = ("--seq-len", "128", "--val-fraction", "0.1", "--set", "sequences.part_rows=2048")
ONE_THREAD = ("--set", "machine.threads=1")
# The cache of each student, and the options of `train`; `{student}` is the folder of the first one.
TRAINED: dict[str, tuple[str, tuple[str, ...]]] = {
    "adamw": ("threshold", ("--optimizer", "adamw")),
    "muon": ("threshold", ("--optimizer", "muon")),
    "lora": ("threshold", ("--student", "{student}", "--lora")),
    "hidden losses": ("hidden", ("--set", "losses.weights.cosine=0.5", "--set", "losses.weights.cka=0.1")),
    "curriculum": ("hidden", ("--config", "examples/curriculum.yaml")),
    "fp16-pure": ("state", ("--precision", "fp16-pure", "--guard", "fp16-safe")),
}
RUN = ("--batch-size", "4", "--set", "machine.device=cpu")


def main() -> None:
    """Make missing caches and students, print their digests, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="Folder for the teacher, caches and runs")
    parser.add_argument(
        "--compare", type=Path, metavar="BEFORE", help="An earlier document of this script to compare with"
    )
    parser.add_argument("--only", nargs="*", metavar="NAME", help="Only these caches and students")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine(), "digests": dict(digests(given.work, given.only))}
    print(json.dumps(document, indent=1))
    if given.compare:
        before = json.loads(given.compare.read_text("utf-8"))["digests"]
        differing = [name for name, digest in document["digests"].items() if before.get(name) != digest]
        print_progress(
            f"{len(document['digests']) - len(differing)} equal, {len(differing)} differ: {', '.join(differing) or '-'}"
        )
        sys.exit(1 if differing else 0)


def digests(work: Path, only: list[str] | None) -> Iterator[tuple[str, str]]:
    """The digest of each cache and student, by name."""
    caches = Caches(work)
    for name in (*MADE, "imported", "merged", "requantized"):
        if not only or name in only:
            yield f"cache: {name}", of_cache(caches.path(name))
    for name, (cache, options) in TRAINED.items():
        if not only or name in only:
            yield f"student: {name}", of_run(trained(work, caches, name, cache, options))


class Caches:
    """The caches in a folder, made on first use."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._teacher, _ = trained_teacher(work, TEACHER, None, print_progress, quick=True)
        self._data = [work / f"data-{i}.jsonl" for i in range(2)]
        for i, path in enumerate(self._data):
            write_corpus(path, texts()[i * TEXTS : (i + 1) * TEXTS])

    def path(self, name: str) -> Path:
        """The folder of a finished cache."""
        path = self._work / name.replace(" ", "-")
        if not (path / "index.parquet").is_file():
            print_progress(f"cache: {name}")
            self._make(name, path)
        return path

    def _make(self, name: str, path: Path) -> None:
        if name == "imported":
            rows = self._work / "imported.jsonl"
            write_top_k(self.path("topk"), rows)
            command("cache", "import", "--from", "topk", rows, "--tokenizer", self._teacher, "--out", path)
        elif name == "merged":
            command("cache", "merge", self.path("threshold"), self._cached("other documents", 1, ()), "--out", path)
        elif name == "requantized":
            command("cache", "requantize", self.path("threshold"), "--profile", "lean", "--out", path)
        else:
            self._cached(name, 0, MADE[name])

    def _cached(self, name: str, data: int, options: tuple[str, ...]) -> Path:
        path = self._work / name.replace(" ", "-")
        places = ("--teacher", self._teacher, "--data", self._data[data], "--out", path)
        command("cache-teacher", *places, *COMMON, *ONE_THREAD, *options)
        return path


def write_top_k(cache: Path, out: Path) -> None:
    """Write the first sequences of a cache as lists of ids and log-probabilities for `cache import`."""
    opened = open_cache(cache)
    with out.open("w", encoding="utf-8") as file:
        for i in range(IMPORTED):
            rows = opened[i]
            ends = np.cumsum(rows.count)
            places = [
                slice(int(end - n), int(end - n + min(n, TOP_K))) for end, n in zip(ends, rows.count, strict=True)
            ]
            line = {
                "tokens": rows.tokens.tolist(),
                "ids": [rows.ids[place].tolist() for place in places],
                "logprobs": [rows.logprobs[place].tolist() for place in places],
                "loss_mask": [bool(n) for n in rows.count],
            }
            file.write(json.dumps(line) + "\n")


def trained(work: Path, caches: Caches, name: str, cache: str, options: tuple[str, ...]) -> Path:
    """The folder of a finished run."""
    out = work / "runs" / name.replace(" ", "-")
    if not (out / "final").is_dir():
        print_progress(f"student: {name}")
        first = work / "runs" / "adamw" / "final"
        if "{student}" in options and not first.is_dir():
            trained(work, caches, "adamw", *TRAINED["adamw"])
        words = [word.format(student=first) for word in options]
        words += () if "--student" in words else ("--student", "tiny")
        words += () if "--config" in words else ("--max-steps", STEPS)
        command("train", "--from-cache", caches.path(cache), "--out", out, *RUN, *ONE_THREAD, *words)
    return out


def of_cache(path: Path) -> str:
    """The digest of all numbers of a cache."""
    digest = hashlib.sha256()
    cache = open_cache(path)
    digest.update(f"{len(cache)} {cache.n_positions} {cache.sequences_by_part}".encode())
    for i in range(len(cache)):
        rows = cache[i]
        arrays = [rows.tokens, rows.loss_mask, rows.document_starts, rows.documents, rows.count, rows.n_exact]
        arrays += [rows.ids, rows.logprobs, rows.weights, rows.log_tail, rows.entropy, rows.label_logprob]
        arrays += [rows.boundary_logprob, rows.times, rows.state]
        arrays += [*rows.log_z.values(), *rows.hidden.values(), *cache.pooled(i).values()]
        for array in arrays:
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def of_run(out: Path) -> str:
    """The digest of a student's tensors and of its loss at every step."""
    digest = hashlib.sha256()
    for path in sorted((out / "final").glob("*.safetensors")):
        for name, tensor in sorted(load_file(path).items()):
            digest.update(name.encode() + np.ascontiguousarray(tensor).tobytes())
    for line in (out / "metrics.jsonl").read_text("utf-8").splitlines():
        loss = json.loads(line).get("loss", math.nan)
        digest.update(repr(loss).encode())
    return digest.hexdigest()


def command(*words: Any) -> None:
    """Run a kdpipe command, which must succeed."""
    with contextlib.redirect_stdout(sys.stderr):
        code = run([str(word) for word in words])
    if code:
        raise SystemExit(f"kdpipe {words[0]} ended with exit code {code}")


def print_progress(text: str) -> None:
    """Write a line to stderr."""
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()

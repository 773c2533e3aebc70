"""Time and memory of output head and hybrid loss, compared with plain cross-entropy in transformers.

In: nothing; states, weights and targets are random. Out: one JSON document. `--quick` runs a small version, for tests;
`--chunk-mib` sets the chunk size.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import machine, rounded
from torch import Tensor, nn

from kdpipe.pipeline.batches.micro_batch import Targets
from kdpipe.pipeline.losses.head_chunks import HeadLosses
from kdpipe.pipeline.losses.terms import LogitTerm, LossOptions
from kdpipe.pipeline.models.head import Head

WIDTH, ROWS, KEPT, EXACT = 768, 4096, 15, 9
VOCABULARIES = (32_000, 152_000)


def random_targets(vocabulary: int, n_rows: int) -> Targets:
    """Random targets with as many ids per row as the standard profile."""
    ids_NK = torch.argsort(torch.rand(n_rows, 512), dim=1)[:, :KEPT] * (vocabulary // 512)
    weights_NK = torch.rand(n_rows, KEPT).softmax(dim=1)
    is_exact_K = torch.arange(KEPT) < EXACT
    tail_N = weights_NK[:, EXACT:].sum(dim=1)
    weights_NK[:, EXACT:] = tail_N[:, None] / (KEPT - EXACT)
    return Targets(
        ids_NK=ids_NK,
        weights_NK=weights_NK,
        logprobs_NK=weights_NK.log().where(is_exact_K, torch.tensor(-torch.inf)),
        count_N=torch.full((n_rows,), KEPT),
        n_exact_N=torch.full((n_rows,), EXACT),
        log_tail_N=tail_N.log(),
        entropy_N=torch.full((n_rows,), 2.5),
        log_z={2.0: torch.full((n_rows,), 2.0)},
    )


class Case:
    """The same rows and weights for both sides."""

    def __init__(self, vocabulary: int, width: int, n_rows: int, chunk_bytes: int | None, temperature: float) -> None:
        torch.manual_seed(0)
        self.states_NH = torch.randn(n_rows, width, requires_grad=True)
        self.module = nn.Linear(width, vocabulary, bias=False)
        self.labels_N = torch.randint(vocabulary, (n_rows,))
        self.targets = random_targets(vocabulary, n_rows)
        head = Head(module=self.module, vocabulary_size=vocabulary)
        self.losses = HeadLosses(head, LossOptions(), chunk_bytes=chunk_bytes)
        self.terms = (
            LogitTerm(name="ce", coefficient=0.1 / n_rows),
            LogitTerm(name="forward_kl", coefficient=0.9 * temperature**2 / n_rows, temperature=temperature),
        )

    def plain(self) -> Tensor:
        """All logits at once, in float32."""
        return nn.functional.cross_entropy(self.module(self.states_NH).float(), self.labels_N)

    def hybrid(self) -> Tensor:
        """Ours."""
        return self.losses(self.states_NH, self.labels_N, self.targets, self.terms).total

    def step(self, way: Callable[[], Tensor]) -> tuple[float, float]:
        """Wall-clock and CPU seconds of loss and gradients."""
        self.states_NH.grad = self.module.weight.grad = None
        wall, cpu = time.perf_counter(), time.process_time()
        way().backward()
        return time.perf_counter() - wall, time.process_time() - cpu


def timed(case: Case, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of alternating rounds, after one warm-up."""
    taken: dict[str, list[tuple[float, float]]] = {"plain": [], "hybrid": []}
    for number in range(rounds + 1):
        for name in ("plain", "hybrid") if number % 2 else ("hybrid", "plain"):
            spent = case.step(getattr(case, name))
            if number:
                taken[name].append(spent)
    results = {}
    for which, kind in enumerate(("wall", "cpu")):
        plain, hybrid = ([spent[which] for spent in taken[name]] for name in ("plain", "hybrid"))
        ratios = [ours / theirs for ours, theirs in zip(hybrid, plain, strict=True)]
        results[kind] = {
            "plain_seconds": statistics.median(plain),
            "hybrid_seconds": statistics.median(hybrid),
            "ratio": statistics.median(ratios),
            "lowest_ratio": min(ratios),
            "highest_ratio": max(ratios),
        }
    return results


def peak_bytes(case: Case, name: str) -> int:
    """Increase of peak memory by one step, gradients included."""
    scale = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    case.step(getattr(case, name))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * scale


def in_child(options: argparse.Namespace, vocabulary: int, way: str) -> int:
    """Peak memory of one side, in its own process."""
    arguments = [
        "--child",
        way,
        "--vocabulary",
        str(vocabulary),
        "--rows",
        str(options.rows),
        "--width",
        str(options.width),
    ]
    arguments += ["--chunk-mib", str(options.chunk_mib)] if options.chunk_mib else []
    command = [sys.executable, __file__, *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All vocabularies and numbers of threads."""
    results: dict[str, Any] = {}
    chunk_bytes = options.chunk_mib << 20 if options.chunk_mib else None
    for vocabulary in options.vocabulary or VOCABULARIES:
        case = Case(vocabulary, options.width, options.rows, chunk_bytes, options.temperature)
        of_threads = {}
        for threads in options.threads:
            torch.set_num_threads(threads)
            of_threads[str(threads)] = timed(case, options.rounds)
        memory = {way: in_child(options, vocabulary, way) for way in ("plain", "hybrid")} if options.memory else {}
        results[str(vocabulary)] = {"threads": of_threads, "added_bytes": memory}
    return results


def main() -> None:
    """Measure all cases and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabulary", type=int, nargs="*")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--chunk-mib", type=int)
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", choices=["plain", "hybrid"])
    options = parser.parse_args()
    if options.quick:
        options.vocabulary, options.width, options.rows, options.rounds = [1_024], 32, 64, 1
    if options.child:
        chunk_bytes = options.chunk_mib << 20 if options.chunk_mib else None
        case = Case(options.vocabulary[0], options.width, options.rows, chunk_bytes, options.temperature)
        print(peak_bytes(case, options.child))
    else:
        print(json.dumps(rounded({"machine": machine(), "by_vocabulary": measure(options)}), indent=1))


if __name__ == "__main__":
    main()

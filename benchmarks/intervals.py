"""Coverage of the 90 % intervals of `compare`, over documents and as if sequences were independent.

In: nothing; documents of unequal lengths with correlated sequences are simulated. Out: one JSON document, coverage by
number of documents, spread of lengths and correlation. docs/experiments.md#intervals-of-compare quotes it.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import rounded

from kdpipe.pipeline.evaluation.spread import paired

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.correlated_documents import MEAN, Corpus, Doubles, by_document, by_sequence

TRIES = 4_000


def coverage(corpus: Corpus, grouped: Callable[..., tuple[Doubles, Doubles]], tries: int, seed: int = 0) -> float:
    """The share of intervals that contain the true difference."""
    rng, held = np.random.default_rng(seed), 0
    for _ in range(tries):
        interval = paired(*grouped(*corpus.draw(rng)))
        assert interval.spread is not None
        held += abs(interval.value - MEAN) <= interval.spread
    return held / tries


def main() -> None:
    """Run the simulations and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=TRIES, help="Simulated evaluations per row [4000]")
    tries = parser.parse_args().tries
    rows = [
        Corpus(n_documents=n, log_spread=spread, correlation=correlation)
        for n in (5, 10, 20, 50, 166)
        for spread in (0.5, 1.0, 1.5)
        for correlation in (0.25, 0.5)
    ]
    table = [
        {
            "documents": corpus.n_documents,
            "log_spread": corpus.log_spread,
            "correlation": corpus.correlation,
            "over_documents": coverage(corpus, by_document, tries),
            "over_sequences": coverage(corpus, by_sequence, tries),
        }
        for corpus in rows
    ]
    print(json.dumps(rounded({"tries": tries, "coverage": table}), indent=1))


if __name__ == "__main__":
    main()

"""Documents of unequal lengths whose sequences are correlated, to measure how often an interval covers the truth.

In: how many documents, how unequal, how correlated. Out: the difference of two students summed by document, or by
sequence as if sequences were independent. The truth is known: `MEAN` nats per position.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MEAN = 0.3
SEQUENCE_POSITIONS = 256
# A document has some 8 sequences at the median, as 166 documents with 1,400 sequences had.
MEDIAN_SEQUENCES = 8.0
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """`log_spread` is the standard deviation of log length, `correlation` that of two sequences of one document."""

    n_documents: int
    log_spread: float = 1.0
    correlation: float = 0.5

    def draw(self, rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], Doubles]:
        """The document of each sequence, and the difference of two students summed over its positions."""
        lengths = rng.lognormal(math.log(MEDIAN_SEQUENCES), self.log_spread, self.n_documents)
        document_S = np.repeat(np.arange(self.n_documents), np.maximum(1, lengths).astype(np.int64))
        shared_S = rng.normal(0, math.sqrt(self.correlation), self.n_documents)[document_S]
        own_S = rng.normal(0, math.sqrt(1 - self.correlation), len(document_S))
        return document_S, SEQUENCE_POSITIONS * (MEAN + shared_S + own_S)


def by_document(document_S: npt.NDArray[np.int64], sums_S: Doubles) -> tuple[Doubles, Doubles]:
    """Sums and positions of each document."""
    counts = np.bincount(document_S)
    return np.bincount(document_S, weights=sums_S), counts * float(SEQUENCE_POSITIONS)


def by_sequence(document_S: npt.NDArray[np.int64], sums_S: Doubles) -> tuple[Doubles, Doubles]:
    """Sums and positions of each sequence, which takes them as independent."""
    return sums_S, np.full(len(document_S), float(SEQUENCE_POSITIONS))

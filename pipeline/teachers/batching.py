"""Which pieces the teacher reads together: those of similar length, so that little padding is read.

In: pieces, and how many tokens a batch may have, padding included. Out: numbers of pieces, batch by batch.
"""

from collections.abc import Sequence, Sized


def batches(pieces: Sequence[Sized], batch_tokens: int) -> list[list[int]]:
    """Group pieces, longest first and equal ones in their order: at most `batch_tokens` each, but never no piece.

    The longest go first so that what will not fit into memory is known at the start.
    """
    groups: list[list[int]] = []
    longest = 0
    for number in sorted(range(len(pieces)), key=lambda number: -len(pieces[number])):
        if groups and (len(groups[-1]) + 1) * longest <= batch_tokens:
            groups[-1].append(number)
        else:
            groups.append([number])
            longest = len(pieces[number])
    return groups

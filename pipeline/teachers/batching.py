"""Batches of segments of similar length, so that there is little padding.

In: segments, and the tokens of a batch, padding included. Out: segment numbers, batch by batch.
"""

from collections.abc import Sequence, Sized


def batches(segments: Sequence[Sized], batch_tokens: int) -> list[list[int]]:
    """Group segments, longest first and equal ones in their order: at most `batch_tokens` each, and at least one
    segment.

    The longest go first, so that a batch that does not fit into memory is found at the start.
    """
    groups: list[list[int]] = []
    longest = 0
    for number in sorted(range(len(segments)), key=lambda number: -len(segments[number])):
        if groups and (len(groups[-1]) + 1) * longest <= batch_tokens:
            groups[-1].append(number)
        else:
            groups.append([number])
            longest = len(segments[number])
    return groups

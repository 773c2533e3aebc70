"""Documents packed into sequences: best fit over a few open ones, in an order that depends on their lengths alone.

In: how many tokens each document of a part has. Out: which of them share a sequence.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

# Sequences that are still filled at a time: more pack little tighter, and carry documents farther from their order.
OPEN_SEQUENCES = 64


def fill(lengths: Sequence[int], room: int, packed: bool = True) -> list[list[int]]:
    """The numbers of the documents of each sequence; no sequence is longer than `room`, none is empty.

    A document goes where it leaves the least room, and opens a sequence where it fits nowhere. Sequences stand in the
    order in which they were opened, documents within one in theirs.
    """
    if not packed:
        return [[i] for i in range(len(lengths))]
    sequences: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # of open sequences: tokens that still fit, number; ascending
    for i, length in enumerate(lengths):
        assert 0 < length <= room, "documents are cut to the length of a sequence"
        place = bisect_left(rooms, (length, 0))
        if place < len(rooms):
            left, number = rooms.pop(place)
            sequences[number].append(i)
        else:
            left, number = room, len(sequences)
            sequences.append([i])
        if left > length:
            insort(rooms, (left - length, number))
        if len(rooms) > OPEN_SEQUENCES:
            rooms.pop(0)
    return sequences

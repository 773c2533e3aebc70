"""The header of an Arrow message, read from its flatbuffer, because pyarrow does not expose it.

In: a message's metadata, or a reader of messages. Out: whether its batch is compressed, or a struct.error where it has
too few bytes; the next message.
"""

import struct
from typing import Any


def is_compressed(metadata: bytes) -> bool:
    """Whether a record batch's message (a flatbuffer) has its fourth field, `compression`: a bomb would hide there."""
    message = struct.unpack_from("<I", metadata, 0)[0]
    header = _field(metadata, message, 2)
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    return _field(metadata, batch, 3) != 0


def _field(metadata: bytes, table: int, number: int) -> int:
    """The place of a field in a flatbuffer table, 0 when it is not there."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    size = struct.unpack_from("<H", metadata, vtable)[0]
    offset = struct.unpack_from("<H", metadata, vtable + 4 + 2 * number)[0] if size >= 6 + 2 * number else 0
    return table + offset if offset else 0


def next_message(reader: Any) -> Any:
    """The next message; None at the end of the file."""
    try:
        return reader.read_next_message()
    except StopIteration:
        return None

"""Counts in messages: 1 document, 2 documents."""


def counted(n: int, one: str, many: str | None = None) -> str:
    """So many of something, in the singular or the plural; `many` is the singular with an s unless it is given."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"

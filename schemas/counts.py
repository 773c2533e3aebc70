"""Counts in messages: 1 document, 2 documents."""


def counted(n: int, one: str, many: str | None = None) -> str:
    """A count with its noun; the plural `many` is the singular with an s by default."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"

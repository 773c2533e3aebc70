"""Counts in messages: 1 document, 2 documents."""


def counted(n: int, one: str, many: str | None = None) -> str:
    """A count with its noun; the plural `many` is the singular with an s by default."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


def compact(n: int) -> str:
    """A large count with three digits and a unit: 896, 12.3 k, 2.6 M, 1.2 B."""
    power = next((power for power in (0, 1, 2) if n < 999.5 * 1000**power), 3)
    return f"{n:,}" if power == 0 else f"{n / 1000**power:.3g} {'kMB'[power - 1]}"

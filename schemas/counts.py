"""Counts, sizes and durations in messages: 1 document, 2 documents, 34.5 MB, 12 min."""


def counted(n: int, singular: str, plural: str | None = None) -> str:
    """A count with its noun; the plural `many` is the singular with an s by default."""
    return f"{n:,} {singular if n == 1 else plural or f'{singular}s'}"


def compact(n: int) -> str:
    """A large count with three digits and a unit: 896, 12.3 k, 2.6 M, 1.2 B."""
    power = next((power for power in (0, 1, 2) if n < 999.5 * 1000**power), 3)
    return f"{n:,}" if power == 0 else f"{n / 1000**power:.3g} {'kMB'[power - 1]}"


def size(n_bytes: float) -> str:
    """Bytes with a decimal unit: 34.5 MB."""
    if n_bytes < 1000:
        return f"{n_bytes:.0f} bytes"
    power = next((power for power in (1, 2, 3) if n_bytes < 999.95 * 1000**power), 4)
    return f"{n_bytes / 1000**power:,.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def duration(seconds: float) -> str:
    """Seconds in at most two units: 45 s, 12 min, 1 h 5 min, 2 days 3 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if round(seconds) < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} days {hours} h" if hours else f"{days} days"

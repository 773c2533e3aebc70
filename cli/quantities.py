"""Numbers as text: sizes, durations and shares."""


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


def share(part: float) -> str:
    """A share of 0 to 1 in percent: 91%."""
    return f"{part:.0%}"

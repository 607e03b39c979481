"""Numbers as people read them, in figures, tables and terminal lines."""

from __future__ import annotations

import math


def plain(value: float, digits: int = 2) -> str:
    """At least `digits` significant digits and no exponent where a person would write none; a dash for NaN.

    >>> [plain(value) for value in (1234.5, 12.34, 3.01, 0.01234, 0.0000123, 0.0, float("nan"))]
    ['1234', '12', '3.0', '0.012', '1.2e-05', '0', '–']
    """
    if math.isnan(value):
        return "–"
    if value == 0 or (math.isfinite(value) and round(abs(value), digits) >= 10 ** (digits - 1)):
        return f"{value:.0f}"
    text = f"{value:#.{digits}g}"
    return text.removesuffix(".")


def share(value: float) -> str:
    """A share in per cent.

    >>> share(0.123), share(0.004), share(1e-9), share(0.0)
    ('12 %', '0.4 %', '<0.1 %', '0 %')
    """
    if math.isnan(value):
        return "–"
    percent = 100 * value
    if 0 < percent < 0.05:
        return "<0.1 %"
    return f"{percent:.1f} %" if 0 < percent < 0.95 else f"{percent:.0f} %"


def accuracy(value: float) -> str:
    """An accuracy to three places, or a dash."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(4.13), duration(62), duration(3700), duration(0.0123)
    ('4.1 s', '1 min 2 s', '1 h 1 min', '0.012 s')
    """
    if math.isnan(seconds):
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 1 or seconds == 0 else f"{seconds:.2g} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(num_bytes: float) -> str:
    """Bytes in the unit that suits them, a thousand to the next.

    >>> size(0), size(999), size(123456), size(2.5e9)
    ('0 B', '999 B', '123 kB', '2.5 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{plain(num_bytes) if unit != 'B' else round(num_bytes)} {unit}"
        num_bytes /= 1000
    return f"{plain(num_bytes)} TB"


def count(number: int, noun: str) -> str:
    """A number and its noun.

    >>> count(1, "round"), count(3, "round")
    ('1 round', '3 rounds')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def times(first: float, last: float) -> str:
    """How a quantity that should fall has changed.

    >>> times(4.1, 0.16), times(1.0, 2.0), times(1.0, 0.0)
    ('26 times smaller', '2.0 times larger', '0')
    """
    if last <= 0 or first <= 0:
        return plain(last)
    return f"{plain(first / last)} times smaller" if first >= last else f"{plain(last / first)} times larger"

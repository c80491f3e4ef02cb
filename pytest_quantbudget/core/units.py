"""Sizes and times with their units, parsed strictly and printed so that a comparison stays visible.

A bare number is refused: GB (1e9 bytes) and GiB (2**30 bytes) differ by 7 %, which is more than many budgets leave.
Prefixes follow IEC 80000-13 (KiB, MiB, GiB are powers of 1024; kB, MB, GB powers of 1000).
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal

from pytest_quantbudget.core.problems import nearest

# datetime.UTC is newer than the oldest Python that may run a measuring process.
UTC = datetime.timezone.utc  # noqa: UP017
ISO = "%Y-%m-%dT%H:%M:%SZ"  # how times are written: ISO 8601, UTC
SIZES: Mapping[str, float] = {
    "B": 1,
    "kB": 1e3,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
TIMES: Mapping[str, float] = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
ENERGIES: Mapping[str, float] = {"mJ": 1e-3, "J": 1.0, "kJ": 1e3, "Wh": 3600.0}
ENDS = (0.0, 100.0)  # of a percentage: nothing, and all
DUST = 1e-9  # what floats leave of equal percentages
MOST_DIGITS = 24
QUANTITY = re.compile(r"([+-]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z%]*)")


def parse_quantity(text: object, units: Mapping[str, float], example: str) -> tuple[float, str]:
    """`'17 GiB'` -> (bytes, 'GiB'); `'80 ms'` -> (seconds, 'ms').

    Raises ValueError, in words for the user, where the unit is missing or unknown or the number is not finite and
    positive.
    """
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ValueError(f"must be a number with a unit, such as {example}")
    match = QUANTITY.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"{text!r} is not a number with a unit, such as {example}")
    number, unit = float(match[1].replace("_", "")), match[2]
    if not unit:
        why = {id(SIZES): "GB and GiB differ by 7 %", id(ENERGIES): "J and mJ differ by 1,000"}.get(
            id(units), "seconds and milliseconds differ by 1,000"
        )
        raise ValueError(f"{text} has no unit, and {why}; write for example {example}")
    if unit not in units:
        raise ValueError(f"{text!r} has an unknown unit {unit!r}{nearest(unit, units)}")
    if not math.isfinite(number * units[unit]) or number <= 0:
        raise ValueError(f"{text!r} must be a finite number above 0")
    # As floats, 1.001 * 1000 is below 1001, and a limit would be missed that is met exactly.
    return float(Decimal(match[1].replace("_", "")) * Decimal(units[unit])), unit


def parse_size(text: object) -> tuple[float, str]:
    """Bytes and the unit they were written in; see `parse_quantity`."""
    return parse_quantity(text, SIZES, "17 GiB or 16 GB")


def parse_time(text: object) -> tuple[float, str]:
    """Seconds and the unit they were written in; see `parse_quantity`."""
    return parse_quantity(text, TIMES, "80 ms or 2.5 s")


def parse_energy(text: object) -> tuple[float, str]:
    """Joules and the unit they were written in; see `parse_quantity`."""
    return parse_quantity(text, ENERGIES, "500 mJ or 2.5 J")


def factor(unit: str) -> float:
    """How many base units (bytes, seconds, joules; 1 for everything else) one `unit` is."""
    return SIZES.get(unit) or TIMES.get(unit) or ENERGIES.get(unit) or 1.0


def format_value(value: float, unit: str, digits: int = 3, *, show_unit: bool = True) -> str:
    """`value` in base units, written in `unit` with `digits` significant digits (whole digits are never dropped).

    Points and percentages keep one decimal, as papers print them, unless more digits are asked for, or it takes more to
    say that something was lost: 99.99 is not 100.0, and 0.04 not 0.0.
    """
    scaled = value / factor(unit)
    magnitude = math.floor(math.log10(abs(scaled))) if scaled and math.isfinite(scaled) else 0
    decimals = max(0, digits - 1 - magnitude)
    if unit in ("points", "%"):
        decimals = max(1, digits - 2)
        while round(scaled, decimals) in ENDS and abs(scaled - round(scaled, decimals)) > DUST:
            decimals += 1
    text = f"{scaled:,.{decimals}f}"
    if decimals > 2 and unit not in ("points", "%"):
        text = text.rstrip("0").rstrip(".") if float(text.replace(",", "")) else "0"
    if not show_unit or not unit:
        return text
    return f"{text} %" if unit == "%" else f"{text}{unit}" if unit == "x" else f"{text} {unit}"


def digits_apart(first: float, others: Iterable[float], unit: str) -> int:
    """How many digits tell each of the others from the first: `1.0` against `1.0` explains no failure."""
    unlike = [other for other in others if other != first]
    for digits in range(3, MOST_DIGITS):
        if format_value(first, unit, digits) not in [format_value(other, unit, digits) for other in unlike]:
            return digits
    return MOST_DIGITS


def format_apart(first: float, *others: float, unit: str) -> tuple[str, ...]:
    """All values in one unit, with as many digits as it takes to tell each of the others from the first."""
    digits = digits_apart(first, others, unit)
    return tuple(format_value(value, unit, digits) for value in (first, *others))


def pick_unit(value: float, units: Mapping[str, float]) -> str:
    """The largest common unit in which `value` is at least 1 (binary for sizes), for figures no user gave a unit to."""
    ladder = [u for u in units if units is not SIZES or u == "B" or "i" in u]
    fitting = [u for u in ladder if units[u] <= abs(value)]
    return max(fitting or ladder[:1], key=lambda u: units[u])


def size_unit(*sizes: float) -> str:
    """The unit in which the largest of some sizes is written."""
    return pick_unit(max(sizes), SIZES)


def format_size(value: float) -> str:
    """Bytes in words: `6.12 GiB`."""
    return format_value(value, size_unit(value))


def sizes_apart(first: float, *others: float) -> tuple[str, ...]:
    """Sizes in one unit, each of the others told from the first."""
    return format_apart(first, *others, unit=size_unit(first, *others))


def time_unit(*times: float) -> str:
    """The unit in which the longest of some times is written; minutes are not used, so that columns compare."""
    return "s" if max(map(abs, times)) >= 1 else "ms"


def energy_unit(*energies: float) -> str:
    """The unit in which the largest of some energies is written."""
    return "J" if max(map(abs, energies)) >= 1 else "mJ"


def format_energy(value: float) -> str:
    """Joules in words: `340 mJ`."""
    return format_value(value, energy_unit(value))


def format_time(value: float) -> str:
    """Seconds in words: `80.2 ms`."""
    return format_value(value, time_unit(value))

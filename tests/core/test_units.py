"""Sizes and times: what is read, what is refused and in which words, and how figures are printed."""

import re
from collections.abc import Callable

import pytest

from pytest_quantbudget.core import problems, units


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("17 GiB", 17 * 2**30),
        ("16 GB", 16e9),
        ("16GB", 16e9),
        (" 512 MiB ", 512 * 2**20),
        ("0.5 TiB", 2**39),
        (".5 kB", 500),
        ("3. KiB", 3 * 2**10),
        ("1_000 B", 1000),
        ("2.5e3 MB", 2.5e9),
        ("1.001 kB", 1001),  # as floats, 1.001 * 1000 is below 1001
    ],
)
def test_sizes_are_read_in_bytes(text: str, size: float) -> None:
    assert units.parse_size(text)[0] == size


@pytest.mark.parametrize(("text", "time"), [("80 ms", 0.08), ("2.5 s", 2.5), ("3 min", 180), ("250us", 0.00025)])
def test_times_are_read_in_seconds(text: str, time: float) -> None:
    assert units.parse_time(text)[0] == time


def test_the_unit_that_the_user_wrote_is_kept() -> None:
    assert [units.parse_size("16 GB")[1], units.parse_size("17 GiB")[1], units.parse_time("80 ms")[1]] == [
        "GB",
        "GiB",
        "ms",
    ]


def test_gb_and_gib_differ() -> None:
    assert units.parse_size("16 GiB")[0] / units.parse_size("16 GB")[0] == pytest.approx(1.0737, abs=1e-4)


@pytest.mark.parametrize(
    ("parse", "value", "message"),
    [
        (units.parse_size, 17, "17 has no unit, and GB and GiB differ by 7 %; write for example 17 GiB or 16 GB"),
        (units.parse_size, "17", "17 has no unit"),
        (units.parse_size, 7.5, "7.5 has no unit"),
        (units.parse_time, 80, "80 has no unit, and seconds and milliseconds differ by 1,000; write for example 80 ms"),
        (units.parse_size, "17 Gib", "'17 Gib' has an unknown unit 'Gib'; did you mean 'GiB'?"),
        (units.parse_size, "17 mib", "did you mean 'MiB'?"),
        (units.parse_size, "17 gb", "did you mean 'GB'?"),
        (units.parse_size, "17 Gbit", "unknown unit 'Gbit'"),
        (units.parse_size, "80 ms", "unknown unit 'ms'; known: B, kB"),
        (units.parse_time, "80 msec", "did you mean 'ms'?"),
        (units.parse_time, "80 weeks", "known: us, ms, s, min"),
        (units.parse_size, "0 GiB", "'0 GiB' must be a finite number above 0"),
        (units.parse_size, "-1 GiB", "must be a finite number above 0"),
        (units.parse_size, "1e999 GiB", "must be a finite number above 0"),
        (units.parse_size, "1e300 TiB", "must be a finite number above 0"),
        (units.parse_size, "1e-999 GiB", "must be a finite number above 0"),
        (units.parse_size, "nan GiB", "'nan GiB' is not a number with a unit"),
        (units.parse_size, "about 7 GiB", "is not a number with a unit"),
        (units.parse_size, "7 GiB or so", "is not a number with a unit"),
        (units.parse_size, "7,5 GiB", "is not a number with a unit"),
        (units.parse_size, True, "must be a number with a unit, such as 17 GiB"),
        (units.parse_size, None, "must be a number with a unit"),
        (units.parse_time, ["80 ms"], "must be a number with a unit, such as 80 ms or 2.5 s"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_is_no_size_or_time_is_refused_in_words(
    parse: Callable[[object], tuple[float, str]], value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(value)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (7 * 2**30, "GiB", "7.00 GiB"),
        (16.25e9, "GB", "16.2 GB"),
        (1234567 * 2**20, "MiB", "1,234,567 MiB"),
        (0.0802, "ms", "80.2 ms"),
        (25, "tokens/s", "25.0 tokens/s"),
        (1234.5, "tokens/s", "1,234 tokens/s"),
        (0.445, "x", "0.445x"),
        (0.45, "", "0.45"),
        (1.6, "points", "1.6 points"),
        (-0.3, "points", "-0.3 points"),
        (57.89, "%", "57.9 %"),
        (0, "GiB", "0.00 GiB"),
        (0, "points", "0.0 points"),
        (99.99, "%", "99.99 %"),
        (99.94, "%", "99.9 %"),
        (100, "%", "100.0 %"),
        (99.99999999999999, "%", "100.0 %"),
        (-0.04, "points", "-0.04 points"),
        (0.0003, "%", "0.0003 %"),
    ],
)
def test_figures_print_with_three_digits_and_their_unit(value: float, unit: str, text: str) -> None:
    assert units.format_value(value, unit) == text


def test_a_figure_prints_without_its_unit_where_that_is_said_elsewhere() -> None:
    assert units.format_value(7 * 2**30, "GiB", show_unit=False) == "7.00"


@pytest.mark.parametrize(
    ("left", "right", "unit", "texts"),
    [
        (1.0, 1.6, "points", ("1.0 points", "1.6 points")),
        (1.0, 1.04, "points", ("1.00 points", "1.04 points")),
        (7 * 2**30, 7 * 2**30 + 1, "GiB", ("7 GiB", "7.000000001 GiB")),
        (0.45, 0.4501, "", ("0.45", "0.4501")),
        (2.0, 2.0, "x", ("2.00x", "2.00x")),
    ],
    ids=["points", "near points", "a byte", "ratio", "equal"],
)
def test_two_figures_print_with_digits_enough_to_see_the_difference(
    left: float, right: float, unit: str, texts: tuple[str, str]
) -> None:
    assert units.format_apart(left, right, unit=unit) == texts


def test_each_of_several_figures_prints_apart_from_the_first() -> None:
    assert units.format_apart(1.0, 1.6, 0.996, 1.0, unit="points") == (
        "1.000 points", "1.600 points", "0.996 points", "1.000 points"
    )  # fmt: skip
    assert units.sizes_apart(16 * 2**30, 16 * 2**30 - 2**20, 900 * 2**20) == ("16 GiB", "15.999 GiB", "0.87891 GiB")


@pytest.mark.parametrize("unit", ["x", "points", "%", "GiB"])
def test_even_neighbouring_floats_print_apart(unit: str) -> None:
    one, other = units.format_apart(0.1, 0.1 + 2**-55, unit=unit)
    assert one != other


@pytest.mark.parametrize(
    ("size", "text"), [(1, "1.00 B"), (1500, "1.46 KiB"), (6.12 * 2**30, "6.12 GiB"), (3 * 2**40, "3.00 TiB")]
)
def test_a_size_without_a_unit_of_its_own_prints_in_binary_units(size: float, text: str) -> None:
    assert units.format_size(size) == text


@pytest.mark.parametrize(("time", "text"), [(0.0802, "80.2 ms"), (2.5, "2.50 s"), (300, "300 s")])
def test_a_time_without_a_unit_of_its_own_prints_in_seconds_or_milliseconds(time: float, text: str) -> None:
    assert units.format_time(time) == text


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("max_vran", "; did you mean 'max_vram'?"),
        ("MAX_VRAM", "; did you mean 'max_vram'?"),
        ("zzz", "; known: max_vram, min_speedup"),
    ],
)
def test_the_nearest_known_name_is_offered_or_else_all(word: str, hint: str) -> None:
    assert problems.nearest(word, ["max_vram", "min_speedup"]) == hint


def test_where_nothing_is_known_nothing_is_offered() -> None:
    assert problems.nearest("max_vram", []) == ""

"""Replacing single values of a YAML text: that value changes, and not one byte besides."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantbudget.budget.edit import Document, Unplaced

FILE = Path("b.yaml")


def replaced(text: str, *changes: tuple[str, str]) -> str:
    """The text with the values behind dotted keys replaced."""
    document = Document(text, FILE)
    return document.replaced({document.place(tuple(keys.split("."))): new for keys, new in changes})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a:\n  b:   auto    # why\nc: 1\n", "a:\n  b:   7 GiB    # why\nc: 1\n"),
        ("a: {x: 1,b: auto,   # why\n  y: [1,2]}", "a: {x: 1,b: 7 GiB,   # why\n  y: [1,2]}"),
        ("a: {b: 'auto'}", "a: {b: '7 GiB'}"),
        ('{"a":{"b":"auto"}}', '{"a":{"b":"7 GiB"}}'),
        ('a: {"b" : auto }', 'a: {"b" : 7 GiB }'),
        ("? a\n:  ? b\n   : auto\n", "? a\n:  ? b\n   : 7 GiB\n"),
        ("# \u00fc\U0001f535\r\na:\r\n  b: auto\r\n\r\n", "# \u00fc\U0001f535\r\na:\r\n  b: 7 GiB\r\n\r\n"),
        ("\ufeff---\na: {b: auto}\n...\n", "\ufeff---\na: {b: 7 GiB}\n...\n"),
        ("a: {\U0001f535: \u00fc, b: auto}\n", "a: {\U0001f535: \u00fc, b: 7 GiB}\n"),
        ("a: &unused\n  b: auto", "a: &unused\n  b: 7 GiB"),
        ("x: &x {b: 1}\na: {<<: *x, b: auto}", "x: &x {b: 1}\na: {<<: *x, b: 7 GiB}"),
        ("a: {b: 6\n  GiB, c: 1}", "a: {b: 7 GiB, c: 1}"),
    ],
    ids=["block", "flow", "quotes", "json", "quoted key", "complex key", "crlf", "bom", "unicode", "anchor", "merge",
         "two lines"],
)  # fmt: skip
def test_a_value_is_replaced_where_it_stands(before: str, after: str) -> None:
    assert replaced(before, ("a.b", "7 GiB")) == after


def test_a_number_needs_no_quotes() -> None:
    assert replaced("a: {b: \"auto\", c: 'auto'}", ("a.b", "0.51"), ("a.c", "60")) == "a: {b: 0.51, c: 60}"


def test_a_value_by_device_is_found_by_its_pattern_and_one_for_all_by_a_star() -> None:
    text = 'a: {"NVIDIA H100*": auto, "*": 1}\nb: auto\n'
    after = replaced(text, ("a.NVIDIA H100*", "60"), ("a.*", "2.5"), ("b.*", "7 GiB"))
    assert after == 'a: {"NVIDIA H100*": 60, "*": 2.5}\nb: 7 GiB\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x: &x {b: auto}\na: *x", "has an anchor, and an alias uses it elsewhere too"),
        ("a: &x {b: auto}\nx: *x", "has an anchor, and an alias uses it elsewhere too"),
        ("a: &x {b: auto}\nx: {<<: *x}", "has an anchor, and an alias uses it elsewhere too"),
        ("a: {b: &x auto}\nx: *x", "has an anchor, and an alias uses it elsewhere too"),
        ("x: &x {b: auto}\na: {<<: *x, c: 1}", "from a merge key"),
        ("a: {b: &x auto}", "carries an anchor or a tag"),
        ("a: {b: !!str auto}", "carries an anchor or a tag"),
        ("a:\n  b: >-\n    auto\n", "a block of text"),
        ("a: {b: {c: 1}}", "a block of text"),
        ("a: {c: auto}", "is not written in b.yaml itself"),
        ("a: 1", "is not written in b.yaml itself"),
    ],
)
def test_what_others_share_or_is_no_plain_value_is_left_alone(text: str, why: str) -> None:
    with pytest.raises(Unplaced, match=why):
        Document(text, FILE).place(("a", "b"))


@pytest.mark.parametrize("new", ["1, c: 2", "1, d: 2", "e: 1"])
def test_what_would_change_another_value_is_refused(new: str) -> None:
    document = Document("a: {b: auto, c: 1}", FILE)
    with pytest.raises(Unplaced, match="another value would change with it"):
        document.replaced({document.place(("a", "b")): new})


COMMENTS = st.text(st.characters(exclude_categories=("C", "Z")), max_size=8).map(lambda text: f" # {text}")
VALUES = st.sampled_from(["auto", "7 GiB", "0.51", "-3", "'auto'", '"1 ms"', "~"])
LIMITS = st.dictionaries(st.sampled_from(["max_vram", "min_t", "\u00e4", '"b c"']), VALUES, min_size=1)


@st.composite
def texts(draw: st.DrawFn) -> list[tuple[str, tuple[str, str] | None]]:
    """Pieces of a file, each with the keys of the value that it is, if it is one."""
    end = draw(st.sampled_from(["\n", "\r\n"]))
    pieces: list[tuple[str, tuple[str, str] | None]] = [(draw(st.sampled_from(["", "\ufeff"])), None)]
    for method in draw(st.sets(st.sampled_from(["nf4", "int8", "fp16"]), min_size=1)):
        pieces.append((f"{method}:", None))
        limits, flow = draw(LIMITS), draw(st.booleans())
        pieces.append((f" {{{draw(st.sampled_from(['', ' ']))}" if flow else f"{draw(COMMENTS)}{end}", None))
        for number, (name, value) in enumerate(limits.items()):
            gap = " " * draw(st.integers(1, 3))
            pieces.append((f"{', ' if flow and number else '' if flow else '   '}{name}:{gap}", None))
            pieces.append((value, (method, name.strip('"'))))
            pieces.append(("" if flow else f"{draw(COMMENTS)}{end}", None))
        pieces.append((f"}}{draw(COMMENTS)}{end}" if flow else "", None))
    return pieces


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(texts(), st.data())
def test_every_byte_outside_the_replaced_values_stays(
    pieces: list[tuple[str, tuple[str, str] | None]], data: st.DataObject
) -> None:
    document = Document("".join(text for text, _ in pieces), FILE)
    news, expected = {}, ""
    for text, keys in pieces:
        if keys is not None and data.draw(st.booleans()):
            new = data.draw(st.sampled_from(["60", "0.125", "6.12 GiB"]))
            news[document.place(keys)] = new
            quote = text[0] if text[0] in "'\"" and new.endswith("GiB") else ""
            text = f"{quote}{new}{quote}"
        expected += text
    assert document.replaced(news).encode() == expected.encode()

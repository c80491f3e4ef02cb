"""Texts of others in Markdown, as a parser of GitHub's dialect reads them: they stay texts."""

from collections.abc import Callable

import pytest
from gfm_pages import HOSTILE, page

from pytest_quantbudget.core.safetext import printable
from pytest_quantbudget.report import gfm


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("form", [gfm.inline, gfm.code])
def test_a_hostile_text_shows_as_it_is_in_a_cell_a_line_and_a_list(text: str, form: Callable[[str], str]) -> None:
    shown = printable(text).strip()
    table = page(gfm.table(["a", "b"], [[form(text), "x"], ["y", form(text)]]))
    assert [[cell.replace(gfm.BREAK, "") for cell in row] for row in table.cells] == [
        ["a", "b"],
        [shown, "x"],
        ["y", shown],
    ]
    for found in (table, page(f"before {form(text)} behind"), page(gfm.bullets([form(text), "next"]))):
        assert found.tags <= {"table", "thead", "tbody", "tr", "th", "td", "p", "code", "ul", "li"}, found.tags
        assert found.attributes == set()
        assert shown in found.text.replace(gfm.BREAK, "")
        assert found.references == []
    assert page(gfm.bullets([form(text), "next"])).count("li") == 2


def test_what_tools_find_in_shown_text_is_seen_by_these_tests() -> None:
    found = page("ask @octocat about #12, GH-3 or a@b.example, see https://e.example and www.e.example")
    assert found.references == ["@octocat", "#12", "GH-3", "a@b.example", "https://e.example", "www.e.example"]
    assert page("`@octocat #12`").references == []
    assert page("![x](https://e.example/x.png) <img src=x>").tags == {"p", "img"}


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("max_weights_ratio", "max_weights_ratio"),
        ("_init_", "&#95;init&#95;"),
        ("a | b", "a &#124; b"),
        ("1,300 questions, 5.1 % (3 to 6)", "1,300 questions, 5.1 % (3 to 6)"),
        ("mail to a@b", "mail to a@&#8203;b"),
    ],
)
def test_the_source_stays_readable(text: str, source: str) -> None:
    assert gfm.inline(text) == source


@pytest.mark.parametrize(("text", "source"), [("nf4", "`nf4`"), ("a|b", "a&#124;b"), ("a`b", "a&#96;b"), ("", "")])
def test_a_name_is_in_letters_of_one_width_where_no_parser_disagrees(text: str, source: str) -> None:
    assert gfm.code(text) == source


def test_secrets_and_endless_texts_do_not_get_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "s3cr_t*value")
    assert "s3cr" not in gfm.inline("the token is s3cr_t*value")
    assert len(gfm.code("x" * 10_000)) <= gfm.LONGEST + 2


def test_what_is_folded_is_markdown_inside() -> None:
    found = page(gfm.folded("3 within", gfm.table(["a"], [["**b**"]])))
    assert {"details", "summary", "table", "strong"} <= found.tags
    assert "3 within" in found.text

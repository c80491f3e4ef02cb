"""The page in a real browser: light and dark, 400 px wide, printed, with the keyboard, and by the rules of axe-core."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import page_pictures
import pytest
from page_pictures import NARROW, WIDE
from pages import HOSTILE, large, typical

pytest.importorskip("jinja2", reason="the extra `report` brings Jinja2")
pytest.importorskip("playwright", reason="the extra `test` brings Playwright")

from axe_playwright_python.sync_playwright import Axe

from pytest_quantbudget.report.page import render

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = page_pictures.chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(page_pictures.NAMES)} is installed")
GRAVE = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """One browser for all tests of this file; each opens pages of its own."""
    assert CHROMIUM is not None
    with page_pictures.browser(CHROMIUM) as found:
        yield found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with all that a page can show."""
    folder = tmp_path_factory.mktemp("page")
    render.write(folder / "page.html", typical(folder))
    return folder / "page.html"


@pytest.fixture
def page(browser: "Browser", written: Path) -> Iterator["Page"]:
    """The page, opened; it fails the test where anything was fetched, said to the console, or raised."""
    opened = page_pictures.new_page(browser)
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: said.append(request.url) if request.url != written.as_uri() else None)
    opened.goto(written.as_uri())
    yield opened
    opened.close()
    assert said == []


def unfold(page: "Page") -> None:
    """Open all that is folded, questions too."""
    while page.evaluate("[...document.querySelectorAll('details:not([open])')].map((x) => x.open = true).length"):
        page.wait_for_timeout(50)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_axe_finds_nothing_grave_and_nothing_is_wider_than_the_window(page: "Page", width: int, scheme: str) -> None:
    page_pictures.show(page, width, scheme)
    unfold(page)
    found = Axe().run(page).response["violations"]
    assert [(each["id"], [node["target"] for node in each["nodes"]]) for each in found if each["impact"] in GRAVE] == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_no_width_is_too_small(page: "Page") -> None:
    unfold(page)
    for width in (320, 500, 720, 860, 1024):
        page_pictures.show(page, width, "light")
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, width


def test_the_page_follows_the_systems_colours(page: "Page", tmp_path: Path) -> None:
    shown: dict[str, list[int]] = {}
    for scheme in ("light", "dark"):
        page_pictures.show(page, WIDE, scheme)
        colour = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
        shown[scheme] = page.evaluate(colour)
    assert min(shown["light"]) > 240
    assert max(shown["dark"]) < 40
    page_pictures.take(page, tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == page_pictures.PICTURES.keys()


def test_a_question_is_read_and_filtered_with_the_keyboard_alone(page: "Page") -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the limits"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    reached = []
    for _ in range(120):
        page.keyboard.press("Tab")
        tag = page.evaluate("document.activeElement.name || document.activeElement.tagName")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        reached.append((tag, outline))
        if tag == "direction":
            break
    assert ("method", "solid") in reached
    assert {outline for _, outline in reached} == {"solid"}
    page.keyboard.press("ArrowDown")
    status = page.locator(".browser [role=status]").first
    assert status.inner_text() == "1 question"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    shown = page.locator(".questions li").first
    assert "right to wrong" in shown.inner_text()
    assert shown.locator("del").all_inner_texts() == ["5"]
    assert shown.locator("ins").all_inner_texts() == ["6"]
    assert "How many are 2 and 3?" in shown.inner_text()


def test_filters_count_what_the_table_counts(page: "Page") -> None:
    method, task, direction = (
        page.locator(f".browser [name={name}]").first for name in ("method", "task", "direction")
    )
    status = page.locator(".browser [role=status]").first
    rows = page.locator("#b1-answers table tbody tr").all()
    for row in rows:
        name, of, _, lost, gained, _, reworded = row.locator("th, td").all_inner_texts()
        method.select_option(label=name)
        task.select_option(label=of)
        for shown, count in (
            ("Right to wrong", lost),
            ("Wrong to right", gained),
            ("Reworded, same outcome", reworded),
        ):
            direction.select_option(label=shown)
            assert status.inner_text().split()[0] == count
    assert len(rows) > 1


def test_what_a_model_says_stays_text(page: "Page") -> None:
    page.locator(".browser [name=direction]").first.select_option(label="All")
    while page.locator(".more").first.is_visible():
        page.locator(".more").first.click()
    unfold(page)
    assert page.evaluate("[window.hacked, document.querySelectorAll('img, iframe, a[href^=javascript]').length]") == [
        None,
        0,
    ]
    assert page.get_by_text(HOSTILE.strip(), exact=False).count() > 0


def test_what_got_onto_the_page_all_the_same_does_not_run(browser: "Browser", written: Path, tmp_path: Path) -> None:
    forged = written.read_text().replace(
        "</main>",
        "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
        "<p style='position: fixed'>x</p><iframe srcdoc='<script>top.hacked = 1</script>'></iframe></main>",
    )
    (tmp_path / "page.html").write_text(forged)
    page = page_pictures.new_page(browser)
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate("window.hacked") is None
    assert sum("Content Security Policy" in text for text in refused) >= 4
    assert page.locator(".questions li").count() > 0
    with pytest.raises(Exception, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>x</b>'")
    page.close()


def test_a_link_leads_to_the_line_of_the_budget_though_it_is_folded(page: "Page") -> None:
    page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = false)")
    page.locator(".where a").first.click()
    line = page.locator(".line:target")
    assert line.is_visible()
    assert "max_weights_ratio" in line.inner_text()


def test_on_paper_everything_is_there(page: "Page", tmp_path: Path) -> None:
    printed = page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert printed.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) > 2
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav").first.is_hidden()
    folded = page.locator("#b1-limits details .limits").first
    assert folded.bounding_box() is not None


def test_without_javascript_all_but_the_single_questions_is_there(browser: "Browser", written: Path) -> None:
    page = page_pictures.new_page(browser, scripts=False)
    page.goto(written.as_uri())
    assert page.locator("h1").inner_text().endswith("limits is over")
    assert page.locator(".plot").first.is_visible()
    assert page.locator("noscript p").first.is_visible()
    assert page.locator(".browser").first.is_hidden()
    page.close()


def test_six_methods_with_1319_questions_are_folded(browser: "Browser", tmp_path: Path) -> None:
    render.write(tmp_path / "page.html", large(1319, 6))
    page = page_pictures.new_page(browser)
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate("document.querySelectorAll('*').length") < 3_000
    assert page.locator(".questions li").count() == 25
    page.locator(".browser [name=direction]").select_option(label="All")
    assert page.locator(".browser [role=status]").inner_text() == "1,319 questions"
    assert page.locator(".questions li").count() == 25
    page.close()

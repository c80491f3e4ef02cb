"""A headless Chromium with a page in it, and pictures of the page of a report.

    python tools/page_pictures.py REPORT FOLDER

writes the page into the folder, and pictures of it with one question unfolded: wide, 400 px wide, and dark.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_quantbudget.report import document
from pytest_quantbudget.report.page import render

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# It runs as root in containers, and reaches nothing.
OPTIONS = (
    *["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"],
    *["--disable-component-update", "--disable-sync", "--hide-scrollbars"],
)
WIDE, NARROW, HIGH = 1280, 400, 900
PICTURES = {"wide": (WIDE, "light"), "narrow": (NARROW, "light"), "dark": (WIDE, "dark")}


def chromium() -> str | None:
    """The Chromium of this machine; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def browser(executable: str) -> Iterator[Browser]:
    """A headless browser, with an empty profile of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=executable, args=OPTIONS, headless=True)
        try:
            yield found
        finally:
            found.close()


def new_page(found: Browser, *, scripts: bool = True) -> Page:
    """An empty page without a network, and with nothing of other pages."""
    return found.new_page(offline=True, java_script_enabled=scripts, viewport={"width": WIDE, "height": HIGH})


def show(page: Page, width: int, scheme: str) -> None:
    """Give a page this width, and the `light` or `dark` colours."""
    page.set_viewport_size({"width": width, "height": HIGH})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")


def take(page: Page, folder: Path) -> None:
    """Pictures of an opened page, from its top to its end."""
    for name, (width, scheme) in PICTURES.items():
        show(page, width, scheme)
        page.screenshot(path=folder / f"{name}.png", full_page=True)


def main(report: str, folder: str) -> None:
    """Write page and pictures."""
    executable = chromium()
    if executable is None:
        raise SystemExit(f"none of {', '.join(NAMES)} is installed")
    target = Path(folder).resolve()
    target.mkdir(parents=True, exist_ok=True)
    render.write(target / "page.html", document.read(Path(report)))
    with browser(executable) as found:
        page = new_page(found)
        page.goto((target / "page.html").as_uri())
        questions = page.locator(".questions summary")
        if questions.count():
            questions.first.click()
        take(page, target)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""How long the page of many answers takes to write and to open in Chromium.

    PYTHONPATH=tests:tools python benchmarks/page.py [QUESTIONS METHODS]

The answers are made up, some 600 characters each; a third of them have the text of the baseline's.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import page_pictures
import pages

from pytest_quantbudget.report.page import render

TIMES = 7
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def main(questions: int = 1319, methods: int = 6) -> None:
    """Print each figure as median and range."""
    executable = page_pictures.chromium()
    if executable is None:
        raise SystemExit("no Chromium is installed")
    report = pages.large(questions, methods)
    began = time.perf_counter()
    html = render.render(report)
    print(f"written in {time.perf_counter() - began:.2f} s: {len(html.encode()) / 1e6:.1f} MB")
    took: dict[str, list[float]] = {"first paint": [], "loaded": [], "a question unfolded": [], "all listed": []}
    with tempfile.TemporaryDirectory() as folder, page_pictures.browser(executable) as browser:
        path = Path(folder, "page.html")
        path.write_text(html)
        for _ in range(TIMES):
            page = page_pictures.new_page(browser)
            page.goto(path.as_uri())
            took["loaded"].append(page.evaluate(LOADED) / 1000)
            # A tab that is not in front may paint later than it has loaded.
            painted = page.evaluate(PAINTED)
            took["first paint"] += [painted / 1000] if painted is not None else []
            began = time.perf_counter()
            page.locator(".questions summary").first.click()
            page.locator(".questions .sides").first.wait_for()
            took["a question unfolded"].append(time.perf_counter() - began)
            began = time.perf_counter()
            page.locator(".browser [name=direction]").select_option(label="All")
            took["all listed"].append(time.perf_counter() - began)
            elements = page.evaluate("document.querySelectorAll('*').length")
            page.close()
    for name, seconds in took.items():
        ordered = sorted(seconds)
        print(f"{name}: {ordered[len(ordered) // 2]:.2f} s ({ordered[0]:.2f} to {ordered[-1]:.2f})")
    print(f"{elements:,} elements")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

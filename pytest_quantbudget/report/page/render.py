"""Fills the templates. Jinja2 is imported here alone, when a page is written."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.util
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_quantbudget.core import files
from pytest_quantbudget.core.safetext import visible
from pytest_quantbudget.report.document import Report
from pytest_quantbudget.report.page import view

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = "templates"
MISSING = "a page is made with Jinja2, which is not installed: pip install 'pytest-quantbudget[report]'"


def check_installed() -> None:
    """Raise ImportError, with the command that helps, where Jinja2 is not installed."""
    if importlib.util.find_spec("jinja2") is None:
        raise ImportError(MISSING)


def write(path: Path, report: Report) -> bool:
    """Write the page of a report, whole or not at all. True: there is always one. Raises OSError, ImportError."""
    files.write(path, render(report).encode())
    return True


def render(report: Report) -> str:
    """The page of a report. Whatever stands in it came from anywhere: all of it is escaped, and none of it can run.

    Raises ImportError where Jinja2 is not installed.
    """
    check_installed()
    style, script = _text("page.css"), _text("page.js")
    return (
        _environment()
        .get_template("page.html")
        .render(page=view.page(report), style=style, script=script, policy=_policy(style, script))
    )


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    return Environment(
        loader=FunctionLoader(_text),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: object) -> object:
    """What an expression of a template puts on the page: texts without what is invisible, or turns a line around."""
    return visible(value, lines=True) if type(value) is str else value


def _text(name: str) -> str:
    """A file of the package."""
    return resources.files(__package__).joinpath(TEMPLATES, name).read_text("utf-8").replace("\r\n", "\n")


def _policy(style: str, script: str) -> str:
    """The page's Content-Security-Policy: this style sheet and this script, by their hashes, and nothing else.

    Nothing is fetched, no other script runs, and no text becomes markup (Trusted Types).
    """
    rules = {
        "default-src": "'none'",
        "script-src": _source(script),
        "style-src": _source(style),
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _source(text: str) -> str:
    """The name of an inline text in a policy (CSP Level 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

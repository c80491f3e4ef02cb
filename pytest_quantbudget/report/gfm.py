"""GitHub-flavoured Markdown around texts of others, which stay texts there: no markup, link, picture, mention or tag.

After https://github.github.com/gfm/ and what GitHub's pages do to rendered text beyond it: mentions and references.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pytest_quantbudget.core.safetext import safe

LONGEST = 400  # characters of one text
# Behind it nothing is a mention, a reference or a link any more, and nobody sees it. `safe` leaves none in a text.
BREAK = "\N{ZERO WIDTH SPACE}"
AS_ENTITY = "&#8203;"
# Entities, since a `\` in front of a `|` that stands behind another `\` is read in two ways; as one, a BREAK shows in
# the source.
# Within a word, `_` means nothing.
MARKUP = re.compile(rf"[&<>|\\`*\[\]~${BREAK}]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# `@name` and `a@b.c`, `#1` and `GH-1`, `https://` and `www.`: found in what shows, after entities have been read.
REFERENCE = re.compile(r"@(?=[\w-])|#(?=\w)|\bgh-(?=\d)|:(?=//)|\bwww(?=\.)", re.IGNORECASE)
# What makes a list, a rule or a heading of a line that begins so.
BEGINNING = re.compile(r"^(?=[-+]([-\s]|$)|[=#]|\d{1,9}[.)](\s|$))")
# What ends no span of code, and no cell.
PLAIN = re.compile(r"[^`|\\]+")


def inline(text: str, longest: int = LONGEST) -> str:
    """A text of others within a line; nothing in it means anything to Markdown, to GitHub or to a browser."""
    shown = safe(text, longest).strip()
    shown = REFERENCE.sub(rf"\g<0>{BREAK}", shown)
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", shown)


def code(text: str, longest: int = LONGEST) -> str:
    """A name in letters of one width; one that holds what ends such a span, or a cell of a table, as `inline`."""
    shown = safe(text, longest).strip()
    return f"`{shown}`" if PLAIN.fullmatch(shown) else inline(text, longest)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A table of cells that are Markdown already; the columns `right` are set to the right."""
    numbers = set(right)
    rule = ["--:" if i in numbers else "---" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(cell or ' ' for cell in row)} |" for row in (head, rule, *rows))


def bullets(lines: Iterable[str]) -> str:
    """A list of lines that are Markdown already, in which none is a list or a heading itself."""
    return "\n".join(f"- {BEGINNING.sub(AS_ENTITY, line)}" for line in lines)


def folded(summary: str, body: str) -> str:
    """What shows once its summary is clicked."""
    # Without the empty lines the body would be HTML.
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"

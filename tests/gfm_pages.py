"""Markdown as GitHub shows it: rendered by a parser of its dialect, with what its pages make of rendered text."""

import re
from html.parser import HTMLParser

import pytest

markdown_it = pytest.importorskip("markdown_it")

HOSTILE = [
    "a | b || c \\| d \\",
    "`code` ``more`` ` | `",
    "**bold** _em_ ~~gone~~ __init__ *",
    "<img src=https://e.example/x onerror=alert(1)>",
    "</details></td></table><script>alert(1)</script>",
    "<!-- gone",
    "<details open><summary>x",
    "![x](https://e.example/x.png) [y](javascript:alert(1)) [z]: https://e.example",
    "ask @octocat and @acme/team, a@b.example",
    "closes #12, GH-3 and acme/x#4",
    "https://e.example www.e.example ftp://e.example <https://e.example>",
    "&lt;b&gt; &amp; &#64;octocat &copy;",
    "one\nline\r\n\r\n# heading",
    "abc \u202egnp.exe \u2066x\u2069 \u200bzero\x1b[31mred\x00",
    "# heading",
    "- item",
    "1. item",
    "+ item",
    "---",
    "===",
    "> [!WARNING]",
    "```\nfence",
    "    indented",
    "$x$ $$y$$ :warning: [^1]",
    "[ ] task",
    "| a |\n| --- |\n| b |",
    "::error file=x::y",
    "\\",
    "|",
]
# In the text of a page, but for code, GitHub makes links of these, and tells those who are named.
REFERENCE = re.compile(
    r"(?:https?|ftp)://\S+|\bwww\.\S+|[\w.+-]+@[\w-]+\.[\w.]+|@[\w-]+(?:/[\w-]+)?|(?:[\w-]+/[\w-]+)?#\w+|\bGH-\d+",
    re.IGNORECASE,
)


class Page(HTMLParser):
    """What a browser would show of some HTML: its tags, attributes, text, the cells of its tables, and references."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.opened: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.cells: list[list[str]] = []
        self.references: list[str] = []
        self._inside: list[str] = []
        self._run = ""
        self.feed(html)
        self.close()
        self._end_run()

    @property
    def tags(self) -> set[str]:
        return set(self.opened)

    def count(self, tag: str) -> int:
        return self.opened.count(tag)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._end_run()
        self.opened.append(tag)
        self._inside.append(tag)
        self.attributes |= {name for name, value in attrs if (name, value) != ("style", "text-align:right")}
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._end_run()
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass

    def handle_comment(self, data: str) -> None:
        self.opened.append("!--")

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self._inside):
            self.cells[-1][-1] += data
        if "code" not in self._inside:
            self._run += data

    def _end_run(self) -> None:
        self.references += [found.rstrip(",") for found in REFERENCE.findall(self._run)]
        self._run = ""


def page(markdown: str) -> Page:
    """Markdown as a page, raw HTML and all."""
    parser = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return Page(parser.render(markdown))

"""Text that others wrote, made fit to be shown: it steers no terminal and no CI runner, and carries no secret."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

INSTEAD = "\N{REPLACEMENT CHARACTER}"
HIDDEN = "***"


# GitHub's runner obeys a line that begins with `::`, and `##[` anywhere in one; Azure's and TeamCity's obey `##word[`.
COMMAND = re.compile(r"^(\s*):(?=:)|#(?=#\w*\[)")
SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|PAT|AUTH)(_|\d|$)|SECRET|PASSW|PASSPHRASE|(^|_)(PASS|PWD)$|CREDENTIAL"
    r"|(API|ACCESS|PRIVATE|SIGNING)_?KEY|_KEY$",
    re.IGNORECASE,
)
NAME_OF_A_PLACE = re.compile(r"_(FILE|PATH|DIR|DIRECTORY|SOCK)$|^(OLD)?PWD$", re.IGNORECASE)
SHORTEST = 6  # a shorter value is a word such as `true`, which would be taken out of every text
LINE_OF_A_KEY = 16
SECRETS = (
    (re.compile(r"://[^\s/@:]*:[^\s/@]*@|://[^\s/@:]{20,}@"), f"://{HIDDEN}@"),
    (re.compile(r"\b(hf_|gh[a-z]_|github_pat_|glpat-)[\w-]{20,}"), HIDDEN),
    (re.compile(r"(\bAuthorization['\"]?\s*[:=]\s*['\"]?\w+\s+)[^\s'\"]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"(\bBearer\s+)[\w.~+/*-]{8,}=*"), rf"\1{HIDDEN}"),
    (
        re.compile(
            r"([?&](?:\w{0,40}token|\w{0,40}secret|password|passwd|api[_-]?key|key|sig|signature|key-pair-id"
            r"|x-(?:amz|goog)-(?:signature|credential|security-token))=)[^\s&#'\"<>]+",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
)


def printable(text: str, *, lines: bool = False) -> str:
    """The text without what could steer whoever shows it; with `lines`, line ends stay.

    Control and invisible characters become U+FFFD, every other space a plain one, and what a CI runner would take for
    a command is broken. Characters are replaced one by one, so that columns stay aligned.
    """
    if lines:
        return "\n".join(printable(line) for line in text.replace("\r\n", "\n").split("\n"))
    return COMMAND.sub(rf"\g<1>{INSTEAD}", visible(text))


def visible(text: str, *, lines: bool = False) -> str:
    """The text as `printable` leaves it, but for what a CI runner would obey: for where no runner reads."""
    if lines:
        return "\n".join(map(visible, text.replace("\r\n", "\n").split("\n")))
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if _is_space(c) else INSTEAD for c in text)


def width(text: str) -> int:
    """How many columns of a terminal a printable text takes: East Asian wide characters two (UAX 11), marks none."""
    return sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _is_space(character: str) -> bool:
    return character == "\t" or unicodedata.category(character) == "Zs"


def redacted(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """The text without secrets: values of variables whose name says that they are secret, and what looks like a token.

    A key of several lines is also found line by line, for texts that show only a part of it.
    """
    for secret in sorted(set(_secrets(environ)), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    return text


def _secrets(environ: Mapping[str, str]) -> Iterator[str]:
    for name, value in environ.items():
        if SECRET_NAME.search(name) and not NAME_OF_A_PLACE.search(name):
            yield from _long(SHORTEST, [value.strip()])
            yield from _long(LINE_OF_A_KEY, value.split("\n"))


def _long(least: int, texts: Iterable[str]) -> Iterator[str]:
    return (text.strip() for text in texts if len(text.strip()) >= least)


def safe(text: str, limit: int = 500, *, lines: bool = False) -> str:
    """`redacted`, `printable`, and not longer than `limit` characters."""
    shown = printable(redacted(text), lines=lines)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"


def quoted(text: str) -> str:
    """A text of several lines, such as the end of a log, that cannot be taken for anything but a quotation."""
    return "\n".join(f"| {line}" for line in printable(redacted(text), lines=True).split("\n"))


@dataclass(frozen=True)
class Line:
    """A line for the terminal; `markup` are pytest's names for colours."""

    text: str
    title: bool = False
    markup: dict[str, bool] = field(default_factory=dict)

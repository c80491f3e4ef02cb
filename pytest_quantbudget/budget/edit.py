"""Replaces single values in a YAML text and leaves every other byte of the text as it is."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pytest_quantbudget.budget.yaml import MERGE, parse
from pytest_quantbudget.core import problems
from pytest_quantbudget.core.problems import BudgetError, Marked

Keys = tuple[str, ...]


class Unplaced(Exception):
    """A value cannot be replaced; the message says why."""


@dataclass(frozen=True)
class Place:
    """The place of a value: the keys that lead to it, its first character and the one after it, quotes included.

    Characters are counted, not bytes: a byte-order mark is one.
    """

    keys: Keys
    start: int
    end: int


class Document:
    """A YAML text and the places of its values, as PyYAML's composer marks them.

    Raises BudgetError for a text that is no budget file's; `file` names it there.
    """

    def __init__(self, text: str, file: Path) -> None:
        self.text, self.file = text, file
        self.values = parse(text, file)  # first: it refuses what would take long
        self.root = yaml.compose(text, Loader=yaml.SafeLoader)
        self.references = collections.Counter(map(id, _children(self.root)))

    def place(self, keys: Keys) -> Place:
        """The place of the value that `keys` lead to.

        Where they lead to a mapping of values by device, `keys` end with one of its patterns; where they lead to a
        value itself, `*` may follow. Raises Unplaced where the value comes from elsewhere, or is used elsewhere too.
        """
        node: Any = self.root
        for number, key in enumerate(keys):
            if isinstance(node, yaml.ScalarNode) and keys[number:] == ("*",):
                keys = keys[:number]
                break
            node = self._entry(node, key)
            if self.references[id(node)] > 1:
                raise Unplaced("it has an anchor, and an alias uses it elsewhere too")
        start, end = node.start_mark.index, node.end_mark.index
        if not isinstance(node, yaml.ScalarNode) or node.style in ("|", ">") or self.text[start] in "&!":
            raise Unplaced("it carries an anchor or a tag, or is a block of text")
        return Place(keys, start, end)

    def _entry(self, node: Any, key: str) -> yaml.Node:
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        for name, value in entries:
            if name.value == key and name.tag != MERGE:
                return value  # type: ignore[no-any-return]
        if any(name.tag == MERGE for name, _ in entries):
            raise Unplaced("it comes from a merge key (`<<`), and others may use it too")
        raise Unplaced(f"it is not written in {problems.display_path(self.file)} itself")

    def replaced(self, news: Mapping[Place, str]) -> str:
        """The text with each value replaced by a number or a plain text; a text gets the quotes of the value before it.

        The result is read again. Raises Unplaced where anything but these values would have changed.
        """
        text, expected = self.text, self.values.plain
        for place, new in sorted(news.items(), key=lambda item: -item[0].start):
            quote = text[place.start] if text[place.start] in "'\"" and isinstance(yaml.safe_load(new), str) else ""
            text = f"{text[: place.start]}{quote}{new}{quote}{text[place.end :]}"
            _put(expected, place.keys, yaml.safe_load(new))
        try:
            edited: Marked | None = parse(text, self.file)
        except BudgetError:
            edited = None
        if edited is None or edited.plain != expected:
            raise Unplaced("another value would change with it")
        return text


def _children(root: yaml.Node | None) -> Iterator[yaml.Node]:
    """Every node once for each place where it is used; what an alias names is used more than once."""
    stack, seen = [root] if root is not None else [], set()
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        parts: list[Any] = node.value if isinstance(node, yaml.CollectionNode) else []
        below = [part for entry in parts for part in (entry if isinstance(entry, tuple) else (entry,))]
        yield from below
        stack += below


def _put(values: Any, keys: Keys, new: object) -> None:
    for key in keys[:-1]:
        values = values[key]
    values[keys[-1]] = new

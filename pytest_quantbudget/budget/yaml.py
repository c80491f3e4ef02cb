"""Reads YAML with the file and line of every value, refuses duplicate keys, and merges the files that `extends` names.

`yaml.safe_load` drops line numbers, and lets the last of two equal keys win without a word. Values are the same here.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import yaml

from pytest_quantbudget.core import files
from pytest_quantbudget.core.budget import Source
from pytest_quantbudget.core.files import path_from
from pytest_quantbudget.core.problems import ANYWHERE, BudgetError, Marked, Problem, at

MAX_BYTES = 200_000  # PyYAML takes two seconds for that much
MAX_DEPTH = 16
MAX_NODES = 20_000
TOO_MUCH = f"more than {MAX_DEPTH} levels or {MAX_NODES:,} keys and values"
MAX_DIGITS = 80  # of a number in any base, so that it can be read back from a report
MAX_EXTENDED = 16


class _Composer(yaml.composer.Composer):
    """Composes nodes as `yaml.safe_load` does, but counts them: neither the text nor what it repeats may grow large."""

    loader: ClassVar[Any]  # PyYAML's class below this one

    def __init__(self, text: str, file: Path) -> None:
        self.loader.__init__(self, text)
        self.anchors: dict[Any, yaml.Node] = {}
        self.file = file
        self.depth = self.written = self.repeated = 0
        self.flat: set[yaml.Node] = set()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As PyYAML composes it. Raises BudgetError where there are too many nodes, or too deep ones."""
        self.written += 1
        self.depth += 1
        event = self.peek_event()  # type: ignore[attr-defined]
        self.check(event.start_mark.line + 1, self.depth - 1)
        if isinstance(event, yaml.ScalarEvent) and event.anchor is None:
            # What PyYAML does after some questions, for nearly all nodes.
            node: yaml.Node | None = self.compose_scalar_node(None)  # type: ignore[arg-type]
        else:
            node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def check(self, line: int, depth: int) -> None:
        """Raise BudgetError where the counts or the depth are larger than a budget may have."""
        if depth > MAX_DEPTH or self.written > MAX_NODES or self.repeated > MAX_NODES:
            raise BudgetError(Problem(self.file, line, TOO_MUCH))

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge `<<: *base` as safe_load does, once a node; overridden entries are dropped, so merges cannot grow."""
        if node in self.flat:
            return
        self.flat.add(node)
        _refuse_duplicates(node, self.file)
        direct = [(key, value) for key, value in node.value if key.tag != MERGE]
        if len(direct) == len(node.value):
            return
        sources = [source for key, value in node.value if key.tag == MERGE for source in _merge_sources(value)]
        node.value = direct
        entries = {}
        for source in reversed(list(dict.fromkeys(sources))):  # the first one wins
            self.flatten_mapping(source)
            self.repeated += len(source.value)
            self.check(node.start_mark.line + 1, 0)
            entries.update({key.value: (key, value) for key, value in source.value})
        node.value = list({**entries, **{key.value: (key, value) for key, value in direct}}.values())


class _PythonLoader(_Composer, yaml.SafeLoader):
    """Written in Python, and always there. The words and lines of its errors are those that users see."""

    loader = yaml.SafeLoader

    def process_directives(self) -> Any:
        """`%TAG` would let a few characters of each node stand for a text of any length."""
        directives = super().process_directives()  # type: ignore[no-untyped-call]
        if self.tag_handles != self.DEFAULT_TAGS:
            raise BudgetError(Problem(self.file, 0, "`%TAG` is not allowed in a budget"))
        return directives


# What the parsers read differently: tabs, byte-order marks, tags, a comment behind `|`, and directives.
READ_OTHERWISE = re.compile("[\t\ufeff!]|[|>]\\S*#|(?:^|[\r\x85\u2028\u2029])%", re.MULTILINE)
_CLoader: type[_Composer] | None = None
if yaml.__with_libyaml__:

    class _LibyamlLoader(_Composer, yaml.composer.Composer, yaml.CSafeLoader):
        """Written in C: several times as fast, for the same nodes."""

        loader = yaml.CSafeLoader

    _CLoader = _LibyamlLoader


MERGE = "tag:yaml.org,2002:merge"


def _merge_sources(node: yaml.Node) -> Sequence[yaml.MappingNode]:
    """The mappings that a merge key names: one, or a list of them."""
    sources: list[Any] = node.value if isinstance(node, yaml.SequenceNode) else [node]
    for source in sources:
        if not isinstance(source, yaml.MappingNode):
            message = f"expected a mapping for merging, but found {source.id}"
            raise yaml.constructor.ConstructorError(None, None, message, source.start_mark)
    return sources


def read_yaml(path: Path) -> Marked:
    """The file as marked nodes.

    Raises BudgetError where the file is missing, no regular file, too large, not UTF-8, not YAML, nested too deeply,
    or holds too many values or a key twice in one mapping.
    """
    try:
        raw = files.read(path, MAX_BYTES)
        text = raw.decode("utf-8")
    except OSError as error:
        raise BudgetError(Problem(path, 0, f"cannot be read: {error.strerror or error}")) from None
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise BudgetError(Problem(path, line, "is not UTF-8 text")) from None
    except files.TooLarge as error:
        raise BudgetError(Problem(path, 0, f"is {error}; a budget has at most {MAX_BYTES:,}")) from None
    return _parsed(text, path)


@functools.lru_cache(maxsize=64)
def _parsed(text: str, path: Path) -> Marked:
    # A file is looked at before it is read as a budget, and one that others extend is read for each of them.
    return parse(text, path)


def parse(text: str, path: Path) -> Marked:
    """The text of a file as marked nodes; see `read_yaml`."""
    if _CLoader is not None and not READ_OTHERWISE.search(text):
        # What it refuses, the other parser reads again, and refuses in the words and at the lines that users know.
        with contextlib.suppress(yaml.YAMLError, BudgetError, ValueError, OverflowError, RecursionError):
            root = _parse(_CLoader(text, path))
            if isinstance(root.value, dict):
                return root
    try:
        loader = _PythonLoader(text, path)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BudgetError(Problem(path, line, f"character {chr(error.character)!r} is not allowed in YAML")) from None
    try:
        return _parse(loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        message = error.problem or str(error)
        if "\\t" in message:
            message = "a tab cannot indent YAML; use spaces"
        raise BudgetError(Problem(path, line, message)) from None
    except (ValueError, OverflowError):  # `"\\U00110000"`
        raise BudgetError(Problem(path, loader.line + 1, "an escape in quotes is not a valid character")) from None
    except RecursionError:  # a chain of merges
        raise BudgetError(Problem(path, 0, TOO_MUCH)) from None


def _parse(loader: Any) -> Marked:
    root = loader.get_single_node()
    if root is None:
        raise BudgetError(Problem(loader.file, 0, "is empty; a budget needs at least `model` and `methods`"))
    return _mark(loader, root, _place(loader.file, root), 0)


def _place(file: Path, first: yaml.Node, last: yaml.Node | None = None) -> Marked:
    """Where a node stands, from its key, where it has one, to the end of a value on the same line; without a value."""
    start, end = first.start_mark, first.end_mark
    if isinstance(last, yaml.ScalarNode) and last.end_mark.line == start.line and last.end_mark.index > end.index:
        end = last.end_mark
    columns = (start.column, end.column) if end.line == start.line else ANYWHERE
    return Marked(None, file, start.line + 1, columns)


def _mark(loader: _Composer, node: yaml.Node, place: Marked, depth: int) -> Marked:
    loader.repeated += 1
    loader.check(place.line, depth)
    if isinstance(node, yaml.ScalarNode):
        return replace(place, value=_scalar(loader, node, place))
    if node.tag.rpartition(":")[2] not in ("map", "seq"):
        raise BudgetError(at(place, f"the tag {node.tag!r} is not allowed in a budget"))
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        entries: dict[str, Marked] = {}
        for key, value in node.value:
            entries[key.value] = _mark(loader, value, _place(loader.file, key, value), depth + 1)
        return replace(place, value=entries)
    items = (_mark(loader, item, _place(loader.file, item), depth + 1) for item in node.value)
    return replace(place, value=tuple(items))


def _scalar(loader: Any, node: yaml.ScalarNode, place: Marked) -> object:
    kind = node.tag.rpartition(":")[2]
    if not node.style and EXPONENT.fullmatch(node.value):
        kind = "float"
    if kind in ("int", "float") and len(node.value) > MAX_DIGITS:
        raise BudgetError(at(place, f"the number that begins with {node.value[:60]!r} is too long"))
    ambiguous = _ambiguous(node, kind)
    if ambiguous:
        raise BudgetError(at(place, f"{node.value!r} is ambiguous: {ambiguous}, or put it in quotes"))
    try:
        if kind == "float" and kind not in node.tag:
            value: object = float(node.value.replace("_", ""))
        else:
            value = node.value if kind == "str" else loader.construct_object(node)
    except (ValueError, LookupError, AttributeError, ArithmeticError):  # `2026-13-45` resolves to a date and is none
        raise BudgetError(at(place, f"{node.value[:60]!r} is not a valid {kind}")) from None
    if isinstance(value, str) and not _is_unicode(value):
        raise BudgetError(at(place, f"{node.value[:60]!r} is not a valid {kind}"))
    return value


# A number in YAML 1.2 and in JSON, and text in YAML 1.1, which wants a point and a sign.
EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)[eE][-+]?[0-9]+")
LEADING_ZERO = re.compile(r"[-+]?0[0-9_]*[0-9]")
BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")


def _ambiguous(node: yaml.ScalarNode, kind: str) -> str:
    """What a scalar that YAML's versions read differently may mean; empty for all others."""
    if node.style or kind not in ("int", "float", "str"):
        return ""
    if LEADING_ZERO.fullmatch(node.value):
        return "YAML 1.1 reads digits behind a 0 in base 8, and YAML 1.2 in base 10; write the number without the 0"
    if BASE_60.fullmatch(node.value):
        return "YAML 1.1 reads a number in base 60, and YAML 1.2 text; write a number without colons"
    return ""


def _refuse_duplicates(node: yaml.MappingNode, file: Path) -> None:
    """Raise BudgetError where a key is no plain text, or is written twice in the mapping."""
    lines: dict[str, int] = {}
    for key, value in node.value:
        place = _place(file, key, value)
        if not isinstance(key, yaml.ScalarNode) or not _is_unicode(key.value):
            raise BudgetError(at(place, "a key must be plain text"))
        if key.value in lines:
            message = f"{key.value!r} is written here and on line {lines[key.value]}; remove one of them"
            raise BudgetError(at(place, message))
        lines[key.value] = place.line


def _is_unicode(text: str) -> bool:
    """Whether it holds no half of a surrogate pair, which YAML can escape and no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# A fine-tune has other weights: what names the parent's weights does not follow it.
OF_THE_MODEL = ("revision", "checkpoint", "adapter", "merge")


def read_extended(path: Path, roots: files.Roots = files.EVERYWHERE) -> Marked:
    """The file with everything that it `extends` merged under it, nearest file first.

    Mappings merge key by key, anything else is replaced, and `null` takes an inherited entry out. Where a file names a
    `model` of its own, the inherited `revision`, `checkpoint`s and `adapter`s stay behind: they belong to the parent's.
    Raises BudgetError, also for a cycle, and for a file outside `roots`, which is not opened.
    """
    chain = list(_ancestry(path, roots))
    merged = chain[-1]
    for child in reversed(chain[:-1]):
        own, old = child.entries.get("model"), merged.entries.get("model")
        if own is not None and old is not None and own.value != old.value:
            merged = _without(merged, OF_THE_MODEL)
        merged = _merge(merged, child)
    return merged


def sources(root: Marked) -> tuple[Source, ...]:
    """The texts of all files that merged nodes come from, that of the topmost first. Raises OSError."""
    found: dict[Path, None] = {}
    nodes = [root]
    while nodes:
        node = nodes.pop()
        found.setdefault(node.file)
        nodes += reversed((*node.entries.values(), *node.items))
    return tuple(Source(str(path), files.read(path, MAX_BYTES).decode("utf-8", "replace")) for path in found)


def _ancestry(path: Path, roots: files.Roots) -> Iterator[Marked]:
    seen: list[Path] = []
    node = read_yaml(path)
    while True:
        seen.append(node.file.resolve())
        yield node
        parent = node.entries.get("extends")
        if parent is None:
            return
        target = _extended(parent, roots)
        if target.resolve() in seen:
            names = " -> ".join(p.name for p in [*seen, target.resolve()])
            raise BudgetError(at(parent, f"`extends` runs in a circle: {names}"))
        if len(seen) == MAX_EXTENDED:
            raise BudgetError(at(parent, f"`extends` joins more than {MAX_EXTENDED} files"))
        node = read_yaml(target)


def _extended(parent: Marked, roots: files.Roots) -> Path:
    """The file that an `extends` names: from its own folder, or else, by its bare name, one of the shipped budgets.

    A file that is named like a shipped budget means that one, and not itself.
    """
    if not isinstance(parent.value, str):
        raise BudgetError(at(parent, "`extends` names one budget file"))
    file = parent.file.resolve()
    outside = roots.refuse(file.parent, parent.value)
    if outside is not None:
        raise BudgetError(at(parent, f"`extends`: {outside}"))
    target = path_from(file.parent, parent.value)
    shipped = {path.name: path for path in sorted(files.SHIPPED_BUDGETS.glob("*.yaml"))}
    own_name = parent.value == file.name
    if target.is_file() and not (own_name and parent.value in shipped):
        return target
    if parent.value in shipped:
        return shipped[parent.value]
    names = target.parent.glob("*.y*ml") if roots.hold(target.parent) else ()
    near = ", ".join(sorted(p.name for p in names if p != file)[:5])
    hint = f"; there is {near}" if near else ""
    why = f"which is not a file{hint}; the package ships {', '.join(shipped)}"
    raise BudgetError(at(parent, f"`extends` names {parent.value!r}, {why}"))


def _without(node: Marked, names: tuple[str, ...]) -> Marked:
    if not isinstance(node.value, dict):
        return node
    kept = {key: _without(value, names) for key, value in node.value.items() if key not in names}
    return replace(node, value=kept)


def _merge(base: Marked, over: Marked) -> Marked:
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(base.value)
    for key, value in over.value.items():
        if value.value is None and key in merged:
            del merged[key]
        else:
            merged[key] = _merge(merged[key], value) if key in merged else value
    return replace(over, value=merged)

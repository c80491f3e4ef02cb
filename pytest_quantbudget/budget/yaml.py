"""YAML with line numbers: safe values, duplicate keys refused, `extends` merged, every node knowing where it stands.

PyYAML's safe constructor drops positions and lets a later duplicate key win in silence; both would let a budget mean
something else than its author reads. Values are those of `yaml.safe_load`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from pytest_quantbudget.core import files
from pytest_quantbudget.core.files import path_from
from pytest_quantbudget.core.problems import BudgetError, Marked, Problem

MAX_BYTES = 200_000  # PyYAML takes two seconds for that much
MAX_DEPTH = 16
MAX_NODES = 20_000
TOO_MUCH = f"more than {MAX_DEPTH} levels or {MAX_NODES:,} keys and values"
MAX_DIGITS = 80  # of a number in any base, so that `records.read_json` takes it back from a report
MAX_EXTENDED = 16


class _Loader(yaml.SafeLoader):
    """Safe loading, one node at a time; keeps count, so that neither what is written nor what it repeats explodes."""

    def __init__(self, text: str, file: Path) -> None:
        super().__init__(text)
        self.file = file
        self.depth = 0
        self.written = 0
        self.repeated = 0
        self.flat: set[yaml.Node] = set()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As safe_load does it, but it stops where there is too much."""
        self.written += 1
        self.depth += 1
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self.check(event.start_mark.line + 1, self.depth - 1)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def process_directives(self) -> Any:
        """`%TAG` would let a few characters of each node stand for a text of any length."""
        found = super().process_directives()  # type: ignore[no-untyped-call]
        if self.tag_handles != self.DEFAULT_TAGS:
            raise BudgetError(Problem(self.file, 0, "`%TAG` has no place in a budget"))
        return found

    def check(self, line: int, depth: int) -> None:
        """Raise BudgetError where the counts or the depth are past what a budget may have."""
        if depth > MAX_DEPTH or max(self.written, self.repeated) > MAX_NODES:
            raise BudgetError(Problem(self.file, line, TOO_MUCH))

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """`<<: *base` as safe_load does it, once a node; overridden entries go, so that merges cannot grow."""
        if node in self.flat:
            return
        self.flat.add(node)
        _refuse_duplicates(node, self.file)
        own = [(key, value) for key, value in node.value if key.tag != MERGE]
        sources = [source for key, value in node.value if key.tag == MERGE for source in _merged(value)]
        node.value = own
        entries = {}
        for source in reversed(list(dict.fromkeys(sources))):  # the first one wins
            self.flatten_mapping(source)
            self.repeated += len(source.value)
            self.check(node.start_mark.line + 1, 0)
            entries.update({key.value: (key, value) for key, value in source.value})
        node.value = list({**entries, **{key.value: (key, value) for key, value in own}}.values())


MERGE = "tag:yaml.org,2002:merge"


def _merged(node: yaml.Node) -> Sequence[yaml.MappingNode]:
    """What a merge key names: a mapping, or a list of mappings."""
    nodes: list[Any] = node.value if isinstance(node, yaml.SequenceNode) else [node]
    for found in nodes:
        if not isinstance(found, yaml.MappingNode):
            message = f"expected a mapping for merging, but found {found.id}"
            raise yaml.constructor.ConstructorError(None, None, message, found.start_mark)
    return nodes


def read(path: Path) -> Marked:
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
        raise BudgetError(Problem(path, 0, f"line {line} is not UTF-8 text")) from None
    except files.TooLarge as error:
        raise BudgetError(Problem(path, 0, f"is {error}; a budget has at most {MAX_BYTES:,}")) from None
    return parse(text, path)


def parse(text: str, path: Path) -> Marked:
    """The text of a file as marked nodes; see `read`."""
    try:
        loader = _Loader(text, path)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BudgetError(Problem(path, line, f"character {chr(error.character)!r} is not allowed in YAML")) from None
    try:
        root = loader.get_single_node()
        if root is None:
            raise BudgetError(Problem(path, 0, "is empty; a budget names at least `model` and `methods`"))
        return _mark(loader, root, path, root.start_mark.line + 1, 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        message = error.problem or str(error)
        if "\\t" in message:
            message = "a tab cannot indent YAML; use spaces"
        raise BudgetError(Problem(path, line, message)) from None
    except (ValueError, OverflowError):  # `"\\U00110000"`
        raise BudgetError(Problem(path, loader.line + 1, "an escape in quotes names no character")) from None
    except RecursionError:  # a chain of merges
        raise BudgetError(Problem(path, 0, TOO_MUCH)) from None


def _mark(loader: _Loader, node: yaml.Node, file: Path, line: int, depth: int) -> Marked:
    loader.repeated += 1
    loader.check(line, depth)
    if isinstance(node, yaml.CollectionNode) and node.tag.rpartition(":")[2] not in ("map", "seq"):
        raise BudgetError(Problem(file, line, f"the tag {node.tag!r} has no place in a budget"))
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        entries: dict[str, Marked] = {}
        for key, value in node.value:
            at = key.start_mark.line + 1
            entries[_key(key, file)] = _mark(loader, value, file, at, depth + 1)
        return Marked(entries, file, line)
    if isinstance(node, yaml.SequenceNode):
        items = (_mark(loader, item, file, item.start_mark.line + 1, depth + 1) for item in node.value)
        return Marked(tuple(items), file, line)
    return Marked(_scalar(loader, node, line), file, line)


def _scalar(loader: _Loader, node: yaml.Node, line: int) -> object:
    kind = node.tag.rpartition(":")[2]
    if kind in ("int", "float") and len(node.value) > MAX_DIGITS:
        raise BudgetError(Problem(loader.file, line, f"{node.value[:60]!r} is the beginning of too long a number"))
    try:
        value = loader.construct_object(node)
        if isinstance(value, str):
            value.encode()  # half a surrogate pair can be escaped, and written nowhere
    except (ValueError, LookupError, AttributeError, ArithmeticError):  # `2026-13-45` resolves to a date and is none
        raise BudgetError(Problem(loader.file, line, f"{node.value[:60]!r} is no {kind}")) from None
    return value


def _key(node: yaml.Node, file: Path) -> str:
    if not isinstance(node, yaml.ScalarNode) or any("\ud800" <= c <= "\udfff" for c in node.value):
        raise BudgetError(Problem(file, node.start_mark.line + 1, "a key must be plain text"))
    return str(node.value)


def _refuse_duplicates(node: yaml.MappingNode, file: Path) -> None:
    seen: dict[str, int] = {}
    for key_node, _ in node.value:
        key, line = _key(key_node, file), key_node.start_mark.line + 1
        if key in seen:
            raise BudgetError(Problem(file, line, f"{key!r} stands here and on line {seen[key]}; one of them must go"))
        seen[key] = line


# A fine-tune has other weights: what names the parent's weights does not follow it.
OF_THE_MODEL = ("revision", "checkpoint")


def read_extended(path: Path, roots: files.Roots | None = None) -> Marked:
    """The file with everything that it `extends` merged under it, nearest file first.

    Mappings merge key by key, anything else is replaced, and `null` takes an inherited entry out. Where a file names a
    `model` of its own, the inherited `revision` and `checkpoint`s stay behind: they belong to the parent's weights.
    Raises BudgetError, also for a cycle, and for a file outside `roots`, which is not opened.
    """
    chain = list(_ancestry(path, roots or files.Roots(None)))
    merged = chain[-1]
    for child in reversed(chain[:-1]):
        own, old = child.entries.get("model"), merged.entries.get("model")
        if own is not None and old is not None and own.value != old.value:
            merged = _without(merged, OF_THE_MODEL)
        merged = _merge(merged, child)
    return merged


def _ancestry(path: Path, roots: files.Roots) -> Iterator[Marked]:
    seen: list[Path] = []
    node = read(path)
    while True:
        seen.append(node.file.resolve())
        yield node
        parent = node.entries.get("extends")
        if parent is None:
            return
        target = _extended(parent, roots)
        if target.resolve() in seen:
            names = " -> ".join(p.name for p in [*seen, target.resolve()])
            raise BudgetError(Problem(parent.file, parent.line, f"`extends` runs in a circle: {names}"))
        if len(seen) == MAX_EXTENDED:
            raise BudgetError(Problem(parent.file, parent.line, f"`extends` joins more than {MAX_EXTENDED} files"))
        node = read(target)


def _extended(parent: Marked, roots: files.Roots) -> Path:
    """The file that an `extends` names."""
    if not isinstance(parent.value, str):
        raise BudgetError(Problem(parent.file, parent.line, "`extends` names one budget file"))
    outside = roots.refuse(parent.file.parent, parent.value)
    if outside is not None:
        raise BudgetError(Problem(parent.file, parent.line, f"`extends`: {outside}"))
    target = path_from(parent.file.parent, parent.value)
    if not target.is_file():
        names = target.parent.glob("*.y*ml") if roots.hold(target.parent) else ()
        near = ", ".join(sorted(p.name for p in names if p != parent.file)[:5])
        hint = f"; there is {near}" if near else ""
        raise BudgetError(Problem(parent.file, parent.line, f"`extends` names {parent.value!r}, not a file{hint}"))
    return target


def _without(node: Marked, names: tuple[str, ...]) -> Marked:
    if not isinstance(node.value, dict):
        return node
    kept = {key: _without(value, names) for key, value in node.value.items() if key not in names}
    return Marked(kept, node.file, node.line)


def _merge(base: Marked, over: Marked) -> Marked:
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(base.value)
    for key, value in over.value.items():
        if value.value is None and key in merged:
            del merged[key]
        else:
            merged[key] = _merge(merged[key], value) if key in merged else value
    return Marked(merged, over.file, over.line)

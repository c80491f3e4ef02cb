"""YAML with line numbers: safe values, duplicate keys refused, `extends` merged, every node knowing where it stands.

PyYAML's safe constructor drops positions and lets a later duplicate key win in silence; both would let a budget mean
something else than its author reads. Values are those of `yaml.safe_load`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1_000_000
MAX_DEPTH = 16
MAX_NODES = 50_000
MAX_CHARACTERS = 2 * MAX_BYTES  # of all values together, each counted where an alias repeats it
MAX_MERGED = 100  # mappings that one `<<` takes in
MAX_NUMBER = 80  # characters; with 100 digits or fewer, a number can be multiplied, printed and read back
MAX_PROBLEMS = 100
MAX_MESSAGE = 2_000


@dataclass(frozen=True)
class Marked:
    """A YAML value with the file and line it was written on: for a mapping's entry, the line of its key."""

    value: object
    file: Path
    line: int

    @property
    def entries(self) -> Mapping[str, Marked]:
        """The entries of a mapping; empty for anything else."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> tuple[Marked, ...]:
        """The items of a list; empty for anything else."""
        return self.value if isinstance(self.value, tuple) else ()

    @property
    def plain(self) -> object:
        """The value without positions, as `yaml.safe_load` would give it."""
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        if isinstance(self.value, tuple):
            return [node.plain for node in self.value]
        return self.value


@dataclass(frozen=True)
class Problem:
    """One mistake in one place; `line` is 0 where it is the file as a whole."""

    file: Path
    line: int
    message: str

    def __str__(self) -> str:
        """`FILE:LINE: message`, the user's own line under it."""
        where = f"{display_path(self.file)}:{self.line}" if self.line else display_path(self.file)
        quoted = _line_of(self.file, self.line)
        message = self.message if len(self.message) <= MAX_MESSAGE else f"{self.message[:MAX_MESSAGE]}..."
        return f"{where}: {message}" + (f"\n    {quoted}" if quoted else "")


class BudgetError(Exception):
    """A budget cannot be used. `problems` holds every mistake that was found, in the order of the file."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass
class Problems:
    """Collects mistakes, so that one run shows all of them."""

    found: list[Problem] = field(default_factory=list)

    def add(self, node: Marked, message: str) -> None:
        """Note a mistake at a node. Raises BudgetError when there are so many that more would help nobody."""
        self.found.append(Problem(node.file, node.line, message))
        if len(self.found) >= MAX_PROBLEMS:
            self.found.append(Problem(node.file, 0, f"has more mistakes than these {MAX_PROBLEMS}"))
            self.raise_any()

    def raise_any(self) -> None:
        """Raise BudgetError if anything was found."""
        if self.found:
            raise BudgetError(*sorted(dict.fromkeys(self.found), key=lambda p: (str(p.file), p.line)))


def display_path(path: Path) -> str:
    """The path as a user would type it from here."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive on Windows
        return str(path)
    return str(path) if relative.startswith(os.pardir) else relative


def path_from(folder: Path, name: str) -> Path:
    """What `name` names, seen from `folder`; nothing where it can be no path (nobody's `~`, too long, a null byte)."""
    try:
        path = folder / Path(name).expanduser()
        path.resolve().exists()
    except (OSError, RuntimeError, ValueError):
        return Path(os.devnull, "nothing")
    return path


def _line_of(file: Path, line: int) -> str:
    if not line:
        return ""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    text = lines[line - 1].strip() if line <= len(lines) else ""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)[:200]


class _Loader(yaml.SafeLoader):
    """Safe loading, one node at a time; keeps count so that nested aliases cannot grow without bound."""

    composed = 0
    nodes = 0
    characters = 0

    def __init__(self, text: str, file: Path) -> None:
        super().__init__(text)
        self.file = file
        self.flat: set[yaml.Node] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """`<<: *base` as safe_load does it, once a node; overridden entries go, so that merges cannot grow either."""
        if node not in self.flat:
            self.flat.add(node)
            _refuse_duplicates(node, self.file)
            _refuse_long_merges(node, self.file)
            own = len(node.value)
            super().flatten_mapping(node)
            node.value = list({key.value: (key, value) for key, value in node.value}.values())
            self.count(node.start_mark.line + 1, 0, max(0, len(node.value) - own), 0)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Composing takes longest: stop as soon as there are too many nodes."""
        self.composed += 1
        if self.composed > MAX_NODES:
            raise BudgetError(Problem(self.file, self.line + 1, f"more than {MAX_NODES:,} values"))
        return super().compose_node(parent, index)

    def process_directives(self) -> Any:
        """`%TAG` would let a few characters of each node stand for a text of any length."""
        found = super().process_directives()  # type: ignore[no-untyped-call]
        if self.tag_handles != self.DEFAULT_TAGS:
            raise BudgetError(Problem(self.file, 0, "`%TAG` has no place in a budget"))
        return found

    def count(self, line: int, depth: int, nodes: int, characters: int) -> None:
        """Refuse what aliases unfold into more than a file could hold without them."""
        self.nodes += nodes
        self.characters += characters
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise BudgetError(Problem(self.file, line, f"more than {MAX_DEPTH} levels or {MAX_NODES:,} values"))
        if self.characters > MAX_CHARACTERS:
            raise BudgetError(Problem(self.file, line, f"aliases repeat more than {MAX_CHARACTERS:,} characters"))


def read(path: Path) -> Marked:
    """The file as marked nodes.

    Raises BudgetError where the file is missing, too large, not UTF-8, not YAML, nested too deeply, or holds a key
    twice in one mapping.
    """
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except OSError as error:
        raise BudgetError(Problem(path, 0, f"cannot be read: {error.strerror or error}")) from None
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise BudgetError(Problem(path, 0, f"line {line} is not UTF-8 text")) from None
    if len(raw) > MAX_BYTES:
        raise BudgetError(Problem(path, 0, f"is {len(raw):,} bytes long; a budget has at most {MAX_BYTES:,}"))
    try:
        # The constructor raises RecursionError from nesting that is deeper than Python's stack before we see it.
        loader = _Loader(text, path)
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
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BudgetError(Problem(path, line, f"character {chr(error.character)!r} is not allowed in YAML")) from None
    except (ValueError, OverflowError):  # `"\\U00110000"`, `%YAML 1.` and 5,000 digits
        raise BudgetError(Problem(path, 0, "an escape or a directive holds a number that is too large")) from None
    except RecursionError:
        raise BudgetError(Problem(path, 0, f"is nested more than {MAX_DEPTH} levels deep")) from None


def _mark(loader: _Loader, node: yaml.Node, file: Path, line: int, depth: int) -> Marked:
    loader.count(line, depth, 1, len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
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
    _refuse_half_characters(node, file, line)
    if node.tag.rpartition(":")[2] in ("int", "float") and len(node.value) > MAX_NUMBER:
        raise BudgetError(Problem(file, line, f"a number of {len(node.value):,} characters; {MAX_NUMBER} are enough"))
    try:
        return Marked(loader.construct_object(node), file, line)
    except (ValueError, LookupError, AttributeError):  # `2026-13-45` resolves to a date and is none
        raise BudgetError(Problem(file, line, f"{node.value[:60]!r} is no {node.tag.rpartition(':')[2]}")) from None


def _key(node: yaml.Node, file: Path) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise BudgetError(Problem(file, node.start_mark.line + 1, "a key must be plain text"))
    _refuse_half_characters(node, file, node.start_mark.line + 1)
    return str(node.value)


def _refuse_half_characters(node: yaml.Node, file: Path, line: int) -> None:
    """Half a surrogate pair, written as an escape, is text that no file and no terminal takes."""
    try:
        node.value.encode()
    except UnicodeEncodeError as error:
        raise BudgetError(Problem(file, line, f"{node.value[error.start]!a} is half a character")) from None


def _refuse_long_merges(node: yaml.MappingNode, file: Path) -> None:
    for key, value in node.value:
        if key.tag.endswith(":merge") and len(value.value) > MAX_MERGED and isinstance(value, yaml.SequenceNode):
            line = key.start_mark.line + 1
            raise BudgetError(
                Problem(file, line, f"`<<` merges {len(value.value):,} mappings; {MAX_MERGED} are enough")
            )


def _refuse_duplicates(node: yaml.MappingNode, file: Path) -> None:
    seen: dict[str, int] = {}
    for key_node, _ in node.value:
        key, line = _key(key_node, file), key_node.start_mark.line + 1
        if key in seen:
            raise BudgetError(Problem(file, line, f"{key!r} stands here and on line {seen[key]}; one of them must go"))
        seen[key] = line


# A fine-tune has other weights: what names the parent's weights does not follow it.
OF_THE_MODEL = ("revision", "checkpoint")


def read_extended(path: Path) -> Marked:
    """The file with everything that it `extends` merged under it, nearest file first.

    Mappings merge key by key, anything else is replaced, and `null` takes an inherited entry out. Where a file names a
    `model` of its own, the inherited `revision` and `checkpoint`s stay behind: they belong to the parent's weights.
    Raises BudgetError, also for a cycle.
    """
    chain = list(_ancestry(path))
    merged = chain[-1]
    for child in reversed(chain[:-1]):
        own, old = child.entries.get("model"), merged.entries.get("model")
        if own is not None and old is not None and own.value != old.value:
            merged = _without(merged, OF_THE_MODEL)
        merged = _merge(merged, child)
    return merged


def _ancestry(path: Path) -> Iterator[Marked]:
    seen: list[Path] = []
    node = read(path)
    while True:
        seen.append(node.file.resolve())
        yield node
        parent = node.entries.get("extends")
        if parent is None:
            return
        if not isinstance(parent.value, str):
            raise BudgetError(Problem(parent.file, parent.line, "`extends` names one budget file"))
        target = path_from(parent.file.parent, parent.value)
        if target.resolve() in seen:
            names = " -> ".join(p.name for p in [*seen, target.resolve()])
            raise BudgetError(Problem(parent.file, parent.line, f"`extends` runs in a circle: {names}"))
        if not target.is_file():
            near = ", ".join(sorted(p.name for p in target.parent.glob("*.y*ml") if p != parent.file)[:5])
            hint = f"; there is {near}" if near else ""
            raise BudgetError(Problem(parent.file, parent.line, f"`extends` names {parent.value!r}, not a file{hint}"))
        node = read(target)


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

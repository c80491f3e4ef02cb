"""A task file of lm-evaluation-harness, seen from outside: what it reaches for, found without running any of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from pytest_quantbudget.core import files
from pytest_quantbudget.core.files import path_from
from pytest_quantbudget.core.problems import Marked, Problem

MAX_BYTES = 2_000_000
LOCAL = ("json", "csv", "text", "parquet", "arrow")  # loaders of `datasets` that read plain local files
# Loaders of `datasets` that unpickle, connect to databases, or look for files by themselves.
OTHER_LOADERS = ("pandas", "sql", "spark", "iceberg", "webdataset", "generator", "cache", "eval", "harbor", "lance")
FindFile = Callable[[Marked, str], Path | None]


@dataclass
class Described:
    """What a task file names.

    `files` are it, the files that it includes, those of its code and its local data, each once, but for those that
    come with the library. `code` says, by `FILE:LINE`, what would run code of the file's author; `metrics` are the
    figures it asks for; `problems` is what is never allowed.
    """

    files: dict[Path, None] = field(default_factory=dict)
    code: list[str] = field(default_factory=list)
    metrics: list[tuple[str, str]] = field(default_factory=list)  # where, name
    datasets: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def is_file(harness: str) -> bool:
    """Whether a budget's `harness` is the path of a task file, and not a task's name."""
    return harness.endswith((".yaml", ".yml"))


def state(path: Path) -> str:
    """A hash of all that a task file names of its own. Raises OSError where something of it cannot be read."""
    return "+".join(map(files.file_hash, described(path).files))


def described(path: Path, find: FindFile | None = None) -> Described:
    """What the task file at `path` names; `find` gives the file that a key names, or notes why it must not.

    Paths are relative to `path`'s folder, those in `include` to the file's own. Raises OSError where a file cannot be
    read; what is no YAML is one of the problems.
    """
    found = Described()
    _Reader(path, find or _found, found).file(path, ())
    return found


def _found(node: Marked, key: str) -> Path:
    entry = node.entries[key]
    return path_from(entry.file.parent, str(entry.value)).resolve()


class _Reader:
    def __init__(self, main: Path, find: FindFile, found: Described) -> None:
        self.main, self.find, self.found = main, find, found
        spec = importlib.util.find_spec("lm_eval")
        self.library = Path(spec.origin).resolve().parent if spec and spec.origin else None

    def file(self, path: Path, above: tuple[Path, ...]) -> None:
        own = self.library is None or not path.is_relative_to(self.library)
        if own:
            self.found.files[path] = None
        try:
            root = yaml.compose(files.read(path, MAX_BYTES).decode("utf-8"), Loader=yaml.SafeLoader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            self.problem(path, 0, f"is not a task file: {' '.join(str(error).split())[:200]}")
            return
        if not isinstance(root, yaml.MappingNode):
            self.problem(path, 0, "is not a task file: it needs keys such as `task` and `dataset_path`")
            return
        keys = {key.value for key, _ in root.value}
        if own and not above and ("group" in keys or not keys & {"task", "include"}):
            self.problem(path, 0, "declares no single `task`; name the tasks of a group one by one")
        local = any(key == "dataset_path" and value.value in LOCAL for _, key, value in _pairs(root))
        for line, key, value in _pairs(root):
            if key == "include":
                for each in _texts(value):
                    self.include(path, line, each, (*above, path))
            elif key == "dataset_path" and isinstance(value, yaml.ScalarNode):
                self.dataset(path, line, value.value)
            elif not own:
                continue
            elif key == "data_files" and local:
                for each in _texts(value):
                    self.data(path, line, each)
            elif key == "metric" and isinstance(value, yaml.ScalarNode):
                self.found.metrics.append((f"{path.name}:{line}", value.value))
            elif key in ("trust_remote_code", "hf_evaluate", "unsafe_code") and not _is_false(value):
                self.found.code.append(f"{path.name}:{line}: `{key}: {value.value}`")
        for node in _nodes(root) if own else ():
            if node.tag.startswith("!") or node.tag.startswith("tag:yaml.org,2002:python/"):
                self.code(path, node)

    def include(self, path: Path, line: int, name: str, above: tuple[Path, ...]) -> None:
        inside = self.library is not None and (path.parent / name).resolve().is_relative_to(self.library)
        included = (path.parent / name).resolve() if inside else self.named(path, line, "include", name)
        if included in above:
            self.problem(path, line, f"includes {name!r}, which includes it")
        elif included is not None:
            self.file(included, above)

    def data(self, path: Path, line: int, name: str) -> None:
        if "://" in name:
            return
        if any(sign in name for sign in "*?["):
            self.problem(path, line, f"data_files: {name!r} is a pattern; name each file")
            return
        found = self.named(self.main, line, "data_files", name)
        if found is not None:
            self.found.files[found] = None

    def dataset(self, path: Path, line: int, name: str) -> None:
        self.found.datasets.append(name)
        here = path_from(self.main.parent, name)
        if name in OTHER_LOADERS:
            self.problem(path, line, f"dataset_path: the loader {name!r} is not one of {', '.join(LOCAL)}")
        elif name not in LOCAL and (name.startswith((".", "/", "~")) or here.exists()):
            self.problem(path, line, f"dataset_path: {name!r} is a local path; name its files as `data_files` of json")

    def code(self, path: Path, node: yaml.Node) -> None:
        line = node.start_mark.line + 1
        self.found.code.append(f"{path.name}:{line}: `{node.tag} {node.value}`")
        module = path.parent / f"{str(node.value).rpartition('.')[0].replace('.', '/')}.py"
        if module.is_file():
            self.found.files[module.resolve()] = None

    def named(self, path: Path, line: int, key: str, name: str) -> Path | None:
        return self.find(Marked({key: Marked(name, path, line)}, path, line), key)

    def problem(self, path: Path, line: int, message: str) -> None:
        self.found.problems.append(Problem(path, line, message))


def _nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """Every node once; what anchors repeat is the same node."""
    seen, rest = {id(root)}, [root]
    while rest:
        node = rest.pop()
        yield node
        inner = node.value if isinstance(node, yaml.SequenceNode) else ()
        if isinstance(node, yaml.MappingNode):
            inner = [each for pair in node.value for each in pair]
        for each in inner:
            if id(each) not in seen:
                seen.add(id(each))
                rest.append(each)


def _pairs(root: yaml.Node) -> Iterator[tuple[int, str, yaml.Node]]:
    """Line, key and value of every entry of every mapping: what a key means here, it means wherever it stands."""
    for node in _nodes(root):
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    yield key.start_mark.line + 1, key.value, value


def _texts(node: yaml.Node) -> list[str]:
    """The texts of a value that is one, or holds them in lists and mappings."""
    nodes = list(_nodes(node))
    keys = {id(key) for each in nodes if isinstance(each, yaml.MappingNode) for key, _ in each.value}
    return [each.value for each in nodes if isinstance(each, yaml.ScalarNode) and id(each) not in keys]


def _is_false(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and str(node.value).lower() in ("false", "no", "off", "null", "~", "")

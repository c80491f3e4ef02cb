"""A task file of lm-evaluation-harness, seen from outside: what it reaches for, found without running any of it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from pytest_quantbudget.core import files
from pytest_quantbudget.core.files import path_from
from pytest_quantbudget.core.problems import Marked, Problem

MAX_BYTES = 2_000_000
LOCAL = ("json", "csv", "text", "parquet", "arrow")  # loaders of `datasets` that read plain local files
# What `dataset_kwargs` may say: which files, and how a local loader reads them; never where it looks or writes.
LOCAL_KEYS = (
    *("data_files", "field", "delimiter", "sep", "column_names", "names", "columns", "encoding", "quotechar"),
    *("skiprows", "keep_linebreaks", "sample_by", "split", "trust_remote_code"),
)
HUB_KEYS = ("data_files", "data_dir", "name", "revision", "split", "streaming", "trust_remote_code")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_FILE = re.compile(r"(hf://datasets/)?[\w@][\w@ .-]*(/[\w@][\w@ .-]*)*")
# Loaders of `datasets` that bring code or reach elsewhere, in releases that are not installed here.
OTHER_LOADERS = ("pandas", "sql", "spark", "iceberg", "webdataset", "generator", "cache", "eval", "harbor", "lance")
# Keys that name data, and what keeps them from being looked at: they have to stand at the top of a file.
OF_DATA = ("dataset_path", "dataset_kwargs", "data_files", "data_dir")
Entry = tuple[Path, int, yaml.Node]
MERGE = "tag:yaml.org,2002:merge"
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
    reader = _Reader(path, find or _found, found)
    reader.data_set(reader.file(path, ()))
    return found


def _found(node: Marked, key: str) -> Path:
    entry = node.entries[key]
    return path_from(entry.file.parent, str(entry.value)).resolve()


class _Reader:
    def __init__(self, main: Path, find: FindFile, found: Described) -> None:
        self.main, self.find, self.found = main, find, found
        spec = importlib.util.find_spec("lm_eval")
        self.library = Path(spec.origin).resolve().parent if spec and spec.origin else None

    def file(self, path: Path, above: tuple[Path, ...]) -> dict[str, Entry]:
        """Read a file and those that it includes; the entries that hold in the end, by their keys."""
        own = self.is_own(path)
        if own:
            self.found.files[path] = None
        try:
            root = yaml.compose(files.read(path, MAX_BYTES).decode("utf-8"), Loader=yaml.SafeLoader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            self.problem(path, 0, f"is not a task file: {' '.join(str(error).split())[:200]}")
            return {}
        if not isinstance(root, yaml.MappingNode):
            self.problem(path, 0, "is not a task file: it needs keys such as `task` and `dataset_path`")
            return {}
        mine = {key: (path, line, value) for line, key, value in _entries(root)}
        if own and not above and not _is_single(mine):
            self.problem(path, 0, "declares no single `task`; name the tasks of a group one by one")
        entries: dict[str, Entry] = {}
        if "include" in mine:
            _, line, value = mine["include"]
            # As the library merges them: of several, the first holds, and the file itself before all.
            for each in reversed(_texts(value)):
                entries |= self.include(path, line, each, (*above, path))
        if own:
            self.own(path, root)
        return entries | mine

    def is_own(self, path: Path) -> bool:
        """Whether a file does not come with the library."""
        return self.library is None or not path.is_relative_to(self.library)

    def own(self, path: Path, root: yaml.MappingNode) -> None:
        """What is looked at wherever it stands in a file that does not come with the library."""
        top = {id(value) for _, key, value in _entries(root) if key in ("dataset_path", "dataset_kwargs")}
        inside = {id(node) for value in _values(root, "dataset_kwargs") for node in _nodes(value)}
        for line, key, value in _pairs(root):
            if key in OF_DATA and id(value) not in top and id(value) not in inside:
                self.problem(path, line, f"{key} has to stand at the top of a task file")
            elif key == "use_prompt":
                self.problem(path, line, "use_prompt reads templates from elsewhere; write them into `doc_to_text`")
            elif key == "metric" and isinstance(value, yaml.ScalarNode):
                self.found.metrics.append((f"{path.name}:{line}", value.value))
            elif key in ("trust_remote_code", "hf_evaluate", "unsafe_code") and not _is_false(value):
                self.found.code.append(f"{path.name}:{line}: `{key}: {value.value}`")
        for node in _nodes(root):
            if node.tag.startswith("!") or node.tag.startswith("tag:yaml.org,2002:python/"):
                self.code(path, node)

    def data_set(self, entries: Mapping[str, Entry]) -> None:
        """What is loaded, once all includes are merged."""
        named, more = entries.get("dataset_path"), entries.get("dataset_kwargs")
        loader = named[2].value if named and isinstance(named[2], yaml.ScalarNode) else ""
        if named is not None:
            path, line, _ = named
            self.found.datasets.append(str(loader))
            if self.is_own(path):
                self.loader(path, line, str(loader))
        # A file of the library may be trusted, but not with the path that another one gives it.
        if more is None or not any(self.is_own(entry[0]) for entry in (named, more) if entry):
            return
        path, line, node = more
        if not isinstance(node, yaml.MappingNode):
            self.problem(path, line, "dataset_kwargs takes keys, such as `data_files`")
            return
        local = loader in LOCAL
        known = LOCAL_KEYS if local else HUB_KEYS
        for at, key, value in _entries(node):
            if key not in known:
                self.problem(path, at, f"dataset_kwargs: {key!r} is not one of {', '.join(known)}")
            elif key in ("data_files", "data_dir"):
                for each in _texts(value):
                    (self.data if local else self.hub_file)(path, at, each)

    def include(self, path: Path, line: int, name: str, above: tuple[Path, ...]) -> dict[str, Entry]:
        inside = self.library is not None and (path.parent / name).resolve().is_relative_to(self.library)
        included = (path.parent / name).resolve() if inside else self.named(path, line, "include", name)
        if included in above:
            self.problem(path, line, f"includes {name!r}, which includes it")
        elif included is not None:
            return self.file(included, above)
        return {}

    def data(self, path: Path, line: int, name: str) -> None:
        if ":" in name:
            self.problem(path, line, f"data_files: {name!r} is a URL; name a file of the repository")
        elif any(sign in name for sign in "*?["):
            self.problem(path, line, f"data_files: {name!r} is a pattern; name each file")
        else:
            found = self.named(self.main, line, "data_files", name)
            if found is not None:
                self.found.files[found] = None

    def hub_file(self, path: Path, line: int, name: str) -> None:
        if not HUB_FILE.fullmatch(name):
            self.problem(path, line, f"data_files: {name!r} is no file of a data set on the hub")

    def loader(self, path: Path, line: int, name: str) -> None:
        here = path_from(self.main.parent, name)
        if name in {*OTHER_LOADERS, *_packaged()} - {*LOCAL}:
            self.problem(path, line, f"dataset_path: the loader {name!r} is not one of {', '.join(LOCAL)}")
        elif name not in LOCAL and (name.startswith((".", "/", "~")) or here.exists()):
            self.problem(path, line, f"dataset_path: {name!r} is a local path; name its files as `data_files` of json")
        elif not HUB_ID.fullmatch(name):
            self.problem(path, line, f"dataset_path: {name!r} is neither a data set of the hub nor a loader")

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


def _packaged() -> set[str]:
    """The loaders that come with the installed `datasets`, found without importing it."""
    spec = importlib.util.find_spec("datasets")
    folder = Path(spec.origin).parent / "packaged_modules" if spec and spec.origin else None
    return {path.name for path in folder.iterdir() if path.is_dir()} if folder and folder.is_dir() else set()


def _is_single(entries: Mapping[str, Entry]) -> bool:
    """Whether a file declares one task, or leaves that to a file that it includes."""
    if "group" in entries or not entries.keys() & {"task", "include"}:
        return False
    return "task" not in entries or isinstance(entries["task"][2], yaml.ScalarNode)


def _entries(node: yaml.MappingNode, above: tuple[yaml.Node, ...] = ()) -> Iterator[tuple[int, str, yaml.Node]]:
    """Line, key and value of a mapping's entries, first those that merge keys (`<<`) bring in."""
    merged = [value for key, value in node.value if key.tag == MERGE]
    for value in merged:
        for each in reversed(value.value) if isinstance(value, yaml.SequenceNode) else [value]:
            if isinstance(each, yaml.MappingNode) and each not in (*above, node):
                yield from _entries(each, (*above, node))
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
            yield key.start_mark.line + 1, key.value, value


def _values(node: yaml.MappingNode, name: str) -> Iterator[yaml.Node]:
    return (value for _, key, value in _entries(node) if key == name)


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

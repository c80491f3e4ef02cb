"""The structure of a package of Python files: packages, import levels, circles, the longest chain of imports, sizes.

    python tools/structure.py [FOLDER]

A module depends on what it imports anywhere, within functions too, but not under `if TYPE_CHECKING:`. Its level is the
length of the longest chain of imports below it; modules in a circle are on one level. Code lines are those that are
not blank, a comment or a docstring.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

Graph = Mapping[str, set[str]]


def modules(package: Path) -> dict[str, Path]:
    """The files of a package by their dotted names, which begin with the package's own."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str) -> Iterator[str]:
    """The dotted names that a source imports, with each name of a `from` import behind its module's."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        waiting += ast.iter_child_nodes(node)


def graph(package: Path) -> dict[str, set[str]]:
    """Which modules of a package each of them imports."""
    files = modules(package)
    arrows = {}
    for name, path in files.items():
        targets = set()
        for target in imported(path.read_text(encoding="utf-8")):
            # The name behind the module may be a module itself, or something in it.
            found = target if target in files else target.rpartition(".")[0]
            targets |= {found} & files.keys() - {name}
        arrows[name] = targets
    return arrows


def rooms(arrows: Graph, depth: int = 2) -> dict[str, set[str]]:
    """The same with everything in one package taken together; modules beside the packages stand for themselves."""
    taken: dict[str, set[str]] = {}
    for name, targets in arrows.items():
        room = ".".join(name.split(".")[:depth])
        taken.setdefault(room, set()).update(".".join(target.split(".")[:depth]) for target in targets)
    return {room: targets - {room} for room, targets in taken.items()}


def circles(arrows: Graph) -> list[list[str]]:
    """The groups of modules that import each other, directly or not (Tarjan 1972, "Depth-first search")."""
    return [sorted(group) for group in _components(arrows) if len(group) > 1]


def _components(arrows: Graph) -> list[list[str]]:
    """The strongly connected components, each after all that it imports."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for target in sorted(arrows[name]):
            if target not in order:
                visit(target)
                lowest[name] = min(lowest[name], lowest[target])
            elif target in stack:
                lowest[name] = min(lowest[name], order[target])
        if lowest[name] == order[name]:
            at = stack.index(name)
            components.append(stack[at:])
            del stack[at:]

    for name in arrows:
        if name not in order:
            visit(name)
    return components


def chain(arrows: Graph) -> list[str]:
    """The longest chain of imports, from the top; of a circle one module stands for all."""
    below: dict[str, list[str]] = {}
    for group in _components(arrows):
        targets = {target for name in group for target in arrows[name]} - set(group)
        longest = max((below[target] for target in sorted(targets)), key=len, default=[])
        below.update({name: [name, *longest] for name in group})
    return max(below.values(), key=len, default=[])


def code_lines(source: str) -> int:
    """Lines that are not blank, a comment or a docstring."""
    lines: set[int] = set()
    ignored = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in ignored:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def main() -> None:
    package = Path(sys.argv[1] if len(sys.argv) > 1 else "pytest_quantbudget").resolve()
    files, arrows = modules(package), graph(package)
    sources = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    longest, houses = chain(arrows), rooms(arrows)
    largest = max(sources, key=lambda name: sources[name].count("\n"))
    within = {name.split(".")[1] for name, path in files.items() if len(path.relative_to(package).parts) > 1}
    print(f"packages: {len(within)} ({', '.join(sorted(within))})")
    for what, each in ("packages, and modules beside them", houses), ("modules", arrows):
        print(f"{what}: {len(each)} on {len(chain(each))} levels, {sum(map(len, each.values()))} imports")
    print("longest chain:", " > ".join(name.partition(".")[2] or name for name in longest))
    for what, each in ("packages", houses), ("modules", arrows):
        print(f"circles of {what}:", "; ".join(" > ".join(group) for group in circles(each)) or "none")
    print(f"largest file: {largest}, {sources[largest].count(chr(10))} lines")
    print(f"code lines: {sum(map(code_lines, sources.values())):,}")


if __name__ == "__main__":
    main()

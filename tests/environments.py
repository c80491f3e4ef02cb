"""Environments of Python that tests make: of packages that are here, and of nothing else."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path


def found(version: str) -> str | None:
    """An interpreter of a version: of pyenv, where there is one, or on the path."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    managed = sorted(root.glob(f"versions/{version}.*/bin/python"))
    return str(managed[-1]) if managed else shutil.which(f"python{version}")


def environment(folder: Path, *distributions: str) -> str:
    """The interpreter of a new environment that has some of this one's distributions, and what these need.

    They are linked, so that it takes no time and no room.
    """
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in needed(distributions):
        _link(importlib.metadata.distribution(name), site)
    return str(folder / "bin" / "python")


def needed(distributions: tuple[str, ...]) -> set[str]:
    """Some distributions and all that they need, as far as it is installed here."""
    found: set[str] = set()
    rest = list(distributions)
    while rest:
        name = re.sub(r"[-_.]+", "-", rest.pop()).lower()
        if name in found:
            continue
        try:
            wanted = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        rest += [match[0] for each in wanted if "extra ==" not in each and (match := re.match(r"[\w.-]+", each))]
    return found


def _link(distribution: importlib.metadata.Distribution, site: Path) -> None:
    names = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
    for name in names:
        place = Path(str(distribution.locate_file(name)))
        if place.exists() and not (site / name).exists():
            (site / name).symlink_to(place)

"""The code blocks of the documentation, each an example that is tried as far as that needs no model."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core import codec
from pytest_quantbudget.core.engines import Permissions
from pytest_quantbudget.core.files import Roots
from pytest_quantbudget.core.measurement import Measurement

ROOT = Path(__file__).parent.parent
# What a block that shows a part of a budget leaves out.
REST = "model: org/model\nmethods: {fp16: {}}\n"
BASELINE = "baseline: fp16\n"


def run(*arguments: str, folder: Path = ROOT) -> str:
    """What pytest prints in a folder; it must end well."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@cache
def help_text() -> str:
    return run("--help")


def check_command(line: str) -> None:
    """A call of pytest or of the package names only options and files that there are."""
    words = shlex.split(line, comments=True)
    if not words or Path(words[0]).name != "pytest":
        return
    for word in words[1:]:
        if word.startswith("--quant"):
            assert re.search(rf"{re.escape(word.partition('=')[0])}\b", help_text()), f"there is no option {word}"
        elif "/" in word and word.partition("::")[0].endswith((".py", ".yaml", "/")):
            assert (ROOT / word.partition("::")[0]).exists(), f"there is no {word}"


def check_shell(example: Example) -> None:
    for line in str(example.parsed).splitlines():
        for command in line.split("&&"):
            check_command(command)


def stored_report(method: str) -> Any:
    """A report with one method of this name."""
    from builders import REPORT, SUBJECT

    (budget,) = REPORT.budgets
    found = budget.methods[0]
    measured = replace(found, name=method, measurement=Measurement(SUBJECT), against=None, limits=())
    return codec.to_builtins(replace(REPORT, budgets=(replace(budget, methods=(measured,), stored=None),)))


def check_yaml(example: Example) -> None:
    """A budget is read in a folder with the shipped ones and the files that it names; of a CI job, its commands."""
    text = str(example.parsed)
    content: Any = yaml.safe_load(text)
    if "jobs" in content:
        for job in content["jobs"].values():
            for step in job["steps"]:
                check_command(step.get("run", ""))
        return
    if "methods" not in content:
        text += REST + BASELINE * ("baseline" not in content)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        shutil.copytree(ROOT / "budgets", folder, dirs_exist_ok=True)
        for file in re.findall(r"[\w/]+\.(?:jsonl|txt|yaml|gguf)", text):
            path = folder / file
            path.parent.mkdir(exist_ok=True)
            if path.suffix == ".jsonl":
                path.write_text("".join(f'{{"question": "{n} + 1?", "answer": "#### {n + 1}"}}\n' for n in range(3000)))
            elif not path.exists():
                path.write_text("task: ours\n" if "/" in file else "model: org/model\n")
        for file, method in re.findall(r"report: ([\w/.]+\.json), method: ([\w-]+)", text):
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(json.dumps(stored_report(method)))
        (folder / "block.yaml").write_text(text.replace("<commit>", "a" * 40))
        load_budget(folder / "block.yaml", Roots([folder]), permissions=Permissions(everything=True))


def check_python(example: Example) -> None:
    """Tests that name only fixtures and marks that there are."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "test_block.py"
        path.write_text(str(example.parsed))
        arguments = ("--setup-plan", "--strict-markers", "--quant-budget", str(ROOT / "budgets" / "builtin.yaml"))
        run(*arguments, str(path), folder=Path(name))


def check_estimate(example: Example) -> None:
    """The output of `--quant-estimate`, but for the lines that are left out."""
    first, *lines = str(example.parsed).splitlines()
    printed = run("--quant-estimate", "--quant-budget", first.removeprefix("estimate of "))
    for line in lines:
        assert line == "..." or line in printed, line


EXAMPLES = Sybil(
    parsers=[
        CodeBlockParser("yaml", check_yaml),
        CodeBlockParser("bash", check_shell),
        CodeBlockParser("python", check_python),
        CodeBlockParser("text", lambda example: check_estimate(example) if "estimate of" in example.parsed else None),
    ],
    path=str(ROOT),
    patterns=["README.md", "CONTRIBUTING.md", "docs/*.md"],
)

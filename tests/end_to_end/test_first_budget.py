"""From a directory to a gate that holds: what `init` writes is filled in by a run, and the next one is green."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_quantbudget.core.files import BUILTIN_DIR


@pytest.mark.model
def test_a_first_budget_is_written_filled_in_and_green(tmp_path: Path) -> None:
    shutil.copytree(BUILTIN_DIR, tmp_path / "tuned")

    def call(module: str, *arguments: str) -> str:
        command = [sys.executable, "-m", module, *arguments]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    said = call("pytest_quantbudget", "init", "tuned", "--use", "dev", "--methods", "fp32,bf16")
    (fill,) = (line.split() for line in said.splitlines() if line.endswith("--quant-update"))
    assert fill == ["pytest", "--quant-budget", "tuned.yaml", "--quant-update"]
    # That the use is met, limits that read `auto` do not tell yet.
    assert "5 skipped" in call(*fill, "--quant-cache", "cache", "-p", "no:cacheprovider")
    text = (tmp_path / "tuned.yaml").read_text()
    assert ": auto" not in text
    assert "max_wordmath_drop: " in text
    said = call("pytest_quantbudget", "explain", "tuned.yaml", "--cache", "cache")
    assert "In all: a few seconds, nothing is measured" in said
    assert "5 passed" in call(*fill[:3], "--quant-cache", "cache", "-p", "no:cacheprovider")

"""What the fork server imports stays out of the output of the run."""

import os
import subprocess
import sys
from pathlib import Path


def test_what_libraries_print_when_imported_and_their_errors_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os\nos.write(2, b'loading failed')\nraise ImportError('no torch')\n")
    command = [sys.executable, "-c", "import pytest_quantbudget.measure.preload, os; os.write(2, b'after')"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}
    ended = subprocess.run(command, capture_output=True, env=environ)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"after")

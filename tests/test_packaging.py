"""What is in the wheel, beyond the modules."""

import zipfile
from pathlib import Path

import pytest

from pytest_quantbudget.core.files import SHIPPED_BUDGETS

ROOT = Path(__file__).parent.parent


def test_the_wheel_carries_the_templates_and_the_budgets_where_extends_looks_for_them(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="the extra `test` brings hatchling")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        names = set(archive.namelist())
        for path in SHIPPED_BUDGETS.glob("*.yaml"):
            assert archive.read(f"pytest_quantbudget/budgets/{path.name}") == path.read_bytes()
        for path in (ROOT / "pytest_quantbudget" / "report" / "page" / "templates").iterdir():
            assert archive.read(path.relative_to(ROOT).as_posix()) == path.read_bytes()
    assert {"pytest_quantbudget/builtin/model.safetensors", "pytest_quantbudget/py.typed"} <= names

"""docs/methods.md is what the code says, and every test that it leads to is there."""

from pathlib import Path

import methods_page
import pytest

from pytest_quantbudget.models import engines, methods

ROOT = Path(__file__).parents[1]


def test_the_page_is_what_the_code_says() -> None:
    assert (ROOT / "docs" / "methods.md").read_text() == "\n".join(methods_page.page()) + "\n"


@pytest.mark.parametrize("name", sorted(set(methods_page.RUN_BY.values())))
def test_what_a_kind_is_said_to_be_run_by_is_there_and_runs_it(name: str) -> None:
    file, _, function = name.partition("::")
    source = (ROOT / "tests" / file).read_text()
    assert f"def {function}(" in source
    if name == methods_page.SEVERAL:
        assert all(f"\n  {kind}: " in source for kind in methods_page.IN_SEVERAL)


def test_every_engine_that_takes_a_kind_has_a_test_or_a_reason() -> None:
    for kind in methods.names():
        for engine in engines.names():
            said = methods_page.cell(kind, engine, [])
            assert (said == "-") == (not engines.spec(engine).takes(methods.spec(kind)))

"""What pytest offers for choosing tests works on budgets. Nothing is measured here: collection tells."""

from pathlib import Path

import pytest
from builders import outcomes

ALL = ["fp32::max_weights", "fp32::min_wordmath", "bf16::max_weights_ratio", "bf16::max_wordmath_drop"]
ALL.append("bf16::max_wordmath_flips")


def collected(pytester: pytest.Pytester, *args: str) -> list[str]:
    """Ids that a run would select."""
    result = pytester.runpytest("--collect-only", "-q", *args)
    assert result.ret == pytest.ExitCode.OK, result.outlines
    return [line.removeprefix("small.yaml::") for line in result.outlines if "::" in line]


@pytest.mark.parametrize(
    ("args", "chosen"),
    [
        pytest.param(["--quant-budget", "small.yaml"], ALL, id="option"),
        pytest.param(["--quant-budget", "*.yaml"], ALL, id="glob"),
        pytest.param(["--quant-budget", "."], ALL, id="directory"),
        pytest.param(["small.yaml"], ALL, id="file as argument"),
        pytest.param(["small.yaml::bf16"], ALL[2:], id="method as argument"),
        pytest.param(["small.yaml::bf16::max_wordmath_drop"], ALL[3:4], id="limit as argument"),
        pytest.param(["--quant-budget", "small.yaml", "-k", "bf16 and drop"], ALL[3:4], id="-k"),
        pytest.param(["--quant-budget", "small.yaml", "-m", "not slow"], ALL[2:], id="-m"),
        pytest.param(["--quant-budget", "small.yaml", "--deselect", "small.yaml::bf16"], ALL[:2], id="--deselect"),
    ],
)
def test_choosing(pytester: pytest.Pytester, small: Path, args: list[str], chosen: list[str]) -> None:
    assert collected(pytester, *args) == chosen


def test_with_other_arguments_both_run_and_without_only_the_budgets(pytester: pytest.Pytester, small: Path) -> None:
    pytester.makepyfile(test_mine="def test_it(): pass")
    assert collected(pytester, "--quant-budget", "small.yaml") == ALL
    assert collected(pytester, "--quant-budget", "small.yaml", "test_mine.py") == ["test_mine.py::test_it", *ALL]


def test_the_ini_key_adds_budgets_to_a_plain_run(pytester: pytest.Pytester, small: Path) -> None:
    pytester.makepyfile(test_mine="def test_it(): pass")
    pytester.makeini("[pytest]\nquant_budget = small.yaml\nmarkers = slow: takes long\n")
    assert sorted(collected(pytester)) == sorted(["test_mine.py::test_it", *ALL])
    assert collected(pytester, "test_mine.py") == ["test_mine.py::test_it"]


def test_unnamed_yaml_files_are_left_alone(pytester: pytest.Pytester, small: Path) -> None:
    pytester.makepyfile(test_mine="def test_it(): pass")
    (small.parent / "compose.yaml").write_text("services: {}\n")
    assert collected(pytester, ".") == ["test_mine.py::test_it"]


def test_two_budgets_of_one_name_outside_the_root_keep_ids_apart(pytester: pytest.Pytester, small: Path) -> None:
    for name in ("one", "two"):
        pytester.mkdir(name)
        (small.parent / name / "b.yaml").write_text(small.read_text())
    root = str(pytester.mkdir("root"))
    result = pytester.runpytest(
        "--collect-only", "-q", "--rootdir", root, "-c", "tox.ini", "--quant-budget", "one", "--quant-budget", "two"
    )
    ids = [line for line in result.outlines if "::" in line]
    assert len(ids) == len(set(ids)) == 10


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
@pytest.mark.model
def test_ids_have_the_names_of_links(
    pytester: pytest.Pytester, small: Path, simulated_engine: str, workers: tuple[str, ...]
) -> None:
    pytester.makeconftest(simulated_engine)
    versions = pytester.mkdir("budgets") / "..2026"
    versions.mkdir()
    small.rename(versions / "small.yaml")
    (pytester.path / "budgets/..data").symlink_to("..2026")
    (pytester.path / "budgets/small.yaml").symlink_to("..data/small.yaml")
    (pytester.path / "budgets/notes.yaml").write_text("of: others\n")
    arguments = ("-v", "--quant-report", "r.json", *workers)
    for names in (["--quant-budget", "budgets"], ["budgets/small.yaml"], ["--quant-budget", "budgets/small.yaml", "."]):
        result = pytester.runpytest_subprocess(*names, *arguments)
        result.assert_outcomes(passed=5)
        result.stdout.fnmatch_lines(["*quantization budget budgets/small.yaml*"])
        assert set(outcomes(pytester.path / "r.json")) == {f"budgets/small.yaml::{id_}" for id_ in ALL}


@pytest.mark.model
def test_last_failed_and_exitfirst(pytester: pytest.Pytester, measured_small: Path) -> None:
    measured_small.write_text(measured_small.read_text().replace("max_weights: 3 MiB", "max_weights: 1 MiB"))
    first = pytester.runpytest("--quant-budget", measured_small.name, "-x", "-v")
    first.assert_outcomes(failed=1)
    first.stdout.fnmatch_lines(
        [
            "fp32 *1 OVER, 1 NOT RUN",
            "bf16 *3 NOT RUN",
            "over: fp32 max_weights",
            "not run: fp32 min_wordmath; bf16 max_weights_ratio, *",
        ]
    )
    again = pytester.runpytest("--quant-budget", measured_small.name, "--lf", "-v")
    again.assert_outcomes(failed=1, deselected=4)


@pytest.mark.model
def test_the_users_fixtures_and_marks_apply(pytester: pytest.Pytester, measured_small: Path) -> None:
    pytester.makeconftest(
        """
        import pytest

        seen = []

        @pytest.fixture(autouse=True)
        def watch(request):
            seen.append(request.node.name)
            yield

        def pytest_collection_modifyitems(items):
            for item in items:
                if "drop" in item.name:
                    item.add_marker(pytest.mark.skip(reason="not this week"))

        def pytest_unconfigure():
            print("SEEN", seen)
        """
    )
    result = pytester.runpytest("--quant-budget", measured_small.name, "-k", "max_weights or drop", "-v")
    result.assert_outcomes(passed=2, skipped=1, deselected=2)
    result.stdout.fnmatch_lines(
        [
            "bf16 *1 within, 1 skipped",
            "skipped: bf16 max_wordmath_drop (not this week)",
            "SEEN *max_weights*max_weights_ratio*",
        ]
    )


def test_an_unknown_mark_is_refused_where_the_run_is_strict(pytester: pytest.Pytester, small: Path) -> None:
    pytester.makeini("[pytest]\n")
    # In a process of its own: pytest remembers markers for the life of a process.
    result = pytester.runpytest_subprocess("--quant-budget", small.name, "--strict-markers", "--collect-only")
    assert result.ret != pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*'slow' not found in `markers` configuration option*"])


@pytest.mark.parametrize("host", ["gpu.example.org", "GPU.Example.ORG"])
def test_a_host_is_allowed_however_it_is_written(pytester: pytest.Pytester, host: str) -> None:
    method = "{engine: openai, server: {url: 'http://Gpu.example.org:8000/v1'}, budget: {max_ttft: 1 s}}"
    (pytester.path / "b.yaml").write_text(f"model: builtin\nmethods:\n  prod: {method}\n")
    assert collected(pytester, "--quant-budget", "b.yaml", "--quant-allow-host", host) == ["b.yaml::prod::max_ttft"]

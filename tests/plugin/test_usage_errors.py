"""Mistakes in budgets and arguments end the run at once: exit code 4, file, line, the user's line, the right name."""

from pathlib import Path

import pytest


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_mistakes_end_the_run_before_anything_is_loaded(
    pytester: pytest.Pytester, small: Path, workers: tuple[str, ...]
) -> None:
    text = small.read_text().replace("max_weights: 3 MiB", "max_weights: 3").replace("bf16:", "bf61:")
    small.write_text(text)
    result = pytester.runpytest_subprocess("--quant-budget", small.name, "-W", "error", *workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: small.yaml:10: max_weights: 3 has no unit, and GB and GiB differ by 7 %*",
            "    budget: {max_weights: 3, min_wordmath: 50}",
            "ERROR: small.yaml:11: there is no method 'bf61'; did you mean 'bf16'? (a name of your own needs a *",
            "    bf61:",
        ]
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--quant-budget", "smal.yaml"], "there is no such budget; did you mean 'small.yaml'?"),
        (["--quant-budget", "empty"], "this directory holds no budget"),
        (["--quant-budget", "x*.yaml"], "this pattern matches no file"),
        (["small.yaml::fp23"], "has no method 'fp23'; did you mean 'fp32'?"),
        (["small.yaml::fp32::max_wieghts"], "fp32 has no limit 'max_wieghts'; did you mean 'max_weights'?"),
        (["small.yaml", "--quant-report", "."], "--quant-report: . is a directory"),
    ],
)
def test_arguments_that_name_nothing(pytester: pytest.Pytester, small: Path, args: list[str], words: str) -> None:
    pytester.mkdir("empty")
    result = pytester.runpytest(*args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{words.replace('[', '[[]')}*"])


@pytest.mark.parametrize("mark", ["min_vram=16", 'min_ram="16 GiB"', '"16 GiB"', "min_capability=8.0"])
def test_the_gpu_marker_refuses_what_it_does_not_take(pytester: pytest.Pytester, mark: str) -> None:
    pytester.makepyfile(f"import pytest\n@pytest.mark.gpu({mark})\ndef test_it(): pass")
    result = pytester.runpytest()
    assert result.ret != pytest.ExitCode.OK
    assert "marker gpu: " in result.stdout.str() + result.stderr.str()


def test_a_cache_url_is_refused_without_its_password(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--quant-cache", "s4://reader:hunter22@host/x")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --quant-cache s4://[*][*][*]@host/x: *"])
    result.stderr.no_fnmatch_line("*hunter22*")


@pytest.mark.parametrize("text", ["2", "soon", "-1 h"])
def test_a_time_limit_wants_a_time(pytester: pytest.Pytester, text: str) -> None:
    result = pytester.runpytest(f"--quant-timeout={text}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --quant-timeout: *"])

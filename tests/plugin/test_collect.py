"""A limit's test, as other plugins and report formats see it."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pytest_quantbudget.core.limits import Limit
from pytest_quantbudget.core.verdict import FAILED, OVER, SKIPPED, WITHIN, Verdict
from pytest_quantbudget.plugin import judging
from pytest_quantbudget.plugin.collect import properties, verdict_of

LIMITS = """
model: builtin
methods:
  fp32: {budget: {max_weights: 3 MiB, max_vram: 3 MiB, max_load_time: 60 s, max_ttft: 1 s}}
"""
VERDICTS = {
    "max_weights": Verdict(
        OVER, "fp32: max_weights measured 2.19 MiB, limit 1.00 MiB", 2298240, 1048576.0, "1 MiB", "MiB"
    ),
    "max_vram": Verdict(FAILED, "fp32: max_vram not measured: it crashed", detail="a traceback"),
    "max_load_time": Verdict(SKIPPED, "fp32: max_load_time not measured: no GPU was found", for_want_of_gpu=True),
    "max_ttft": Verdict(WITHIN, "fp32: max_ttft 1 s", 0.5, 1.0, "1 s", "s", low=0.4, high=0.6, confidence=0.95),
}
SERVED = """
model: builtin
methods:
  own:
    kind: checkpoint
    checkpoint: org/quantized
    engine: vllm
    engine_options: {seed: 1, max_modl_len: 512}
    budget: {max_weights: 3 MiB}
"""
# What a plugin that repeats failed tests does.
TWICE = """
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item):
    runtestprotocol(item, log=False)
"""


class Watch:
    """Notes what allure-pytest decides by: the exception, and the docstring of the function."""

    def __init__(self) -> None:
        self.raised: dict[str, BaseException] = {}
        self.described: dict[str, str | None] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Function, call: pytest.CallInfo[None]) -> Any:
        if call.excinfo is not None:
            self.raised[item.name] = call.excinfo.value
        self.described[item.name] = item.function.__doc__
        return (yield)


@pytest.fixture
def judged(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A room with a budget of which each limit has a verdict already."""

    def verdict_on(run: Any, budget: Any, method: Any, limit: Limit, needs: Any, machine: str) -> Verdict:
        return VERDICTS[limit.name]

    monkeypatch.setattr(judging, "verdict_on", verdict_on)
    (pytester.path / "b.yaml").write_text(LIMITS)
    return pytester


def test_a_limit_that_is_over_is_an_assertion_that_failed_and_one_that_was_not_judged_is_none(
    judged: pytest.Pytester,
) -> None:
    watch = Watch()
    judged.inline_run("--quant-budget", "b.yaml", plugins=[watch])
    # allure-pytest calls `failed` what is an AssertionError or pytest's Failed, and `broken` what is not.
    assert isinstance(watch.raised["max_weights"], AssertionError)
    assert not isinstance(watch.raised["max_vram"], AssertionError | pytest.fail.Exception)
    shown = [f"{type(error).__module__} {error}" for name, error in watch.raised.items() if name != "max_load_time"]
    assert shown == [f"builtins {VERDICTS[name].message}" for name in ("max_weights", "max_vram")]
    assert watch.described == dict.fromkeys(VERDICTS)


@pytest.mark.parametrize("ci", ["", "true"])
def test_a_failure_begins_with_what_happened_and_so_does_its_line_in_the_summary(
    judged: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str
) -> None:
    monkeypatch.setenv("CI", ci)
    result = judged.runpytest("--quant-budget", "b.yaml")
    result.stdout.fnmatch_lines(
        [
            "* fp32::max_weights *",
            "measured 2.19 MiB, limit 1.00 MiB",
            "",
            "b.yaml:4: this line",
            "    fp32: {budget: {max_weights: 3 MiB, max_vram: 3 MiB, max_load_time: 60 s, max_ttft: 1 s}}",
            "                    ^^^^^^^^^^^^^^^^^^",
            "* fp32::max_vram *",
            "not measured: it crashed",
            "",
            "b.yaml:4: this line",
            "    fp32: {budget: {max_weights: 3 MiB, max_vram: 3 MiB, max_load_time: 60 s, max_ttft: 1 s}}",
            "                                        ^^^^^^^^^^^^^^^",
            "",
            "| a traceback",
        ],
        consecutive=True,
    )
    result.stdout.fnmatch_lines(
        [
            "FAILED b.yaml::fp32::max_weights - measured 2.19 MiB, limit 1.00 MiB",
            "FAILED b.yaml::fp32::max_vram - not measured: it crashed",
            "*2 failed*",
        ],
        consecutive=True,
    )
    short = judged.runpytest("--quant-budget", "b.yaml", "--tb=line")
    short.stdout.fnmatch_lines(["b.yaml:4: measured 2.19 MiB, limit 1.00 MiB", "b.yaml:4: not measured: it crashed"])


@pytest.mark.parametrize(
    "said", ["it knows no option max_modl_len; did you mean 'max_model_len'?", "argument --max-modl-len: not a number"]
)
def test_a_failure_that_names_an_option_of_the_engine_shows_its_line(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(judging, "verdict_on", lambda *_: Verdict(FAILED, f"own: max_weights not measured: {said}"))
    (pytester.path / "b.yaml").write_text(SERVED)
    result = pytester.runpytest("--quant-budget", "b.yaml")
    result.stdout.fnmatch_lines(
        [
            "b.yaml:9: this line",
            "    budget: {max_weights: 3 MiB}",
            "*^^^*",
            "",
            "b.yaml:8: this option of the engine",
            "    engine_options: {seed: 1, max_modl_len: 512}",
            "                              ^^^^^^^^^^^^^^^^^",
        ],
        consecutive=True,
    )
    assert result.stdout.str().count("this option of the engine") == 1


@pytest.mark.parametrize("tries", [1, 2])
def test_property_names_are_unique_and_what_is_not_known_has_none(judged: pytest.Pytester, tries: int) -> None:
    if tries == 2:
        judged.makeconftest(TWICE)
    judged.runpytest("--quant-budget", "b.yaml", "--junitxml", "j.xml").assert_outcomes(failed=2, skipped=1, passed=1)
    cases = ElementTree.parse(Path("j.xml")).getroot().iter("testcase")
    for case in cases:
        pairs = [(found.attrib["name"], found.attrib["value"]) for found in case.iter("property")]
        assert len(pairs) == len(dict(pairs))
        assert not {"None", ""} & set(dict(pairs).values())
        assert dict(pairs)["quant.name"] == case.attrib["name"]
        verdict = VERDICTS[case.attrib["name"]]
        assert dict(pairs).get("quant.limit") == (None if verdict.limit is None else str(verdict.limit))


@pytest.mark.parametrize("verdict", VERDICTS.values(), ids=VERDICTS)
def test_a_verdict_comes_back_from_its_properties(verdict: Verdict) -> None:
    assert verdict_of([("quant.name", "x"), *properties(verdict)]) == verdict
    assert verdict_of([("quant.name", "x")]) is None

"""A run of methods that archived libraries load, each in its own interpreter: with a stand-in for the libraries."""

import json
from pathlib import Path

import fake_archived
import pytest
from environments import environment

from pytest_quantbudget.core.codec import from_builtins
from pytest_quantbudget.core.measurement import Measurement

pytestmark = pytest.mark.model
BUDGET = """
model: builtin
baseline: fp32
workload: {prompt_tokens: 16, new_tokens: 100, repeats: 2, batch_size: 2}
tasks: {wordmath: {file: builtin, questions: 6, max_new_tokens: 96, divergence: true}}
methods:
  fp32: {}
  shipped:
    kind: auto-gptq
    checkpoint: ./gptq
    engine_options: {torch_dtype: float32}
    budget: {max_wordmath_flips: 1, max_kl: 0.0001, min_token_agreement: 99, max_weights: 3 MiB, min_tokens_per_s: 0.1,
             min_quantized_fraction: 0.01, max_load_time: 10 min}
  elsewhere: {kind: autoawq, checkpoint: ./awq, budget: {max_weights: 3 MiB}}
  bare: {kind: autoawq, python: bare, checkpoint: ./awq, budget: {max_weights: 3 MiB}}
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An environment with transformers and both libraries, and neither pytest nor this package."""
    folder = tmp_path_factory.mktemp("archived") / "venv"
    made = environment(folder, "torch", "transformers", "accelerate", "safetensors")
    (site,) = folder.glob("lib/python*/site-packages")
    fake_archived.installed(site)
    return made


def test_a_budget_measures_them_beside_others(pytester: pytest.Pytester, python: str, tmp_path: Path) -> None:
    bare = environment(tmp_path / "bare")
    gone = tmp_path / "gone" / "bin" / "python"
    lines = f"    auto-gptq = {python}\n    autoawq = {gone}\n    bare = {bare}\n"
    pytester.makeini(f"[pytest]\nquant_interpreters =\n{lines}")
    (pytester.path / "b.yaml").write_text(BUDGET)
    for name in ("gptq", "awq"):
        fake_archived.checkpoint(pytester.path / name, name)
    args = ("--quant-budget", "b.yaml", "--quant-cache", "cache", "--quant-report", "r.json", "-p", "no:cacheprovider")
    result = pytester.runpytest_subprocess(*args, "-rs")
    # A machine that is too busy to read its tokens one by one has no figure of its speed, and says so.
    late = "shipped: min_tokens_per_s not measured: the server sent " in result.stdout.str()
    result.assert_outcomes(passed=7 - late, skipped=2 + late)
    made = f"python3.11 -m venv {gone.parents[1]} && {gone} -m pip install torch==*"
    more = f" && {gone} -m pip install --no-deps autoawq==0.2.5*"
    result.stdout.fnmatch_lines([f"*the interpreter {gone} does not exist: {made}{more}"])
    result.stdout.fnmatch_lines([f"*bare needs awq in {bare}: {bare} -m pip install torch==*autoawq==0.2.5*"])
    (budget,) = json.loads((pytester.path / "r.json").read_text())["budgets"]
    measured = {each["name"]: from_builtins(Measurement, each["measurement"]) for each in budget["methods"]}
    fp32, shipped = measured["fp32"], measured["shipped"]
    assert [answer.ids for answer in shipped.tasks[0].answers] == [answer.ids for answer in fp32.tasks[0].answers]
    assert shipped.engine is not None
    assert shipped.engine.name == "auto-gptq"
    assert shipped.engine.details["transformers"]
    assert shipped.receipt is not None
    assert shipped.receipt.main_bits == 4
    assert shipped.tasks[0].divergence is not None


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("auto-gptq: {}", "*the kind auto-gptq is whatever its `checkpoint` says, and there is none*"),
        (
            "a: {kind: auto-gptq, engine: autoawq, checkpoint: ./x}",
            "*autoawq does not run auto-gptq, which is for auto-gp*",
        ),
        ("autoawq: {checkpoint: ./x, engine_options: {fuse_layer: true}}", "*fuse_layer*did you mean 'fuse_layers'*"),
        ("autoawq: {checkpoint: ./x, adapter: ./y}", "*the engine autoawq runs none beside autoawq*"),
    ],
)
def test_what_a_budget_says_wrongly_is_told(pytester: pytest.Pytester, method: str, words: str) -> None:
    for name in ("x", "y"):
        pytester.mkdir(name)
    (pytester.path / "b.yaml").write_text(f"model: builtin\nmethods:\n  {method}\n")
    result = pytester.runpytest_inprocess("--quant-budget", "b.yaml", "-p", "no:cacheprovider")
    pytest.LineMatcher([*result.outlines, *result.errlines]).fnmatch_lines([words])

"""Mixtures of experts and models that read images from budget to report, and mixtures that gptqmodel packs."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import tiny_models

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import Request, Subject, Workload
from pytest_quantbudget.measure import bench
from pytest_quantbudget.measure.store import Store
from pytest_quantbudget.models import methods
from pytest_quantbudget.models.estimate import memory

pytestmark = pytest.mark.model

WORKLOAD = Workload(8, 4, 1, 1)
GROUP = 32
# A mixture of experts with dummy weights, and a model that reads images with real ones, which is asked questions.
MIXTURE = """
model: mixture
load_format: dummy
workload: {prompt_tokens: 8, new_tokens: 4, repeats: 1}
methods:
  nf4: {budget: {min_quantized_fraction: 0.5, max_weights: 1 MiB, max_ttft: 60 s}}
"""
IMAGES = """
model: images
workload: {prompt_tokens: 8, new_tokens: 4, repeats: 1}
tasks: {wordmath: {file: questions.jsonl, questions: 4, shots: 0, max_new_tokens: 8, max_truncated: 100}}
methods:
  bf16: {budget: {min_wordmath: 50, max_weights: 1 MiB, max_ttft: 60 s}}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models; made before there is a pytester, which would have torch imported twice."""
    folder = tmp_path_factory.mktemp("models")
    tiny_models.save(folder / "mixture", "mixtral")
    tiny_models.save_vision(folder / "images", "qwen2_5_vl")
    return folder


def test_a_mixture_and_a_model_that_reads_images_from_budget_to_report(models: Path, pytester: pytest.Pytester) -> None:
    for folder in models.iterdir():
        shutil.copytree(folder, pytester.path / folder.name)
    lines = (BUILTIN_DIR / "questions.jsonl").read_text().splitlines(keepends=True)[:4]
    (pytester.path / "questions.jsonl").write_text("".join(lines))
    (pytester.path / "mixture.yaml").write_text(MIXTURE)
    (pytester.path / "images.yaml").write_text(IMAGES)
    result = pytester.runpytest("mixture.yaml", "images.yaml", "--quant-report", "r.json")
    result.assert_outcomes(passed=4, failed=2)
    # By hand: 24,576 parameters in the attention's matrices, 196,608 in experts, 303,936 in all.
    result.stdout.fnmatch_lines(
        [
            "measured 0.0809, limit 0.5 (*24,576 of 303,936 parameters; kept: experts 196,608 in 16 bits*",
            "note: nf4: the experts, 196,608 of 303,936 parameters (64.7 %), stay in 16 bits: *",
            "note: bf16: its weights include parts that no text passes through: visual (*",
        ],
        consecutive=False,
    )
    mixture, images = json.loads(Path("r.json").read_text())["budgets"]
    (nf4,) = mixture["methods"]
    assert nf4["estimate"]["weights"] == nf4["measurement"]["weights"]
    for method in images["methods"]:
        assert method["estimate"]["at_least"]
        assert method["estimate"]["weights"] <= method["measurement"]["weights"]
    (task,) = images["methods"][0]["measurement"]["tasks"]
    assert len(task["answers"]) == 4


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> bench.Bench:
    """A bench, whose processes import no library that this one has patched."""
    run = tmp_path_factory.mktemp("run")
    return bench.Bench(run, tmp_path_factory.mktemp("cache"), run, Store(str(run / "results")))


@pytest.mark.parametrize(
    "kind",
    ["mixtral", *[pytest.param(kind, marks=pytest.mark.slow) for kind in tiny_models.KINDS if kind != "mixtral"]],
)
def test_gptq_of_every_architecture_is_what_the_estimate_says(kind: str, room: bench.Bench, tmp_path: Path) -> None:
    """gptqmodel takes apart experts, joined matrices and classes of a model's own, and loads them itself."""
    if importlib.util.find_spec("gptqmodel") is None:
        pytest.skip("gptqmodel is not installed")
    spec = methods.spec("gptq-int4")
    options = {**spec.filled({}), "group_size": GROUP, "texts": 4}
    tiny_models.save(tmp_path, kind)
    asked = Subject(str(tmp_path), None, "gptq-int4", None, options, str(BUILTIN_DIR / "calibration.jsonl"))
    measured = room.measure(Request(asked, (WORKLOAD,)))
    assert measured.failures == ()
    predicted = memory.estimate(asked, WORKLOAD)
    assert measured.weights == predicted.weights
    assert measured.receipt is not None
    quantized = sum(m.count * m.values for m in memory.shape_of(asked).matrices)
    assert measured.receipt.quantized == quantized

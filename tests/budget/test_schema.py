"""The JSON Schemas: what ships is what the code says, and editors see the mistakes that a schema can see."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import pytest_quantbudget
from pytest_quantbudget.budget import schema
from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.budget.yaml import read_yaml
from pytest_quantbudget.core.engines import TRANSFORMERS
from pytest_quantbudget.models import methods
from pytest_quantbudget.report import document

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = Path(pytest_quantbudget.__file__).parent / "schemas"
BUDGETS = sorted((ROOT / "budgets").glob("*.yaml"))


@pytest.fixture(scope="module")
def budget_schema() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema.budget_schema())


@pytest.mark.parametrize("which", ["budget", "report"])
def test_the_shipped_schema_is_what_the_command_prints(which: str) -> None:
    command = [sys.executable, "-m", "pytest_quantbudget", "schema", which]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (SHIPPED / f"{which}.schema.json").read_text(encoding="utf-8") == printed


@pytest.mark.parametrize("made", [schema.budget_schema(), document.schema()], ids=["budget", "report"])
def test_the_schemas_are_schemas(made: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(made)


@pytest.mark.parametrize("path", BUDGETS, ids=lambda path: path.name)
def test_the_shipped_budgets_are_valid_and_name_the_schema(
    path: Path, budget_schema: jsonschema.Draft202012Validator
) -> None:
    text = path.read_text(encoding="utf-8")
    budget_schema.validate(yaml.safe_load(text))
    assert load_budget(path).methods
    named = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / named).resolve() == SHIPPED / "budget.schema.json"


KINDS = methods.run_by(TRANSFORMERS)
PLACES = {
    "": "model: m\nmethods: {fp32: {}}\n%s\n",
    "workload": "model: m\nmethods: {fp32: {}}\nworkload: {%s}\n",
    "gpu": "model: m\nmethods: {fp32: {}}\ngpu: {%s}\n",
    "task": "model: m\nmethods: {fp32: {}}\ntasks: {t: {%s}}\n",
    "method": "model: m\nmethods: {gptq-int4: {%s}}\n",
    "limits": "model: m\nmethods: {nf4: {budget: {%s}}}\n",
    **{f"options of {name}": f"model: m\nmethods: {{{name}: {{options: {{%s}}}}}}\n" for name in KINDS},
}


def shipped(place: str) -> dict[str, Any]:
    """The keys of one place of a budget, as the schema that ships has them."""
    made = yaml.safe_load((SHIPPED / "budget.schema.json").read_text())
    top = made["properties"]
    defined = made["$defs"]
    parts = {
        "": top,
        "workload": top["workload"]["properties"],
        "gpu": top["gpu"]["anyOf"][1]["properties"],
        "task": top["tasks"]["additionalProperties"]["anyOf"][0]["properties"],
        "method": defined["method"]["properties"],
        "limits": defined["limits"]["properties"],
        **{f"options of {name}": defined[name]["properties"]["options"]["properties"] for name in KINDS},
    }
    return dict(parts[place])


def refused(path: Path, text: str) -> bool:
    """Whether the reader takes a key for one that does not exist there."""
    path.write_text(text)
    try:
        load_budget(path)
    except pytest_quantbudget.BudgetError as error:
        key = text.partition("#")[2].strip()
        return f"has no key {key!r}" in str(error) or f"no limit {key!r}" in str(error)
    return False


@pytest.mark.parametrize("place", PLACES)
def test_the_reader_knows_every_key_of_the_schema_and_no_other(place: str, tmp_path: Path) -> None:
    for key in [*shipped(place), "keyless"]:
        text = PLACES[place] % f"{key}: []" + f"# {key}"
        text = text.replace("model: m\n", "", key == "model").replace("methods: {fp32: {}}\n", "", key == "methods")
        known = not refused(tmp_path / "b.yaml", text)
        assert known == (key != "keyless"), f"{place} {key}"


def test_what_a_budget_leaves_out_has_the_default_of_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_text("model: m\nmethods: {fp32: {}}\n")
    workload = load_budget(path).workload
    defaults = {name: field["default"] for name, field in shipped("workload").items() if "default" in field}
    assert {name: getattr(workload, name, value) for name, value in defaults.items()} == defaults
    assert set(defaults) >= {"prompt_tokens", "new_tokens", "batch_size", "repeats"}


def test_every_limit_says_what_it_bounds() -> None:
    said = [limit["description"] for limit in shipped("limits").values()]
    assert len(set(said)) == len(said) > 10
    assert min(map(len, said)) > 10


METHODS = "methods: {fp32: {}}"
LIMIT = "model: m\nbaseline: fp32\ntasks: {gsm8k: }\nmethods: {fp32: {}, nf4: {budget: {%s}}}"


@pytest.mark.parametrize(
    "text",
    [
        f"model: m\n{METHODS}",
        "extends: SHIPPED",
        f"model: m\nrevision: '1234567'\ngpu: true\n{METHODS}",
        f'model: m\ngpu: {{min_vram: 16 GiB, min_capability: "8.0", count: 2}}\n{METHODS}',
        f"model: m\nworkload: {{prompt_tokens: 1, new_tokens: 2, prompt: Hello}}\n{METHODS}",
        f"model: m\ntasks: {{math: {{file: builtin, extract: flexible}}, gsm8k: null}}\n{METHODS}",
        "model: m\nmethods: {nf4: {options: {double_quant: false}, marks: [slow], checkpoint: m4}}",
        LIMIT % "max_vram: 7 GiB, max_weights: 7.5GB, max_ttft: 80 ms, max_load_time: 1.5 min",
        LIMIT % "max_vram: 1e-3 TiB, max_ttft: +5e1 ms",
        LIMIT % "max_vram_ratio: 0.45, min_speedup: 2, min_tokens_per_s: 1.0e+3",
        LIMIT % "min_tokens_per_s: 1e3, max_vram_ratio: 45E-2, min_speedup: .5e1, max_ttft_ratio: 1.e+0",
        "x-ours: &drop {max_gsm8k_drop: 3.0}\nx-list: [1, {methods: 2}]\n" + LIMIT % "<<: *drop, min_speedup: 1e0",
        LIMIT % "min_gsm8k: 100, max_gsm8k_drop: 0, max_gsm8k_flips: 99.9",
        LIMIT % "max_vram: {'NVIDIA H100*': 7 GiB, '*': 8 GiB}",
        LIMIT % "min_quantized_fraction: 0.85, kernel: Marlin*",
        LIMIT % "kernel: {'NVIDIA*': 'MarlinLinear | *Exllama*', cpu: '[TA]*'}",
        f"model: builtin\nload_format: dummy\n{METHODS}",
    ],
)
def test_what_the_reader_takes_the_schema_takes(
    text: str, tmp_path: Path, budget_schema: jsonschema.Draft202012Validator
) -> None:
    text = text.replace("SHIPPED", str(BUDGETS[0]))
    path = tmp_path / "b.yaml"
    path.write_text(text)
    assert load_budget(path)
    # As editors do, which read YAML 1.2: `1e3` is a number.
    budget_schema.validate(read_yaml(path).plain)


def test_a_limit_may_be_taken_out_by_null(budget_schema: jsonschema.Draft202012Validator) -> None:
    budget_schema.validate({"extends": "b.yaml", "methods": {"nf4": {"budget": {"max_vram": None}}, "int8": None}})


@pytest.mark.parametrize(
    "text",
    [
        "model: m",
        METHODS,
        f"model: 7\n{METHODS}",
        f"model: m\nmethod: 1\n{METHODS}",
        f"model: m\nbaseline: 8\n{METHODS}",
        "model: m\nmethods: {fp8: {}}",
        "model: m\nmethods: [fp32]",
        "model: m\nmethods: {fp32: {checkpoint: m}}",
        "model: m\nmethods: {nf4: {limits: {}}}",
        "model: m\nmethods: {nf4: {options: {double_quant: 1}}}",
        "model: m\nmethods: {nf4: {options: {compute_dtype: bf16}}}",
        "model: m\nmethods: {nf4: {marks: slow}}",
        f"model: m\nworkload: {{batch: 1}}\n{METHODS}",
        f"model: m\nworkload: {{repeats: 0}}\n{METHODS}",
        f"model: m\nworkload: {{new_tokens: 1}}\n{METHODS}",
        f"model: m\ntasks: {{word-math: {{file: builtin}}}}\n{METHODS}",
        f"model: m\ntasks: {{gsm8k: {{shot: 5}}}}\n{METHODS}",
        f"model: m\ngpu: {{min_capability: 8.0}}\n{METHODS}",
        f"model: m\ngpu: {{min_vram: 16}}\n{METHODS}",
        LIMIT % "max_vran: 7 GiB",
        LIMIT % "max_vram: 7",
        LIMIT % "max_vram: 7 Gib",
        LIMIT % "max_vram: -7 GiB",
        LIMIT % "max_vram: 80 ms",
        LIMIT % "max_ttft: 80",
        LIMIT % "max_ttft: -80 ms",
        LIMIT % "max_vram_ratio: 0",
        LIMIT % "max_vram_ratio: 45 %",
        LIMIT % "min_tokens_per_s: '1e3'",
        LIMIT % "min_tokens_per_s: .inf",
        LIMIT % "min_tokens_per_s: 1e3000",
        LIMIT % "min_tokens_per_s: 1e3 tokens",
        LIMIT % "max_vram: 0 GiB",
        LIMIT % "max_vram: 0.0e9 GiB",
        LIMIT % "max_vram: {}",
        LIMIT % "kernel: auto",
        LIMIT % "kernel: {cpu: auto}",
        f"model: '  '\n{METHODS}",
        "model: m\nmethods: {}",
        "model: m\nmethods: {fp32: {budget: []}}",
        f"model: m\nX-ours: 1\n{METHODS}",
        "model: m\nmethods: {fp32: {x-ours: 1}}",
        f"model: m\ntimeout: 0 s\n{METHODS}",
        f"model: m\nrevision: 1e5\n{METHODS}",
        f"model: m\nconfidence: 1\n{METHODS}",
        f"model: m\ntasks: {{gsm8k: {{questions: {{max: 50}}}}}}\n{METHODS}",
        "model: m\nmethods: {nf4: {marks: [skip]}}",
        LIMIT % "min_gsm8k: 101",
        LIMIT % "max_gsm8k_drop: -1",
        LIMIT % "max_gsm8k_drop: 100",
        LIMIT % "max_vram: {H100: 7}",
        LIMIT % "min_quantized_fraction: 85",
        LIMIT % "kernel: Marlin* or Exllama*",
        LIMIT % "kernel: [Marlin*]",
        f"model: builtin\nload_format: random\n{METHODS}",
    ],
)
def test_what_the_schema_refuses_the_reader_refuses(
    text: str, tmp_path: Path, budget_schema: jsonschema.Draft202012Validator
) -> None:
    path = tmp_path / "b.yaml"
    path.write_text(text)
    assert not budget_schema.is_valid(read_yaml(path).plain)
    with pytest.raises(pytest_quantbudget.BudgetError):
        load_budget(path)

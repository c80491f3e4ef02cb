"""The load of a budget: of the file, of a method, and what is wrong with it."""

from pathlib import Path

import jsonschema
import pytest
import yaml

from pytest_quantbudget.budget import schema
from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.engines import Permissions
from pytest_quantbudget.core.load import Load
from pytest_quantbudget.core.problems import BudgetError

HEAD = "model: m\n"
METHOD = "methods:\n  prod:\n    engine: openai\n    server: {command: [serve, '{port}']}\n"


def read(folder: Path, text: str) -> dict[str, Load | None]:
    path = folder / "b.yaml"
    (folder / "text.txt").write_text("Once upon a time.")
    (folder / "empty.txt").write_text(" \n")
    path.write_text(text)
    return {method.name: method.load for method in load_budget(path, permissions=Permissions(commands=True)).methods}


def mistakes(folder: Path, text: str) -> list[tuple[int, str]]:
    with pytest.raises(BudgetError) as error:
        read(folder, text)
    return [(problem.line, problem.message) for problem in error.value.problems]


def test_without_load_there_is_none(tmp_path: Path) -> None:
    assert read(tmp_path, HEAD + METHOD) == {"prod": None}


def test_a_load_without_keys_is_one_request_at_a_time(tmp_path: Path) -> None:
    assert read(tmp_path, f"{HEAD}load: {{}}\n{METHOD}")["prod"] == Load(concurrency=(1,))


@pytest.mark.parametrize(
    ("file", "own", "found"),
    [
        ("{concurrency: [1, 32], requests: 50}", "{new_tokens: 9}", Load(512, 9, (1, 32), (), 50)),
        ("{concurrency: [1, 32], requests: 50}", "{rate: 2.5}", Load(512, 128, (), (2.5,), 50)),
        ("{rate: [1, 2.5]}", "{concurrency: 4}", Load(512, 128, (4,))),
        ("{rate: 3, timeout: 2 min}", "{prompt_tokens: 8, warmup: 0, seed: 7}", Load(8, 128, (), (3.0,), 200, 0, 7)),
    ],
)
def test_the_keys_of_a_method_hold_instead_of_the_files(file: str, own: str, found: Load, tmp_path: Path) -> None:
    text = f"{HEAD}load: {file}\n{METHOD}    load: {own}\n  fp32: {{}}\n"
    assert read(tmp_path, text)["prod"] == found
    assert read(tmp_path, text)["fp32"] == read(tmp_path, f"{HEAD}load: {file}\nmethods: {{fp32: {{}}}}")["fp32"]


def test_a_concurrency_is_filled_by_as_many_requests(tmp_path: Path) -> None:
    assert read(tmp_path, f"{HEAD}load: {{concurrency: [1, 4], requests: 4}}\n{METHOD}")["prod"] == Load(
        concurrency=(1, 4), requests=4
    )


def test_prompts_can_be_cut_from_a_text_beside_the_budget(tmp_path: Path) -> None:
    load = read(tmp_path, f"{HEAD}load: {{file: text.txt}}\n{METHOD}")["prod"]
    assert load is not None
    assert load.file == str(tmp_path / "text.txt")


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ("7", "load takes keys (prompt_tokens, new_tokens, concurrency"),
        ("{concurency: 1}", "load has no key 'concurency'; did you mean 'concurrency'?"),
        ("{concurrency: 0}", "concurrency: must be a whole number from 1 to 100000, not 0"),
        ("{concurrency: []}", "concurrency: must be one value, or a list of up to 20 different ones, not []"),
        ("{concurrency: [4, 4]}", "concurrency: must be one value, or a list of up to 20 different ones, not [4, 4]"),
        ("{concurrency: [1, two]}", "concurrency: must be a whole number from 1 to 100000, not 'two'"),
        ("{concurrency: {a: 1}}", "concurrency: must be a whole number from 1 to 100000, not {'a': 1}"),
        ("{rate: fast}", "rate: must be a bare number, and 'fast' is text"),
        ("{rate: [0]}", "rate: must be above 0"),
        ("{rate: .inf}", "rate: inf can never be met"),
        ("{rate: 1, concurrency: 2}", "`concurrency` keeps a number of requests open, `rate` sends them at its own"),
        ("{requests: 3, concurrency: [1, 4]}", "requests: 3 requests never fill a concurrency of 4; give at least as"),
        ("{concurrency: 500}", "requests: 200 requests never fill a concurrency of 500; give at least as many"),
        ("{new_tokens: 1}", "new_tokens: must be a whole number of at least 2, not 1"),
        ("{timeout: 10}", "timeout: 10 has no unit"),
        ("{file: none.txt}", "file: there is no file 'none.txt'"),
        ("{file: empty.txt}", "file: empty.txt holds no text"),
    ],
)
def test_a_mistake_is_told_with_its_line_once(load: str, message: str, tmp_path: Path) -> None:
    for text, line in ((f"{HEAD}load: {load}\n{METHOD}  fp32: {{}}\n", 2), (f"{HEAD}{METHOD}    load: {load}\n", 6)):
        ((found, said),) = mistakes(tmp_path, text)
        assert found == line
        assert message in said


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("max_ttft_p95: 1 s", "max_ttft_p95 needs `load`, of the file or of the method"),
        ("min_throughput: 1", "min_throughput needs `load`, of the file or of the method"),
        ("max_ttft_p0: 1 s", "there is no limit 'max_ttft_p0'"),
        ("max_ttft_p100: 1 s", "there is no limit 'max_ttft_p100'; did you mean 'max_ttft_p"),
        ("max_ttft_p95: 300", "max_ttft_p95: 300 has no unit"),
        ("max_tft_p95: 1 s", "there is no limit 'max_tft_p95'; did you mean 'max_ttft_p95'?"),
    ],
)
def test_a_limit_without_what_it_needs_is_a_mistake(limits: str, message: str, tmp_path: Path) -> None:
    ((_, said),) = mistakes(tmp_path, f"{HEAD}{METHOD}    budget: {{{limits}}}\n")
    assert said.startswith(message)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("min_goodput: 0.9", "min_goodput needs a latency limit of the method, such as max_ttft_p95"),
        ("min_goodput: 95, max_ttft_p95: 1 s", "min_goodput: must be above 0 and at most 1, not 95"),
        ("max_error_rate: 1", "max_error_rate: must be at least 0 and below 1, not 1"),
        ("min_acceptance_length: 0.5", "min_acceptance_length: must be at least 1, not 0.5"),
        (
            "max_ttft_p50: 2 s, max_ttft_p90: 1 s",
            "max_ttft_p50 2 s contradicts max_ttft_p90 1 s: percentile 50 is at most percentile 90",
        ),
        (
            "max_ttft_p99: 1 s",
            "prod: max_ttft_p99 cannot pass: 200 requests give no bound at 95 % (299 do), and `undecided: fail` fails",
        ),
    ],
)
def test_a_limit_that_cannot_be_kept_or_missed_is_a_mistake(limits: str, message: str, tmp_path: Path) -> None:
    text = f"{HEAD}undecided: fail\nload: {{}}\n{METHOD}    budget: {{{limits}}}\n"
    assert any(said.startswith(message) for _, said in mistakes(tmp_path, text)), mistakes(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("load: {concurrency: [1, 32], requests: 64}\nmethods: {fp32: {budget: {max_ttft_p73: 1 s}}}", True),
        ("load: {rate: 2.5, timeout: 1 min}\nmethods: {fp32: {load: {warmup: 0}}}", True),
        ("load: {concurrency: [1, 1]}\nmethods: {fp32: {}}", False),
        ("load: {concurrent: 1}\nmethods: {fp32: {}}", False),
        ("methods: {fp32: {budget: {max_ttft_p100: 1 s}}}", False),
        ("methods: {fp32: {budget: {min_goodput: 2}}}", False),
    ],
)
def test_the_schema_says_the_same(text: str, valid: bool) -> None:
    validator = jsonschema.Draft202012Validator(schema.budget_schema())
    assert validator.is_valid(yaml.safe_load(f"model: m\n{text}")) == valid


def test_another_tool_is_run_by_the_interpreter_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    (tmp_path / "text.txt").write_text("Once upon a time.")
    path.write_text(f"{HEAD}load: {{tool: guidellm}}\n{METHOD}")
    named = Permissions(commands=True, interpreters={"guidellm": tmp_path / "python"})
    (method,) = load_budget(path, permissions=named).methods
    assert method.load is not None
    assert (method.load.tool, method.load.python) == ("guidellm", str(tmp_path / "python"))
    with pytest.raises(BudgetError, match=r"b.yaml:2: tool: guidellm runs in an interpreter of its own; the ini line"):
        load_budget(path, permissions=Permissions(commands=True))
    (method,) = load_budget(path, elsewhere=True).methods
    assert method.load is not None
    path.write_text(f"{HEAD}load: {{tool: guidellm, file: text.txt}}\n{METHOD}")
    with pytest.raises(BudgetError, match="file: guidellm makes its own prompts"):
        load_budget(path, permissions=named)
    path.write_text(f"{HEAD}load: {{tool: guidelm}}\n{METHOD}")
    with pytest.raises(BudgetError, match="'guidelm' is not one of guidellm; did you mean "):
        load_budget(path, permissions=named)

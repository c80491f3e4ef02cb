"""Hostile input: what a budget, a question file or a report must not bring about.

Model directories are in test_hostile_models.py.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_quantbudget.__main__ import main
from pytest_quantbudget.budget.find import find_budgets
from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.budget.yaml import read_yaml
from pytest_quantbudget.core.files import Roots, named_folder
from pytest_quantbudget.core.measurement import Device, Failure, Measurement
from pytest_quantbudget.core.problems import BudgetError, Problem, display_path
from pytest_quantbudget.core.request import Subject, Task, Workload
from pytest_quantbudget.core.safetext import INSTEAD, printable
from pytest_quantbudget.core.verdict import OVER, SKIPPED, LimitReport, Verdict
from pytest_quantbudget.measure import hardware
from pytest_quantbudget.models.calibration import calibration_texts
from pytest_quantbudget.report import document
from pytest_quantbudget.tasks.questions import read_file

pytestmark = pytest.mark.usefixtures("in_time")
SECRET = "root:x:0:0"
METHODS = "methods: {fp32: {}}\n"


def error_of(action: Callable[[], object]) -> str:
    """What a BudgetError says."""
    with pytest.raises(BudgetError) as error:
        action()
    return str(error.value)


# YAML


@pytest.mark.parametrize("tag", ["python/object/apply:os.system ['touch ran']", "python/module:evil ''"])
def test_a_tag_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("evil.py").write_text("from pathlib import Path\n\nPath('ran').touch()\n")
    Path("b.yaml").write_text(f"model: !!{tag}\n{METHODS}")
    assert error_of(lambda: load_budget(Path("b.yaml"))).startswith("b.yaml:1: ")
    assert not Path("ran").exists()


KEYS = ",".join(f"k{i}: 1" for i in range(3300))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "? " * 100_000,
        "a: [" + "[]," * 60_000 + "]",
        "a: &a {x: 1}\nb: [" + "*a," * 60_000 + "]",
        f"a: &a {{{KEYS}}}\nb: {{<<: [{'*a,' * 9000}, {{<<: *a}}]}}\nc: [",
        f"a: &a {{{KEYS}}}\nb: {{<<: [{'{<<: *a},' * 4000}]}}",
        "a: {<<: [&m0 {x: 1}" + "".join(f", &m{i} {{<<: *m{i - 1}}}" for i in range(1, 4000)) + "]}\nb: [",
        "a: 1" + ":59" * 60_000,
        "a: 1" + ":59" * 200 + ".5",
        "a: 0x" + "f" * 100_000,
        "a: " + "1" * 100_000,
        "k" * 190_000 + ": 1",
        'a: "\\UFFFFFFFF"',
        'a: "\\U00110000"',
        'a: "\\uD800"',
        '"\\uD800": 1',
    ],
    ids=[
        *["brackets", "complex keys", "many lists", "aliases", "merges of one", "merges of merges", "chain of merges"],
        *["sexagesimal", "sexagesimal float", "hexadecimal", "digits", "long key"],
        *["escape", "escape past Unicode", "half a character", "half a character as key"],
    ],
)
def test_no_yaml_takes_long_or_ends_in_another_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "b.yaml"
    path.write_text(text)
    start = time.perf_counter()
    message = error_of(lambda: read_yaml(path))
    assert time.perf_counter() - start < 10
    assert len(message) < 2000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("".join(f"k{i}: 1\n" for i in range(5000)), "has no key 'k0'"),
        (f"tasks: {{{','.join(f't{i}: {{}}' for i in range(2000))}}}\n", "declares 2,000 tasks"),
        ("revision: ../../x\n", "is not a commit, branch or tag"),
        ("revision: a b\n", "is not a commit, branch or tag"),
        (f"baseline: {'x' * 100_000}\n", "is not among the methods"),
    ],
    ids=["unknown keys", "tasks", "revision", "revision in words", "long name"],
)
def test_a_budget_full_of_mistakes_is_refused_soon_and_in_few_words(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "b.yaml"
    path.write_text(f"model: m\n{METHODS}{text}")
    told = error_of(lambda: load_budget(path))
    assert message in told
    assert len(told) < 100_000


@pytest.mark.parametrize("reader", [read_yaml, read_file, lambda path: calibration_texts(path, 1, 0)])
def test_pipes_devices_and_endless_files_are_not_read(tmp_path: Path, reader: Callable[[Path], object]) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    assert "cannot be read: not a regular file" in error_of(lambda: reader(pipe))
    assert "cannot be read: not a regular file" in error_of(lambda: reader(Path("/dev/zero")))
    huge = tmp_path / "huge.yaml"
    with huge.open("wb") as file:
        file.truncate(10**12)
    assert "is 1,000,000,000,000 bytes long" in error_of(lambda: reader(huge))


def test_a_mistake_quotes_no_command_and_no_escape(tmp_path: Path) -> None:
    path = tmp_path / "b\x1b.yaml"
    path.write_text(
        "model: m\nmethods: {}\n::error::x\u202e: 1\ncalibration: evil.jsonl\ntasks: {t: {file: evl.jsonl}}\n"
    )
    (tmp_path / "\n::error::\x1b[31mzzzzzzzz.jsonl").touch()
    told = error_of(lambda: load_budget(path))
    assert "known: \ufffd::error::\ufffd[31mzzzzzzzz.jsonl" in told
    assert "\x1b" not in told
    assert "\u202e" not in told
    assert not any(line.strip().startswith("::") for line in told.splitlines())
    assert display_path(path).endswith("b\ufffd.yaml")


# Paths


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a link to a directory outside, which holds everything that a budget can name."""
    repo, outside = tmp_path / "repo", tmp_path / "outside"
    repo.mkdir()
    (outside / "model").mkdir(parents=True)
    (outside / "passwd").write_text(f"{SECRET}\n")
    (outside / "base.yaml").write_text(f"model: m\n{METHODS}")
    (outside / "q.jsonl").write_text('{"question": "1+1?", "answer": "#### 2"}\n')
    (repo / "link").symlink_to(outside)
    (repo / "weights").mkdir()
    return repo


def told_of(repository: Path, text: str) -> list[str]:
    """The messages about a budget in the repository that may reach nothing else; none where it is right."""
    path = repository / "b.yaml"
    path.write_text(text)
    found: list[Problem] = []
    try:
        load_budget(path, Roots([repository]))
    except BudgetError as error:
        found += error.problems
    assert SECRET not in "".join(map(str, found))
    return [problem.message for problem in found]


NAMING = {
    "extends": "extends: {}\n",
    "model": "model: {}\nmethods: {{fp32: {{}}}}\n",
    "checkpoint": "model: m\nmethods: {{gptq-int4: {{checkpoint: {}}}}}\n",
    "adapter": "model: m\nmethods: {{nf4: {{adapter: {}}}}}\n",
    "file": "model: m\nmethods: {{fp32: {{}}}}\ntasks: {{t: {{file: {}}}}}\n",
    "engine_options": "model: m\nmethods: {{fp32: {{engine: vllm, engine_options: {{lora_modules: {}}}}}}}\n",
    "calibration": "model: m\ncalibration: {}\nmethods: {{gptq-int4: {{options: {{texts: 1}}}}}}\n",
}


@pytest.mark.parametrize("key", list(NAMING))
@pytest.mark.parametrize("there", ["model", "passwd", "base.yaml", "q.jsonl", "absent", "absent/q.jsonl"])
@pytest.mark.parametrize("way", ["../outside/", "link/", "./link/../outside/", "{outside}/", "link/../outside/"])
def test_what_lies_outside_is_refused_whether_it_is_there_or_not(
    repository: Path, key: str, there: str, way: str
) -> None:
    name = way.format(outside=repository.parent / "outside") + there
    (message,) = told_of(repository, NAMING[key].format(name))
    assert f"{name!r} l" in message
    assert "outside the repository; the ini line `quant_allow_paths = " in message
    plain = message.replace(name, "NAME").replace(f"/{there}`", "/NAME`")
    (other,) = told_of(repository, NAMING[key].format(name.replace(there, "nothing")))
    assert other.replace(name.replace(there, "nothing"), "NAME").replace("/nothing`", "/NAME`") == plain


@pytest.mark.parametrize("name", ["~root/x.yaml", "~nobody-here/x.yaml", "~/x.yaml"])
@pytest.mark.parametrize("key", list(NAMING))
def test_homes_lie_outside_whosever_they_are(repository: Path, key: str, name: str) -> None:
    (message,) = told_of(repository, NAMING[key].format(name))
    assert "lies outside the repository" in message


def test_a_budget_that_extends_a_file_of_the_system_quotes_nothing_of_it(repository: Path) -> None:
    (message,) = told_of(repository, "extends: /etc/passwd\n")
    assert message == (
        "`extends`: '/etc/passwd' lies outside the repository; the ini line `quant_allow_paths = /etc/passwd` allows it"
    )


def test_a_folder_whose_name_begins_alike_lies_outside(repository: Path) -> None:
    repository.with_name("repo2").mkdir()
    (message,) = told_of(repository, NAMING["model"].format("../repo2"))
    assert message.startswith("model: '../repo2' lies outside the repository")


def test_the_parents_of_a_budget_are_held_to_the_same(repository: Path) -> None:
    (repository / "base.yaml").write_text("extends: link/base.yaml\n")
    (message,) = told_of(repository, "extends: base.yaml\n")
    assert message.startswith("`extends`: 'link/base.yaml' leads outside")


def test_a_link_cannot_pass_for_a_hub_id(repository: Path) -> None:
    assert told_of(repository, NAMING["model"].format("acme/model")) == []
    for name in ("link/model", "link/absent"):
        assert "leads outside the repository" in told_of(repository, NAMING["model"].format(name))[0]


@pytest.mark.parametrize("place", ["config.json", "sub/chat.jinja"])
def test_a_model_of_the_repository_holds_no_links_that_lead_outside(repository: Path, place: str) -> None:
    link = repository / "weights" / place
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(repository.parent / "outside" / "passwd")
    (message,) = told_of(repository, NAMING["model"].format("./weights"))
    assert message.startswith(f"model: {link.name!r} leads outside the repository")
    link.unlink()
    link.symlink_to(repository / "b.yaml")
    assert told_of(repository, NAMING["model"].format("./weights")) == []


def test_hints_list_nothing_that_lies_outside(repository: Path) -> None:
    (repository.parent / "repp.jsonl").touch()
    (repository.parent / "repp.yaml").touch()
    (message,) = told_of(repository, NAMING["file"].format("."))
    assert message == "file: there is no file '.'"
    (message,) = told_of(repository, "extends: .\n")
    assert message == "`extends` names '.', which is not a file; the package ships builtin.yaml, qwen3_8b.yaml"


@pytest.mark.parametrize("key", list(NAMING))
def test_what_the_ini_file_allows_may_be_named(repository: Path, key: str) -> None:
    names = {"extends": "base.yaml", "model": "model", "checkpoint": "model"}
    path = repository / "b.yaml"
    path.write_text(NAMING[key].format(f"link/{names.get(key, 'q.jsonl')}"))
    assert load_budget(path, Roots([repository, repository.parent / "outside"])).methods


def test_a_budget_that_lies_outside_is_not_read(repository: Path) -> None:
    (repository / "b.yaml").symlink_to(repository.parent / "outside" / "passwd")
    told = error_of(lambda: load_budget(repository / "b.yaml", Roots([repository])))
    assert "lies outside the repository" in told
    assert SECRET not in told


def test_the_command_line_check_holds_budgets_to_what_was_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository)
    Path("b.yaml").write_text("extends: ../outside/base.yaml\n")
    assert main(["check", "b.yaml"]) == 4
    assert "lies outside the repository" in capsys.readouterr().err
    assert main(["check", "b.yaml", "--allow-path", "../outside"]) == 0
    assert main(["check", "../outside/base.yaml"]) == 0
    Path("found").mkdir()
    Path("found/x.yaml").symlink_to("../../outside/passwd")
    for name in ("found", "found/*.yaml"):
        assert main(["check", name]) == 4
        assert SECRET not in capsys.readouterr().err


def test_naming_a_budget_opens_its_folder(repository: Path) -> None:
    outside = repository.parent / "outside"
    assert named_folder(repository, "link/base.yaml") == outside
    assert named_folder(repository, "link") == repository / "link"
    assert named_folder(repository, "link/*/b?.yaml") == repository / "link"


# Reports

EVIL = "::error::\x1b[2J\x07\u202e\x9b\r\nx"
BUDGET = document.BudgetReport(
    file=EVIL,
    model=EVIL,
    revision=EVIL,
    baseline=EVIL,
    workload=Workload(1, 2, 1, 1),
    prompt=EVIL,
    tasks=(Task(EVIL, 1, 0, 0, EVIL, 8, 1, EVIL),),
    methods=(),
)


def evil_report() -> document.Report:
    """A report of which every text is hostile."""
    subject = Subject(EVIL, EVIL, EVIL, EVIL, {}, EVIL)
    measured = Measurement(
        subject,
        device=Device(EVIL, EVIL, 1, EVIL, EVIL, 1),
        weights=1000,
        replies={EVIL: EVIL},
        failures=(Failure(EVIL, EVIL, EVIL, EVIL),),
    )
    limits = [
        LimitReport(EVIL, EVIL, 1, Verdict(outcome, EVIL, limit_text=EVIL, unit=EVIL, detail=EVIL))
        for outcome in (OVER, SKIPPED, EVIL)
    ]
    budget = replace(BUDGET, methods=(document.MethodReport(EVIL, measured, tuple(limits)),))
    return document.Report(document.VERSION, EVIL, hardware.machine(), None, (budget,))


def test_a_report_from_elsewhere_prints_no_escape_and_no_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document.write(tmp_path / "r.json", evil_report())
    assert main(["table", str(tmp_path / "r.json")]) == 0
    out = capsys.readouterr().out
    assert INSTEAD in out
    for line in out.split("\n"):
        assert line == printable(line)


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"version": "\\u001b[31m"}', '{"version": 1, "\\u001b[31m": 1}', '{"version": 1e999}', "\x1b[31m"],
    ids=["nested", "version", "key", "infinite", "no JSON"],
)
def test_what_is_no_report_ends_in_one_plain_line(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.json").write_text(content)
    assert main(["table", str(tmp_path / "r.json")]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line == printable(line)


def test_figures_that_cannot_be_divided_end_in_one_plain_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document.write(tmp_path / "r.json", evil_report())
    text = json.loads((tmp_path / "r.json").read_text())
    text["budgets"][0]["methods"][0]["measurement"]["weights"] = 10**400
    (tmp_path / "r.json").write_text(json.dumps(text))
    assert main(["table", str(tmp_path / "r.json")]) == 4
    assert capsys.readouterr().err.startswith("ERROR: ")


def test_a_link_among_budgets_that_leads_elsewhere_is_no_budget(tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text("password: x\n")
    folder = tmp_path / "repository" / "budgets"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text("model: builtin\nmethods: {}\n")
    (folder / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    (folder / "dangling.yaml").symlink_to(tmp_path / "nowhere.yaml")
    assert find_budgets("budgets", tmp_path / "repository") == [folder / "own.yaml"]
    assert find_budgets("budgets/*.yaml", tmp_path / "repository") == [folder / "own.yaml"]

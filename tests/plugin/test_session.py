"""What a run knows of its selected limits."""

from pathlib import Path

from builders import session

from pytest_quantbudget.core.verdict import NOT_RUN, WITHIN, Verdict

TEXT = """model: m
baseline: fp16
methods:
  fp16: {budget: {max_weights: 9 GiB}}
  nf4:
    budget:
      max_weights_ratio: 0.5
      max_vram: 7 GiB
"""


def test_selected_limits_are_planned_and_stay_not_run_until_they_are_judged(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(TEXT)
    run = session(tmp_path)
    budget = run.budgets.load(tmp_path / "b.yaml")
    ids = ["b.yaml::nf4::max_vram", "b.yaml::nf4::max_weights_ratio"]
    run.select([*ids, "test_mine.py::test_it", "b.yaml::fp16::max_nothing"])
    run.record(ids[0], Verdict(WITHIN, "fits"))
    assert [limit.id for limit in run.not_run()] == [ids[1], "b.yaml::fp16::max_nothing"]
    assert {r.subject.method for r in run.needs.requests.values()} == {"nf4", "fp16"}  # the ratio needs the baseline
    ((selected, limits),) = run.selected()
    assert selected is budget
    assert [(limit.method, limit.name, limit.line, limit.verdict.outcome) for limit in limits] == [
        ("nf4", "max_weights_ratio", 7, NOT_RUN),
        ("nf4", "max_vram", 8, WITHIN),
        ("fp16", "max_nothing", 0, NOT_RUN),  # no such limit: behind all others
    ]
    run.select(ids)
    assert run.limits[ids[0]].verdict.outcome == WITHIN

"""Several hand-made reports judged as one run: who is compared with whom, what stays apart, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from stored_reports import ALL, COMMIT, GIB, ON_CPU, ON_H100, ON_L4, TEXT, furnish, job, measured, read

from pytest_quantbudget.budget.find import Budgets
from pytest_quantbudget.core.answers import Origin
from pytest_quantbudget.core.gpus import Commit
from pytest_quantbudget.core.measurement import Failure, Measurement
from pytest_quantbudget.core.request import LOAD
from pytest_quantbudget.core.verdict import SKIPPED, WITHIN, LimitReport, Verdict
from pytest_quantbudget.judge.needs import Needs
from pytest_quantbudget.plugin.judging import verdict_on
from pytest_quantbudget.plugin.session import Session
from pytest_quantbudget.report import baseline, consistency, differences, document, merged, table
from pytest_quantbudget.report.again import Stored
from pytest_quantbudget.report.document import MethodReport, Report
from pytest_quantbudget.report.merged import Merged
from pytest_quantbudget.report.stored_run import StoredRun

EPYC, XEON = "a CPU", "Intel Xeon"
Change = Callable[[Measurement], Measurement]


@pytest.fixture
def room(tmp_path: Path) -> Path:
    return furnish(tmp_path)


def slower(times: float) -> Change:
    """A run in which decoding took so many times as long."""

    def change(record: Measurement) -> Measurement:
        speed = record.speeds[0]
        return replace(record, speeds=(replace(speed, decode_s=tuple(times * each for each in speed.decode_s)),))

    return change


def together(**reports: Report) -> Merged:
    for each in reports.values():
        consistency.check(each)
    stored = [Stored(f"{name}.json", each, None) for name, each in reports.items()]
    return Merged(tuple(part for each in stored for part in merged.parts(each)))


def judged(room: Path, found: Merged, text: str = TEXT) -> tuple[dict[str, Verdict], Report]:
    """The verdicts as `METHOD LIMIT` or `METHOD LIMIT[MACHINE]`, and the report of the run."""
    (room / "b.yaml").write_text(text)
    run = Session(room, Budgets(elsewhere=True), Needs(), lambda needs: StoredRun(needs, found))
    run.machines = found.machines
    budget = run.budgets.load(room / "b.yaml")
    ids = {}
    for method in budget.methods:
        machines = found.machines(budget, method.name)
        for machine in machines or ("",):
            for limit in method.limits:
                name = f"{limit.name}[{machine}]" if len(machines) > 1 else limit.name
                ids[f"b.yaml::{method.name}::{name}"] = (method, limit, machine)
    run.select(ids)
    for id_, (method, limit, machine) in ids.items():
        run.record(id_, verdict_on(run, budget, method, limit, (), machine))
    parts, measurer = run.judged({}), run.measurer
    here, commit, origin = measurer.origin(room)
    built = document.build(room, parts, here, commit, origin, measurer.merged_from, measurer.notes([budget]))
    names = {id_: id_.removeprefix("b.yaml::").replace("::", " ") for id_ in ids}
    return {names[id_]: limit.verdict for id_, limit in run.limits.items()}, built


def lines(found: Report) -> list[str]:
    return [line.text for line in table.lines(found)]


def test_one_method_a_job_gives_the_verdicts_and_the_table_of_one_run(room: Path) -> None:
    budget = read(room, TEXT)
    alone, of_one = judged(room, together(all=job(budget, *(method.name for method in budget.methods))))
    jobs = {name: job(budget, name) for name in ("fp16", "nf4", "gptq-int4", "awq-int4")}
    verdicts, of_all = judged(room, together(**jobs))
    assert set(verdicts) == ALL
    assert verdicts == alone
    assert {verdict.outcome for verdict in verdicts.values()} == {"within"}
    (one,), (other,) = of_one.budgets, of_all.budgets
    assert [replace(method, from_report="") for method in other.methods] == list(one.methods)
    assert [method.from_report for method in other.methods] == [
        "fp16.json",
        "nf4.json",
        "gptq-int4.json",
        "awq-int4.json",
    ]
    assert lines(of_all)[:-1] == lines(of_one)[:-1]
    assert lines(of_all)[-1].startswith("judged from 4 reports, measured: fp16.json (2026-01-01T00:00:00+00:00), nf4")
    assert (of_one.merged_from, len(of_all.merged_from)) == ((), 4)


def test_each_method_is_compared_with_the_baseline_of_its_own_run(room: Path) -> None:
    """The whole of one job ran at half the speed: on its machine nf4 is as fast as fp16."""
    text = TEXT.replace("max_weights: 5 GiB, max_vram", "min_speedup: 0.99, max_weights: 5 GiB, max_vram")
    budget = read(room, text)
    found = together(fp16=job(budget, "fp16"), nf4=job(budget, "nf4", change=slower(2)))
    verdicts, built = judged(room, found, text)
    assert verdicts["nf4 min_speedup"].measured == pytest.approx(1.0)
    row = next(line for line in lines(built) if line.startswith("nf4"))
    assert " 1.00x " in row
    # What the report holds of it is enough to judge it again, and to print its table again.
    document.write(room / "merged.json", built)
    read_again = document.read(room / "merged.json")
    assert lines(read_again) == lines(built)
    again, third = judged(room, together(merged=read_again), text)
    assert again == verdicts
    assert [replace(each, budgets=()) for each in (third,)] == [replace(built, budgets=(), created=third.created)]
    assert [method for b in third.budgets for method in b.methods] == [m for b in built.budgets for m in b.methods]
    # Compared with the other job's baseline it would be half as fast.
    moved = replace(built.budgets[0], methods=tuple(replace(m, against=None) for m in built.budgets[0].methods))
    assert " 0.50x " in next(line for line in lines(replace(built, budgets=(moved,))) if line.startswith("nf4"))


def test_the_baseline_is_shown_with_what_other_jobs_measured_of_it(room: Path) -> None:
    """No limit on fp16 asks for its speed, and its own job measured none; one run would have."""
    budget = read(room, TEXT)
    without = job(budget, "fp16", change=lambda record: replace(record, speeds=(), perplexities=()))
    text = TEXT.replace("max_weights: 5 GiB, max_vram", "min_speedup: 0.99, max_weights: 5 GiB, max_vram")
    verdicts, built = judged(room, together(fp16=without, nf4=job(budget, "nf4", change=slower(2))), text)
    assert verdicts["nf4 min_speedup"].outcome == "within"
    (row,) = [line for line in lines(built) if line.startswith("fp16")]
    assert " 1.00x " in row
    consistency.check(built)
    assert judged(room, together(merged=built), text)[0] == verdicts


def test_machines_of_unlike_gpus_are_two_series(room: Path) -> None:
    text = TEXT.replace("max_vram: 6 GiB", 'max_vram: {"NVIDIA L4": 1 GiB, "*": 6 GiB}')
    budget = read(room, text)
    names = [method.name for method in budget.methods]
    l4 = job(budget, *names, device=ON_L4, change=_on_gpu)
    found = together(h100=job(budget, *names), l4=l4, more=job(budget, "nf4", device=ON_L4, change=_on_gpu))
    verdicts, built = judged(room, found, text)
    assert len(verdicts) == 2 * len(ALL)
    assert verdicts["nf4 max_vram[NVIDIA H100 80GB HBM3]"].outcome == "within"
    assert verdicts["nf4 max_vram[NVIDIA L4]"].outcome == "over"
    assert [each.machine for each in built.budgets] == ["NVIDIA H100 80GB HBM3", "NVIDIA L4"]
    titles = [line.text for line in table.lines(built) if line.title]
    assert titles == [
        "quantization budget b.yaml on NVIDIA H100 80GB HBM3",
        "quantization budget b.yaml on NVIDIA L4",
    ]
    again, _ = judged(room, together(merged=built), text)
    assert again == verdicts


def _on_gpu(record: Measurement) -> Measurement:
    speed = record.speeds[0]
    return replace(record, speeds=(replace(speed, peak_allocated=(record.weights or 0) + GIB),))


def test_a_method_of_one_machine_keeps_its_id_and_is_judged_with_that_machine(room: Path) -> None:
    budget = read(room, TEXT)
    found = together(fp16=job(budget, "fp16"), nf4=job(budget, "nf4", device=ON_L4, change=_on_gpu))
    verdicts, built = judged(room, found)
    assert set(verdicts) == ALL
    assert {name for name, verdict in verdicts.items() if verdict.outcome != "within"} == {
        "gptq-int4 max_weights",
        "awq-int4 max_weights",
    }
    (first, second) = built.budgets
    # fp16 stands in the other table as what nf4 is compared with, and has its verdicts in the first.
    assert [(m.name, len(m.limits)) for m in second.methods] == [("fp16", 0), ("nf4", 5)]
    assert [m.name for m in first.methods if m.measurement is not None] == ["fp16"]


def test_cpus_of_unlike_names_are_two_series(room: Path) -> None:
    budget = read(room, TEXT)
    fp16, nf4 = job(budget, "fp16", device=ON_CPU), job(budget, "nf4", device=ON_CPU)
    nf4 = replace(nf4, machine=replace(nf4.machine, cpu=XEON))
    _, built = judged(room, together(fp16=fp16, nf4=nf4))
    assert [each.machine for each in built.budgets] == [EPYC, XEON]
    assert built.notes == (f"the CPU is {EPYC} in fp16.json; {XEON} in nf4.json",)


def test_a_method_that_no_report_holds_fails_and_names_them(room: Path) -> None:
    budget = read(room, TEXT)
    verdicts, built = judged(room, together(a=job(budget, "fp16"), b=job(budget, "nf4")))
    failed = {name: verdict for name, verdict in verdicts.items() if verdict.outcome != "within"}
    assert set(failed) == {"gptq-int4 max_weights", "awq-int4 max_weights"}
    why = "gptq-int4: max_weights not measured: none of the reports holds a measurement of it: a.json, b.json"
    assert (failed["gptq-int4 max_weights"].message, failed["gptq-int4 max_weights"].outcome) == (why, "failed")
    assert any("none of the reports holds a measurement of it" in line for line in lines(built))


def test_what_failed_or_was_skipped_in_a_job_does_so_in_the_merge(room: Path) -> None:
    budget = read(room, TEXT)
    crashed = job(budget, "nf4")
    crash = Failure(LOAD, "error", "the measuring process died (SIGSEGV)")
    (mine,) = crashed.budgets
    broken = replace(mine.methods[1], measurement=Measurement(budget.method("nf4").subject, failures=(crash,)))
    crashed = replace(crashed, budgets=(replace(mine, methods=(mine.methods[0], broken)),))
    without = job(budget, "gptq-int4")
    skip = Verdict(SKIPPED, "gptq-int4: max_weights needs a GPU; no GPU was found", for_want_of_gpu=True)
    limits = (LimitReport("b.yaml::gptq-int4::max_weights", "max_weights", 1, skip),)
    unmeasured = (MethodReport("gptq-int4", None, limits),)
    without = replace(without, budgets=(replace(without.budgets[0], methods=unmeasured),))
    verdicts, _ = judged(room, together(fp16=job(budget, "fp16"), nf4=crashed, gptq=without))
    assert verdicts["nf4 max_vram"].message == "nf4: max_vram not measured: the measuring process died (SIGSEGV)"
    skipped = verdicts["gptq-int4 max_weights"]
    assert (skipped.outcome, skipped.for_want_of_gpu) == ("skipped", True)
    assert skipped.message.endswith("skipped in gptq.json: needs a GPU; no GPU was found")


def test_settings_that_differ_are_told_with_the_report_that_has_them(room: Path) -> None:
    old = read(room, TEXT.replace("questions: 10", "questions: 10, seed: 1"))
    nf4 = job(old, "nf4")
    budget = read(room, TEXT)
    verdicts, _ = judged(room, together(fp16=job(budget, "fp16"), nf4=nf4))
    assert "task sums: seed is 0 here and 1 in nf4.json" in verdicts["nf4 max_sums_drop"].message
    assert verdicts["nf4 max_weights"].outcome == "within"


def refused(room: Path, **reports: Report) -> list[str]:
    return list(differences.contradictions(together(**reports), read(room, TEXT)))


def test_other_figures_of_one_method_on_one_kind_of_machine_are_refused(room: Path) -> None:
    budget = read(room, TEXT)
    one, other = job(budget, "fp16", "nf4"), job(budget, "nf4", change=slower(2))
    (why,) = refused(room, a=one, b=other)
    assert why == "a.json and b.json hold different figures of nf4 (memory and speed): name the one that counts"
    text = replace(
        measured(budget, budget.method("nf4")),
        load_time_s=2.0,
        weights=GIB // 2,
        failures=(Failure("x", "error", "y"),),
    )
    (why,) = refused(room, a=one, b=job(budget, "nf4", change=lambda record: replace(text, subject=record.subject)))
    assert "(what failed, the weights, the load time)" in why
    assert refused(room, a=one, b=job(budget, "fp16")) == []
    # When it was measured, and whether it came from a cache, is no figure.
    kept = job(budget, "nf4", change=lambda record: replace(record, loaded=Origin("2026", reused=True), took_s=9.0))
    assert refused(room, a=one, b=kept) == []
    # On another kind of machine it is another series.
    far = job(budget, "fp16", "nf4", device=ON_L4)
    assert refused(room, a=one, far=far) == []
    (why,) = refused(room, a=one, far=far, b=job(budget, "nf4", device=ON_L4, change=slower(3)))
    assert "far.json and b.json hold different figures of nf4 on NVIDIA L4" in why


def test_another_revision_of_the_model_is_refused(room: Path) -> None:
    budget = read(room, TEXT)
    moved = job(budget, "nf4", change=lambda record: replace(record, revision="f" * 40))
    (why,) = refused(room, a=job(budget, "fp16"), b=moved)
    told = f"the model was not the same in a.json ({COMMIT[:12]}) and b.json ({'f' * 12}): "
    assert why == told + "a `revision` in the budget keeps it"
    other = job(
        budget,
        "awq-int4",
        device=ON_L4,
        change=lambda r: replace(r, checkpoint_revision=r.checkpoint_revision and "e" * 40),
    )
    (why,) = refused(room, a=job(budget, "awq-int4"), b=other)
    assert why.startswith("the checkpoint of awq-int4 was not the same in a.json")


def test_versions_and_commits_that_differ_are_told(room: Path) -> None:
    budget = read(room, TEXT)
    reports = {}
    for name, torch, sha in (
        ("fp16", "2.12", "a"),
        ("nf4", "2.13", "b"),
        ("gptq-int4", "2.12", "a"),
        ("awq-int4", "2.12", "a"),
    ):
        found = job(budget, name)
        libraries = {"torch": torch, name: "1.0"}
        reports[name] = replace(
            found, commit=Commit(sha * 40, False), machine=replace(found.machine, libraries=libraries)
        )
    _, built = judged(room, together(**reports))
    assert built.commit is None
    assert built.notes == (
        f"the commit is {'a' * 12} in fp16.json, gptq-int4.json, awq-int4.json; {'b' * 12} in nf4.json",
        "torch is 2.12 in fp16.json, gptq-int4.json, awq-int4.json; 2.13 in nf4.json",
    )
    assert f"note: {built.notes[1]}" in lines(built)


def test_unlike_answers_of_the_baseline_are_told(room: Path) -> None:
    budget = read(room, TEXT)

    def otherwise(record: Measurement) -> Measurement:
        answers = record.tasks[0].answers
        return replace(
            record, tasks=(replace(record.tasks[0], answers=(replace(answers[0], text="Hm"), *answers[1:])),)
        )

    _, built = judged(room, together(fp16=job(budget, "fp16"), nf4=job(budget, "nf4", change=otherwise)))
    assert built.notes == (
        "fp16 answered 1 of 10 questions of sums otherwise in nf4.json than in fp16.json: each method is compared with "
        "the baseline of its own report",
    )


def test_reports_of_several_budgets_go_by_their_files(room: Path) -> None:
    budget = read(room, TEXT)
    other = read(room, TEXT.replace("org/model", "org/other"), "c.yaml")
    verdicts, _ = judged(room, together(b=job(budget, *(m.name for m in budget.methods)), c=job(other, "fp16", "nf4")))
    assert {verdict.outcome for verdict in verdicts.values()} == {"within"}
    assert refused(room, b=job(budget, "nf4"), c=job(other, "nf4", change=slower(2))) == []
    # Both in each report, in another order: one of a budget is compared with the same one.
    of_both = (*job(budget, "nf4").budgets, *job(other, "nf4", change=slower(2)).budgets)
    one = replace(job(budget, "nf4"), budgets=of_both)
    assert refused(room, one=one, two=replace(one, budgets=of_both[::-1])) == []


@pytest.mark.parametrize(
    ("name", "label"),
    [("a::b[c]/d", "a b c d"), ("\x1b[2Jx", "\N{REPLACEMENT CHARACTER} 2Jx"), ("x" * 99, "x" * 60), ("::", "cpu")],
)
def test_a_machines_name_means_nothing_in_an_id(room: Path, name: str, label: str) -> None:
    found = job(read(room, TEXT), "fp16", device=replace(ON_H100, name=name))
    assert merged.kind_of(found) == label
    limit = LimitReport(f"b.yaml::fp16::max_vram[{label}]", "max_vram", 1, Verdict(WITHIN, ""))
    assert (limit.method, limit.machine) == ("fp16", label)


def test_a_merged_report_is_a_baseline_where_it_is_of_one_kind_of_machine(room: Path) -> None:
    budget = read(room, TEXT)
    other = job(budget, "nf4", device=ON_CPU)
    other = replace(other, machine=replace(other.machine, cpu=XEON))
    of_one = judged(room, together(fp16=replace(job(budget, "fp16", device=ON_CPU), machine=other.machine), nf4=other))[
        1
    ]
    document.write(room / "v1.json", replace(of_one, machine=replace(other.machine, cpu="the first report's")))
    assert baseline.read(room / "v1.json", "b.yaml", None, "nf4", [budget.workload]).cpu == XEON
    of_two = judged(room, together(fp16=job(budget, "fp16"), nf4=other))[1]
    document.write(room / "v2.json", of_two)
    with pytest.raises(
        baseline.Unnamed, match=r"v2.json holds figures of Intel Xeon and NVIDIA H100 80GB HBM3: name the"
    ):
        baseline.read(room / "v2.json", "b.yaml", None, "nf4", [])


def test_more_reports_than_anyone_merges_are_refused(room: Path) -> None:
    _, built = judged(room, together(a=job(read(room, TEXT), "fp16"), b=job(read(room, TEXT), "nf4")))
    with pytest.raises(ValueError, match="it was judged from 1,002 reports, and 1,000 are the most"):
        consistency.check(replace(built, merged_from=built.merged_from * 501))


def test_a_report_whose_methods_come_from_nowhere_is_refused(room: Path) -> None:
    budget = read(room, TEXT)
    _, built = judged(room, together(a=job(budget, "fp16"), b=job(budget, "nf4")))
    with pytest.raises(ValueError, match=r"nf4 is from 'b.json', which is none of its sources"):
        consistency.check(replace(built, merged_from=built.merged_from[:1]))
    # What its methods are compared with is looked at like all else.
    worse = replace(
        measured(budget, budget.method("fp16")),
        speeds=(replace(measured(budget, budget.method("fp16")).speeds[0], ttft_s=(0.1,)),),
    )
    methods = tuple(replace(method, against=worse) for method in built.budgets[0].methods)
    with pytest.raises(ValueError, match=r"contradicts itself: b.yaml, fp16: workload: 1 values of ttft_s"):
        consistency.check(replace(built, budgets=(replace(built.budgets[0], methods=methods),)))

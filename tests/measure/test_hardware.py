"""The machine: which GPUs are visible, what is lacking, and the commit; no GPU is needed to ask."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_quantbudget.core.gpus import Commit, Gpu, GpuNeed, lacking, share, visible_gpus
from pytest_quantbudget.measure import hardware
from pytest_quantbudget.measure.hardware import commit, machine

GIB = 2**30
A100 = Gpu(0, "NVIDIA A100-SXM4-40GB", "GPU-aaaa-1111", 40 * GIB, 39 * GIB, "8.0", "580.1")
H100 = Gpu(1, "NVIDIA H100 80GB HBM3", "GPU-aabb-2222", 80 * GIB, 79 * GIB, "9.0", "580.1")
T4 = Gpu(2, "Tesla T4", "GPU-cccc-3333", 15 * GIB, 4 * GIB, "7.5", "580.1")
ALL = [A100, H100, T4]


@pytest.mark.parametrize(
    ("listed", "gpus"),
    [
        (None, ALL),
        ("0,1,2", ALL),
        ("2,0", [T4, A100]),
        (" 1 , 2 ", [H100, T4]),
        ("GPU-aaaa-1111", [A100]),
        ("GPU-c,GPU-aabb", [T4, H100]),
        ("1,GPU-cccc", [H100, T4]),
        ("GPU-aa,2", []),
        ("0,7,1", [A100]),
        ("0,-1,1", [A100]),
        ("1,,0", [H100]),
        ("", []),
        ("none", []),
        ("aaaa-1111", []),
        ("MIG-GPU-aaaa-1111/1/0", []),
    ],
    ids=[
        *["unset", "all", "in its order", "spaces", "UUID", "UUID prefixes", "mixed", "ambiguous prefix ends the list"],
        *["unknown index ends the list", "-1 ends the list", "gap ends the list", "empty hides all", "word"],
        *["UUID without GPU-", "MIG"],
    ],
)
def test_cuda_visible_devices_leaves(listed: str | None, gpus: list[Gpu]) -> None:
    assert visible_gpus(ALL, {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}) == gpus


def test_the_index_is_the_drivers_and_not_the_place_in_the_list() -> None:
    assert visible_gpus([T4, A100], {"CUDA_VISIBLE_DEVICES": "0"}) == [A100]


@pytest.mark.parametrize(
    ("worker", "mine"),
    [(None, ["GPU-1", "GPU-2", "GPU-3"]), (0, ["GPU-1", "GPU-3"]), (1, ["GPU-3", "GPU-1"]), (2, ["GPU-1", "GPU-3"])],
    ids=["alone", "first", "second", "more workers than GPUs"],
)
def test_each_worker_takes_its_own_gpu_first_and_only_those_of_one_kind(worker: int | None, mine: list[str]) -> None:
    gpus = [replace(A100, uuid="GPU-1"), replace(T4, uuid="GPU-2"), replace(A100, uuid="GPU-3")]
    assert [gpu.uuid for gpu in share(gpus, worker)] == mine
    assert share([], worker) == []


@pytest.mark.parametrize(
    "need",
    [
        GpuNeed(),
        GpuNeed(min_vram=79 * GIB),
        GpuNeed(min_capability="9.0"),
        GpuNeed(count=3),
        GpuNeed(min_vram=39 * GIB, min_capability="8.0", count=2),
    ],
    ids=["any", "memory", "capability", "count", "all three"],
)
def test_nothing_is_lacking_where_the_gpus_suffice(need: GpuNeed) -> None:
    assert lacking(need, ALL) is None


FOUND_T4 = "Tesla T4 (15.0 GiB, 4.00 GiB free, capability 7.5)"
FOUND_A100 = "NVIDIA A100-SXM4-40GB (40.0 GiB, 39.0 GiB free, capability 8.0)"


@pytest.mark.parametrize(
    ("need", "gpus", "words"),
    [
        (GpuNeed(), [], "needs a GPU; no GPU was found"),
        (GpuNeed(16 * GIB, "8.0"), [], "needs a GPU with 16.0 GiB of compute capability 8.0; no GPU was found"),
        (GpuNeed(16 * GIB), [T4], f"needs a GPU with 16.0 GiB; found: {FOUND_T4}"),
        (GpuNeed(8 * GIB), [T4], f"needs a GPU with 8.00 GiB; too little free memory: {FOUND_T4}"),
        (GpuNeed(min_capability="8.0"), [T4], f"needs a GPU of compute capability 8.0; found: {FOUND_T4}"),
        (GpuNeed(count=2), [T4], f"needs 2 GPUs; found: {FOUND_T4}"),
        (
            GpuNeed(30 * GIB, count=2),
            [T4, A100],
            f"needs 2 GPUs with 30.0 GiB; found: {FOUND_T4}; {FOUND_A100}",
        ),
        (
            GpuNeed(15 * GIB + 2**20),
            [T4],
            "needs a GPU with 15.001 GiB; found: Tesla T4 (15 GiB, 4 GiB free, capability 7.5)",
        ),
    ],
    ids=["no GPU", "no GPU, in full", "memory", "free memory", "capability", "count", "one large", "nearly"],
)
def test_what_is_lacking_names_what_was_wanted_and_what_was_found(need: GpuNeed, gpus: list[Gpu], words: str) -> None:
    assert lacking(need, gpus) == words


def test_capabilities_compare_as_numbers() -> None:
    assert lacking(GpuNeed(min_capability="9.0"), [replace(T4, capability="10.0")]) is None
    assert lacking(GpuNeed(min_capability="8.10"), [replace(T4, capability="8.9")]) is not None


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_the_one_checked_out_and_says_whether_files_changed(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    sha = git(tmp_path, "rev-parse", "HEAD")
    assert commit(tmp_path) == Commit(sha, dirty=False)
    (tmp_path / "file").write_text("two")
    assert commit(tmp_path) == Commit(sha, dirty=True)


def test_a_folder_inside_the_repository_has_its_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "one")
    (tmp_path / "sub").mkdir()
    assert commit(tmp_path / "sub") == Commit(git(tmp_path, "rev-parse", "HEAD"), dirty=False)


@pytest.mark.parametrize("initialise", [False, True], ids=["no repository", "no commit yet"])
def test_without_a_commit_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, initialise: bool) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if initialise:
        git(tmp_path, "init", "--quiet")
    assert commit(tmp_path) is None


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "one")
    monkeypatch.setenv("PATH", "")
    assert commit(tmp_path) is None


def test_the_machine_names_its_parts_and_the_libraries_that_figures_depend_on() -> None:
    here = machine()
    assert here.cores >= 1
    assert here.ram is None or here.ram > 2**26
    assert {"pytest", "pytest-quantbudget", "pyyaml"} <= set(here.libraries)
    assert here.libraries["pytest"] == pytest.__version__


def test_the_gpus_of_a_process_are_looked_at_once_largest_first_and_only_those_that_it_takes_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "all_gpus", lambda: [replace(H100, free=GIB), A100])
    gpus = hardware.LocalGpus()
    assert "too little free memory" in (gpus.lacking(GpuNeed(min_vram=8 * GIB)) or "")
    monkeypatch.setattr(hardware, "all_gpus", list)
    assert [gpu.name for gpu in gpus.usable] == [H100.name, A100.name]
    assert gpus.lacking(GpuNeed(min_vram=8 * GIB, count=2)) is not None

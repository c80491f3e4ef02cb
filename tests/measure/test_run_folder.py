"""What a run leaves, and what the next one removes: of the dead, and never of the living."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from pytest_quantbudget.core import files
from pytest_quantbudget.measure import run_folder

# Makes a run's folder, and is in the middle of writing a file.
RUN = """
import sys, time
from pathlib import Path
from pytest_quantbudget.core import files
from pytest_quantbudget.measure import run_folder

folder = run_folder.RunFolder()
run_folder.note_sockets(folder.path)
with files.replacing(Path(sys.argv[1], "entry")) as half:
    half.write_text("half")
    Path(sys.argv[1], "ready").write_text(str(folder.path))
    time.sleep(600)
"""

# Measures in a fork that ends without clearing up, as plugins that fork each test have it, and itself goes on.
FORKED = """
import os
from multiprocessing import util
from pathlib import Path
from pytest_quantbudget.measure import run_folder

folder = run_folder.RunFolder()
if not (fork := os.fork()):
    run_folder.note_sockets(folder.path)
    os._exit(0)
os.waitpid(fork, 0)
run_folder.note_sockets(folder.path)
print(*sorted(path.name.partition("-")[0] for path in folder.path.parent.iterdir()))
folder.remove()
print(*(path == Path(util.get_temp_dir()) for path in folder.path.parent.iterdir()))
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, of this process and of those that it starts."""
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty cache."""
    (tmp_path / "cache" / "quantized").mkdir(parents=True)
    return tmp_path / "cache"


def started(cache: Path) -> subprocess.Popen[bytes]:
    """A run that has begun."""
    process = subprocess.Popen([sys.executable, "-c", RUN, str(cache)])
    deadline = time.monotonic() + 60
    while not (cache / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


def test_what_a_killed_run_has_left_is_removed_by_the_next_and_a_living_one_keeps_all(
    temporary: Path, cache: Path
) -> None:
    process = started(cache)
    try:
        before = sorted(temporary.iterdir())
        assert [path.name.partition("-")[0] for path in before] == ["pymp", "quantbudget"]
        run_folder.sweep()
        run_folder.sweep_cache(cache)
        assert sorted(temporary.iterdir()) == before
        (half,) = cache.glob(f".entry.*{files.HALF}")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    next_run = run_folder.RunFolder()
    run_folder.sweep_cache(cache)
    assert list(temporary.iterdir()) == [next_run.path]
    assert not half.exists()
    next_run.remove()
    assert list(temporary.iterdir()) == []


def test_the_sockets_of_forks_that_have_ended_go_with_the_run(temporary: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True)
    assert ended.stdout.split() == ["pymp", "pymp", "quantbudget", "True"], ended.stderr
    assert list(temporary.iterdir()) == []


def test_a_folder_without_a_lock_is_left_alone_while_its_run_may_be_starting(temporary: Path) -> None:
    folder = temporary / f"{run_folder.PREFIX}new"
    folder.mkdir()
    run_folder.sweep()
    assert folder.exists()
    long_ago = time.time() - 2 * run_folder.OLD_S
    os.utime(folder, (long_ago, long_ago))
    run_folder.sweep()
    assert not folder.exists()


def test_only_the_sockets_of_a_fork_server_go_with_a_folder(temporary: Path, tmp_path: Path) -> None:
    theirs = [temporary / "important", tmp_path / "pymp-elsewhere"]
    folder = temporary / f"{run_folder.PREFIX}dead"
    for made in [*theirs, folder]:
        made.mkdir()
    (folder / run_folder.LOCK).touch()
    for number, path in enumerate(theirs):
        (folder / f"{run_folder.SOCKETS}{number}").write_text(str(path))
    run_folder.sweep()
    assert not folder.exists()
    assert all(path.exists() for path in theirs)


def test_a_checkpoint_half_made_is_removed_unless_it_is_being_made(cache: Path) -> None:
    making = cache / "quantized" / "gptq-int4-1234.making"
    (making / "layers").mkdir(parents=True)
    with FileLock(cache / "quantized" / "gptq-int4-1234.lock"):
        run_folder.sweep_cache(cache)
        assert making.exists()
    run_folder.sweep_cache(cache)
    assert not making.exists()


def test_temporary_files_go_with_their_process_and_may_have_no_room(tmp_path: Path) -> None:
    with run_folder.temporary_files(tmp_path) as made:
        assert made is not None
        Path(made, "model").mkdir()
    assert list(tmp_path.iterdir()) == []
    shutil.rmtree(tmp_path)
    with run_folder.temporary_files(tmp_path) as made:
        assert made is None

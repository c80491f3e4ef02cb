"""What users' own tests may ask for."""

from pathlib import Path

import pytest
import torch  # noqa: F401  # here, because pytester forgets what a room has imported, and torch cannot be imported twice


def test_one_model_at_a_time_is_resident_and_the_next_loads_after_it_is_freed(
    pytester: pytest.Pytester, small: Path
) -> None:
    pytester.makepyfile(
        """
        import gc
        import weakref

        alive = []

        def test_dtype(quant_model):
            assert all(ref() is None for ref in alive), "the last model is still in memory"
            alive.append(weakref.ref(quant_model.model))
            wanted = {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[quant_model.method]
            assert str(quant_model.model.dtype) == wanted

        def test_same_model(quant_model, quant_measurement):
            assert alive[-1]() is quant_model.model
            assert quant_measurement.subject.method == quant_model.method

        def test_tokenizer(quant_model):
            assert quant_model.tokenizer("7")["input_ids"]
        """
    )
    result = pytester.runpytest_subprocess("-W", "error", "-v", "--quant-budget", small.name, ".")
    result.assert_outcomes(passed=5 + 6)
    result.stdout.fnmatch_lines(["*::test_dtype[[]fp32[]] PASSED*", "*::test_dtype[[]bf16[]] PASSED*"])


def test_the_measurement_holds_all_that_the_budget_declares(pytester: pytest.Pytester, small: Path) -> None:
    pytester.makepyfile(
        """
        def test_numbers(quant_measurement):
            (speed,), (task,) = quant_measurement.speeds, quant_measurement.tasks
            assert len(speed.ttft_s) == len(speed.decode_s) == len(speed.tokens_per_s) == 2
            assert all(t > 0 for t in (*speed.ttft_s, *speed.tpot_s, quant_measurement.load_time_s))
            assert speed.peak_allocated is None
            assert len(task.answers) == 12
            assert task.accuracy > 50
            assert quant_measurement.device.name == "cpu"
        """
    )
    result = pytester.runpytest(
        "--quant-budget", small.name, "test_the_measurement_holds_all_that_the_budget_declares.py"
    )
    result.assert_outcomes(passed=7)


def test_without_a_budget_they_skip_and_say_what_to_add(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(quant_model): pass\ndef test_that(quant_measurement): pass")
    result = pytester.runpytest("-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["*no budget was given: add --quant-budget FILE*"])


@pytest.mark.parametrize(("flag", "outcome"), [((), "skipped"), (("--quant-require-gpu",), "failed")])
def test_no_gpu_skips_and_fails_where_one_is_required(
    pytester: pytest.Pytester, small: Path, monkeypatch: pytest.MonkeyPatch, flag: tuple[str, ...], outcome: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    small.write_text(small.read_text() + "gpu: {min_vram: 20 GiB, min_capability: '8.0'}\n")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpu(min_vram="16 GiB", count=2)
        def test_marker():
            raise AssertionError("must not run")

        def test_fixture(gpu):
            raise AssertionError("must not run")
        """
    )
    result = pytester.runpytest("-rsfE", "-v", "--quant-budget", small.name, ".", *flag)
    counts = result.parseoutcomes()
    assert counts.get("skipped", 0) == (7 if outcome == "skipped" else 0)
    assert counts.get("failed", 0) + counts.get("errors", 0) == (7 if outcome == "failed" else 0)
    result.stdout.fnmatch_lines_random(
        [
            "*needs 2 GPUs with 16.0 GiB; no GPU was found*",
            "*needs a GPU; no GPU was found*",
            "*needs a GPU with 20.0 GiB of compute capability 8.0; no GPU was found*",
        ]
    )
    assert (result.ret == pytest.ExitCode.OK) is (outcome == "skipped")


def test_a_model_fixture_of_a_checkpoint_that_is_broken_fails_alone(pytester: pytest.Pytester, small: Path) -> None:
    folder = pytester.mkdir("broken")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\\0" * 10)
    small.write_text(small.read_text().replace("model: builtin", "model: ./broken"))
    pytester.makepyfile("def test_it(quant_model): pass\ndef test_other(): pass")
    result = pytester.runpytest("--quant-budget", small.name, ".")
    result.assert_outcomes(failed=5, errors=2, passed=1)

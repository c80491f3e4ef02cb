"""What vLLM is told and what it says: flags, refusals, log and metrics of vLLM 0.32 as they came from it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated.driver import Driver

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import Subject, Trust
from pytest_quantbudget.engine.machine.gpus import Gpus
from pytest_quantbudget.engine.openai import own_server
from pytest_quantbudget.engine.openai.source import Ids, Source, check_adapters, find
from pytest_quantbudget.engine.vllm import engine, memory, operators, says
from pytest_quantbudget.engine.vllm.flags import flags
from pytest_quantbudget.models import engines, quantization

LOGS = Path(__file__).parents[1] / "data" / "vllm"
GIB = 2**30
BUILTIN = Source(BUILTIN_DIR, BUILTIN_DIR, "r")


def log(name: str) -> str:
    return (LOGS / f"{name}.log").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_model_len": 8192}, ["--max-model-len=8192"]),
        ({"gpu_memory_utilization": 0.9}, ["--gpu-memory-utilization=0.9"]),
        ({"max_logprobs": -1}, ["--max-logprobs=-1"]),
        ({"kv_cache_dtype": "fp8"}, ["--kv-cache-dtype=fp8"]),
        ({"seed": "--host"}, ["--seed=--host"]),
        ({"enforce_eager": True, "enable_prefix_caching": False}, ["--enforce-eager", "--no-enable-prefix-caching"]),
        ({"speculative_config": {"method": "ngram", "k": 2}}, ['--speculative-config={"method": "ngram", "k": 2}']),
        ({"cudagraph_capture_sizes": [1, 2]}, ["--cudagraph-capture-sizes", "1", "2"]),
        ({"lora_modules": [{"name": "a", "path": "p"}]}, ["--lora-modules", '{"name": "a", "path": "p"}']),
        ({}, []),
    ],
)
def test_options_become_flags(options: dict[str, Any], words: list[str]) -> None:
    assert flags(options) == words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": None}, "seed has no value; leave it out for vLLM's default"),
        ({"lora_modules": ["a=b", "--middleware"]}, "lora_modules holds '--middleware', which vLLM would take for"),
    ],
)
def test_a_value_that_is_none_or_another_flag_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flags(options)


def subject(kind: str = "fp32", **options: Any) -> Subject:
    return Subject("org/m", None, kind, None, {}, None, kind=kind, engine="vllm", engine_options=options)


def test_the_command_says_what_the_method_is() -> None:
    words = engine.command(subject("bf16", max_model_len=512), BUILTIN)
    assert words[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert {"--dtype=bfloat16", "--max-model-len=512", "--max-logprobs=128", "--load-format=safetensors"} < set(words)
    assert {f"--model={BUILTIN_DIR}", "--served-model-name=org/m", "--generation-config=vllm"} < set(words)
    assert "--trust-remote-code" not in words
    trusted = engine.command(subject("checkpoint", max_logprobs=20), BUILTIN, Trust(True, True))
    assert {"--trust-remote-code", "--max-logprobs=20"} < set(trusted)
    assert not any(word.startswith(("--dtype", "--load-format", "--tokenizer")) for word in trusted)


def test_a_checkpoint_without_a_tokenizer_gets_that_of_the_model(tmp_path: Path) -> None:
    assert f"--tokenizer={BUILTIN_DIR}" in engine.command(subject("checkpoint"), Source(tmp_path, BUILTIN_DIR, "r"))


@pytest.mark.parametrize("option", ["dtype", "quantization"])
def test_an_option_that_contradicts_the_kind_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} does not go with bf16; `kind: checkpoint` takes it"):
        engine.command(subject("bf16", **{option: "float16"}), BUILTIN)
    assert f"--{option}=fp8" in engine.command(subject("checkpoint", **{option: "fp8"}), BUILTIN)


def test_weights_on_a_cpu_are_counted_by_files() -> None:
    found = find(Subject(str(BUILTIN_DIR), None, "x", None, {}, None, kind="fp32", engine="vllm"))
    assert (found.weights, found.disk) == (2_298_112, 1_152_752)
    assert found.counted == "the files' 574,528 values in fp32"
    own = Subject(str(BUILTIN_DIR), None, "x", str(BUILTIN_DIR), {}, None, kind="checkpoint", engine="vllm")
    assert (find(own).weights, find(own).counted) == (1_152_752, "the checkpoint's files")


def test_dummy_weights_are_a_configuration_alone() -> None:
    dummy = Subject(str(BUILTIN_DIR), None, "x", None, {}, None, kind="bf16", engine="vllm", load_format="dummy")
    found = find(dummy)
    assert [path.name for path in found.folder.iterdir()] == ["config.json"]
    assert (found.own, found.disk, found.revision[:7]) == (None, None, "config:")
    assert found.weights == 2 * 574_528
    words = engine.command(dummy, found)
    assert {"--load-format=dummy", "--skip-tokenizer-init", "--dtype=bfloat16"} < set(words)
    assert not any(word.startswith("--tokenizer") for word in words)
    ids = Ids(found.folder)
    assert (len(ids), ids("any")["input_ids"]) == (640, [0, 1, 2, 3, 4, 5, 6, 7])


def test_the_server_runs_in_the_methods_interpreter_and_is_measured_from_this_one() -> None:
    there = replace(subject(), python="/venv/bin/python")
    assert engines.measured_in(there) is None
    assert engines.measured_in(replace(there, engine="transformers")) == "/venv/bin/python"
    assert engines.missing(there, ["vllm"]) is None
    assert engines.missing(there, ["torch"]) == (
        "fp32 needs vllm in /venv/bin/python: /venv/bin/python -m pip install vllm"
    )


def bare(own: Subject) -> engine.VLLMServer:
    """A server of a subject that has not been started."""
    server = engine.VLLMServer.__new__(engine.VLLMServer)
    server.subject = own
    return server


def test_the_servers_environment_leads_to_no_other_packages_and_asks_for_no_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("VLLM_API_KEY", "key")
    there, here = bare(replace(subject(), python="/venv/bin/python")).environ(), bare(subject()).environ()
    assert not {"PYTHONPATH", "VLLM_API_KEY"} & set(there)
    assert here["PYTHONPATH"] == "/elsewhere"
    assert "VLLM_API_KEY" not in here
    assert {"VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "PYTHONSAFEPATH"} <= set(there)


@pytest.mark.parametrize(
    ("options", "room", "slots"),
    [({}, None, 256), ({"max_num_seqs": 8}, 682.5, 8), ({"max_num_seqs": 500}, 2.5, 2), ({}, 0.5, 1), ({}, "n/a", 256)],
)
def test_as_many_sequences_are_asked_for_at_once_as_it_takes(options: dict[str, Any], room: Any, slots: int) -> None:
    assert bare(subject(**options))._slots({"kv_cache_max_concurrency": room}) == slots


def test_an_adapter_is_a_directory_of_safetensors(tmp_path: Path) -> None:
    for modules in ("math=org/adapter", ["math=org/adapter"], [{"name": "math"}], [{"name": "math", "path": 3}]):
        with pytest.raises(ValueError, match="names no directory on this machine as its `path`"):
            check_adapters(modules)
    given = [{"name": "math", "path": str(tmp_path)}]
    with pytest.raises(ValueError, match=r"has no adapter_model\.safetensors"):
        check_adapters(given)
    check_adapters(given, Trust(pickles=True))
    (tmp_path / "adapter_model.safetensors").touch()
    check_adapters(given)
    check_adapters([f"math={tmp_path}"])
    check_adapters(None)


@pytest.mark.parametrize(
    ("wanted", "vocabulary", "positions", "told"),
    [
        (128, 640, 100, 128),
        (-1, 640, 100, -1),
        (-1, 150_000, 1000, 2560),
        (-1, 3000, 500, 3000),
        (5000, 150_000, 1000, 2560),
        (0, 640, 9, 0),
    ],
)
def test_no_more_is_asked_for_than_fits_into_an_answer(wanted: int, vocabulary: int, positions: int, told: int) -> None:
    assert own_server.told_at_once(wanted, vocabulary, positions) == told


def test_an_adapter_is_what_is_measured() -> None:
    assert engine.asked(subject()) == "org/m"
    assert engine.asked(subject(lora_modules=[{"name": "math", "path": "./lora"}])) == "math"
    assert engine.asked(subject(lora_modules=["math=./lora"])) == "math"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "unknown_option",
            "it knows no option max_modl_len; did you mean 'max_model_len'?; it knows no option kv_cash",
        ),
        (
            "desc_act",
            "VllmConfig: GPTQ group activation ordering (desc_act=True) is no longer supported. Use a checkpoint with "
            "static activation ordering or desc_act=False.",
        ),
        (
            "no_operator",
            "RuntimeError: _C::static_scaled_fp8_quant() expected at most 0 argument(s) but received 4 argument(s). ",
        ),
    ],
)
def test_a_refusal_is_told_in_vllms_own_words(name: str, words: str) -> None:
    found = says.refusal(log(name))
    assert found is not None
    assert found.words.startswith(words)
    assert found.module is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "usage: api_server.py [--kv-cache-dtype {auto,fp8}]\napi_server.py: error: argument --kv-cache-dtype: "
            "invalid choice: 'fp9' (choose from 'auto', 'fp8')\n",
            "argument --kv-cache-dtype: invalid choice: 'fp9' (choose from 'auto', 'fp8')",
        ),
        (
            "pydantic_core._pydantic_core.ValidationError: 2 validation errors for SchedulerConfig\n"
            "max_num_batched_tokens\n  Input should be greater than or equal to 1 [type=greater_than_equal]\n"
            "    For further information visit https://errors.pydantic.dev/2.14/v/greater_than_equal\n"
            "max_num_seqs\n  Input should be greater than or equal to 1 [type=greater_than_equal]\n"
            "    For further information visit https://errors.pydantic.dev/2.14/v/greater_than_equal\n",
            "SchedulerConfig: max_num_batched_tokens: Input should be greater than or equal to 1; "
            "max_num_seqs: Input should be greater than or equal to 1",
        ),
        (
            "(Worker pid=7) ERROR 11-27 21:50:59 [executor.py:953] torch.OutOfMemoryError: CUDA out of memory."
            "\nRuntimeError: Engine core initialization failed. See root cause above.\n",
            "OutOfMemoryError: CUDA out of memory.",
        ),
    ],
)
def test_the_first_cause_is_told_and_not_what_followed(text: str, words: str) -> None:
    found = says.refusal(text)
    assert found is not None
    assert found.words == words


def test_an_interpreter_without_vllm_is_recognised_and_a_warning_of_vllm_is_none() -> None:
    spec = "Error while finding module specification for 'vllm.entrypoints.openai.api_server' "
    for text in (f"/venv/bin/python: {spec}(ModuleNotFoundError: No module named 'vllm')", "No module named vllm"):
        found = says.refusal(text)
        assert found is not None
        assert found.module == "vllm"
    assert says.refusal("WARNING: No module named 'vllm._C_AVX512'\n") is None
    assert says.refusal("") is None


def test_the_log_tells_the_configuration() -> None:
    assert says.settings(log("started")) == {
        "dtype": "torch.float32",
        "quantization": "None",
        "kv_cache_dtype": "auto",
        "max_seq_len": "512",
        "tensor_parallel_size": "1",
        "pipeline_parallel_size": "1",
        "enforce_eager": "True",
        "enable_prefix_caching": "True",
        "load_format": "auto",
    }
    gpu = "(Worker pid=1) INFO Using FLASH_ATTN attention backend out of potential backends: ('FLASH_ATTN',)."
    assert says.settings(gpu) == {"attention backend": "FLASH_ATTN"}
    assert says.settings("INFO Using FLASHINFER backend.") == {"attention backend": "FLASHINFER"}
    assert says.settings("Using TRTLLM MLA prefill backend.\nUsing backend X for vit attention") == {}


def test_the_log_tells_the_weights_of_each_rank() -> None:
    line = "(Worker pid={}) INFO 11-27 [gpu_model_runner.py:5150] Model loading took 5.5 GiB memory and 2.1 seconds\n"
    assert says.loaded_bytes(line.format(1), 1) == 5.5 * GIB
    assert says.loaded_bytes(line.format(1) + line.format(2), 2) == 11 * GIB
    assert says.loaded_bytes(line.format(1), 4) == 22 * GIB
    assert says.loaded_bytes(log("started"), 1) is None


CACHE = (
    "# HELP vllm:cache_config_info Information\n"
    'vllm:cache_config_info{block_size="128",kv_cache_max_concurrency="682.5",kv_cache_memory_bytes="1073741824",'
    'kv_cache_size_tokens="349440",note="a \\"b\\", c",num_gpu_blocks="2730"} 1.0\n'
)


def test_the_metrics_tell_the_cache() -> None:
    told = says.cache(CACHE)
    assert told["kv_cache_memory_bytes"] == GIB
    assert told["kv_cache_max_concurrency"] == 682.5
    assert told["note"] == 'a \\"b\\", c'
    assert says.kv_tokens(told) == 349440
    assert says.kv_tokens({"num_gpu_blocks": 10, "block_size": 16}) == 160
    assert says.kv_tokens({"num_gpu_blocks": "None", "block_size": 16}) is None
    assert says.cache("vllm:other 1\n") == {}


PACKED = {"weights": {"type": "int", "num_bits": 4}, "input_activations": None, "format": "pack-quantized"}
W8A8 = {"weights": {"type": "int", "num_bits": 8}, "input_activations": {"type": "int", "num_bits": 8}}


@pytest.mark.parametrize(
    ("packed", "words", "operator"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq int4", operators.WEIGHTS_ONLY),
        ({"quant_method": "awq", "w_bit": 4}, "awq int4", operators.WEIGHTS_ONLY),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": PACKED}},
            "compressed-tensors W4A16",
            operators.WEIGHTS_ONLY,
        ),
        (
            {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"g": W8A8}},
            "compressed-tensors W8A8",
            None,
        ),
        ({}, "dense", None),
    ],
)
def test_a_checkpoint_says_what_it_is_and_what_it_needs(packed: dict[str, Any], words: str, operator: str) -> None:
    assert quantization.read(packed).label == words
    assert operators.needed(packed) == operator


def test_an_interpreter_is_asked_for_the_operator(tmp_path: Path) -> None:
    def saying(text: str) -> str:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    environ = {"PATH": "/usr/bin:/bin"}
    assert operators.missing(saying("""echo warning; echo '{"device": "cpu", "there": false}'"""), "x", environ)
    assert not operators.missing(saying("""echo '{"device": "cpu", "there": true}'"""), "x", environ)
    assert not operators.missing(saying("""echo '{"device": "cuda", "there": false}'"""), "x", environ)
    assert not operators.missing(saying("exit 1"), "x", environ)
    assert not operators.missing(str(tmp_path / "none"), "x", environ)


def test_a_family_of_processes_is_found_by_its_parents(tmp_path: Path) -> None:
    for pid, parent in {1: 0, 7: 1, 8: 7, 9: 8, 10: 1}.items():
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a ) b) S {parent} {pid}")
    assert memory.family(7, tmp_path) == {7, 8, 9}


def test_the_memory_of_a_servers_processes_is_summed_over_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, "GPU-1", "GPU-2")
    first, second = driver.cards.values()
    first.processes[5] = GIB
    gpus = Gpus({"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"})
    first.processes |= {70: 6 * GIB, 71: GIB}
    second.processes |= {72: 4 * GIB}
    assert memory.of_server(gpus, {70, 71, 72}) == (11 * GIB, "3 processes of the server")
    # Where NVML has other numbers: those that have come since.
    assert memory.of_server(gpus, {1, 2}) == (11 * GIB, "3 processes of the server")
    second.processes[72] = None
    assert memory.of_server(gpus, {70, 71, 72}) == (None, "NVML does not tell the memory of the server's processes")


def test_where_nvml_names_no_process_that_is_why(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, "GPU-1")
    gpus = Gpus({"CUDA_VISIBLE_DEVICES": "GPU-1"})
    assert memory.of_server(gpus, {7}) == (None, "NVML names none of the server's processes")
    driver.cards["GPU-1"].refuses["nvmlDeviceGetComputeRunningProcesses_v3"] = 3
    driver.without = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2")
    found, why = memory.of_server(gpus, {7})
    assert found is None
    assert why.startswith("NVML")

"""What runs a method: names and kinds, engines with options, interpreters, servers, and the mistakes in them."""

import sys
from pathlib import Path

import pytest

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.engines import NO_PERMISSIONS, Permissions, Server
from pytest_quantbudget.core.files import Roots
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.core.request import Subject

RUNS = "server: {url: 'http://127.0.0.1:8000/v1'}"
ALL = Permissions(everything=True)


def subjects(folder: Path, methods: str, permissions: Permissions = NO_PERMISSIONS) -> dict[str, Subject]:
    path = folder / "b.yaml"
    path.write_text(f"model: m\nmethods:\n  {methods}\n")
    return {method.name: method.subject for method in load_budget(path, permissions=permissions).methods}


def mistake(folder: Path, methods: str, permissions: Permissions = NO_PERMISSIONS) -> str:
    with pytest.raises(BudgetError) as error:
        subjects(folder, methods, permissions)
    (problem,) = error.value.problems
    assert problem.line >= 3
    return problem.message


def test_a_name_of_ones_own_is_a_configuration_of_a_kind(tmp_path: Path) -> None:
    found = subjects(
        tmp_path,
        "nf4: {}\n  nf4-fp16: {kind: nf4, options: {compute_dtype: float16}}\n  g.32+x: {kind: fp32}",
    )
    assert {name: (each.method, each.kind) for name, each in found.items()} == {
        "nf4": ("nf4", "nf4"),
        "nf4-fp16": ("nf4-fp16", "nf4"),
        "g.32+x": ("g.32+x", "fp32"),
    }
    assert found["nf4-fp16"].options["compute_dtype"] == "float16"
    assert {each.engine for each in found.values()} == {"transformers"}


def test_a_server_needs_no_kind(tmp_path: Path) -> None:
    found = subjects(tmp_path, f"prod: {{engine: openai, {RUNS}}}\n  awq: {{engine: openai, kind: awq-int4, {RUNS}}}")
    assert [(each.kind, each.engine) for each in found.values()] == [("served", "openai"), ("awq-int4", "openai")]
    assert found["prod"].server == Server("http://127.0.0.1:8000/v1", folder=str(tmp_path))


def test_a_checkpoint_says_itself_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c.gguf").touch()
    found = subjects(
        tmp_path,
        "a: {checkpoint: ./c}\n  b: {checkpoint: org/x, engine: transformers}\n  c: {checkpoint: ./c, engine: vllm}\n"
        "  d: {checkpoint: c.gguf}\n  e: {checkpoint: org/x, engine: llama.cpp}\n  int8: {checkpoint: ./c}\n"
        f"  f: {{checkpoint: ./c, engine: openai, {RUNS}}}",
    )
    assert {name: (each.kind, each.engine) for name, each in found.items()} == {
        "a": ("checkpoint", "transformers"),
        "b": ("checkpoint", "transformers"),
        "c": ("checkpoint", "vllm"),
        "d": ("gguf", "llama.cpp"),
        "e": ("gguf", "llama.cpp"),
        "int8": ("int8", "transformers"),
        "f": ("checkpoint", "openai"),
    }
    assert (found["a"].checkpoint, found["d"].checkpoint) == (str(tmp_path / "c"), str(tmp_path / "c.gguf"))


def test_who_knows_that_a_checkpoint_is_decompressed_says_so(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_text("model: m\nmethods: {a: {checkpoint: org/x, decompressed: allow}, b: {checkpoint: org/x}}\n")
    budget = load_budget(path)
    assert [method.decompressed for method in budget.methods] == [True, False]
    assert budget.basis.decompressed == budget.basis_of("b").decompressed == ("a",)
    assert mistake(tmp_path, "int8: {decompressed: allow}") == (
        "decompressed is about how an engine runs a ready checkpoint, and there is no `checkpoint`"
    )


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]"])
def test_this_machine_needs_no_permission(host: str, tmp_path: Path) -> None:
    server = subjects(tmp_path, f"x: {{engine: openai, server: {{url: 'http://{host}:8000/v1'}}}}")["x"].server
    assert server == Server(f"http://{host}:8000/v1", folder=str(tmp_path))


def test_options_of_an_engine_that_alone_knows_them_are_passed_on(tmp_path: Path) -> None:
    given = "{max_model_len: 8192, kv_cache_dtype: fp8, hf_overrides: {a: [1, true]}}"
    (tmp_path / "c").mkdir()
    method = f"x: {{engine: vllm, checkpoint: ./c, engine_options: {given}}}"
    assert subjects(tmp_path, method)["x"].engine_options == {
        "max_model_len": 8192,
        "kv_cache_dtype": "fp8",
        "hf_overrides": {"a": [1, True]},
    }


def test_paths_in_options_are_beside_the_budget(tmp_path: Path) -> None:
    draft = "{method: draft_model, model: ../draft}"
    given = f"{{lora_modules: [{{name: a, path: ./lora}}], speculative_config: {draft}, seed: 1, x: a/b}}"
    assert subjects(tmp_path, f"fp32: {{engine: vllm, engine_options: {given}}}")["fp32"].engine_options == {
        "lora_modules": [{"name": "a", "path": str(tmp_path / "lora")}],
        "speculative_config": {"method": "draft_model", "model": str(tmp_path / ".." / "draft")},
        "seed": 1,
        "x": "a/b",
    }


def test_an_option_names_nothing_that_lies_outside(tmp_path: Path) -> None:
    room, path = tmp_path / "room", tmp_path / "room" / "b.yaml"
    (room / "lora").mkdir(parents=True)
    (room / "ours").symlink_to(room / "lora")
    (tmp_path / "other").mkdir()
    (room / "theirs").symlink_to(tmp_path / "other")

    def told(value: str) -> str:
        path.write_text(f"model: m\nmethods: {{fp32: {{engine: vllm, engine_options: {{lora_modules: {value}}}}}}}\n")
        try:
            load_budget(path, Roots([room]))
        except BudgetError as error:
            (problem,) = error.problems
            return problem.message.removeprefix("engine_options: lora_modules: ")
        return ""

    for value in ("a=./lora", "[{name: a, path: ./ours}]", "org/adapter", "./lora/../lora", "{a: [1, true, x/y]}"):
        assert told(value) == ""
    for value in ("a=../other", "a=theirs/x", "[{path: ../other}]", "{a: {b: [/etc/ssl]}}", "lora/../../other", "~/x"):
        assert "outside the repository; the ini line `quant_allow_paths = " in told(value), value
    (room / "lora" / "weights.safetensors").symlink_to("/etc/passwd")
    assert told("a=./lora").endswith("(it lies in './lora')")


def test_an_interpreter_is_one_of_the_ini_file(tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    allowed = Permissions(interpreters={"old": python, "vllm": tmp_path / "v" / "python"})
    assert subjects(tmp_path, "fp32: {python: old}", allowed)["fp32"].python == str(python)
    assert subjects(tmp_path, "fp32: {python: venv/bin/python}", allowed)["fp32"].python == str(python)
    assert subjects(tmp_path, "fp32: {engine: vllm}", allowed)["fp32"].python == str(tmp_path / "v" / "python")
    assert subjects(tmp_path, "fp32: {}", allowed)["fp32"].python is None
    # An environment's interpreter is a link: what it leads to is another one.
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert subjects(tmp_path, "fp32: {python: venv/bin/python}", allowed)["fp32"].python == str(python)
    (tmp_path / "link").symlink_to("/usr/lib")
    for other in ("./venv/bin/../bin/python", "../{}/venv//bin/python", "link/../venv/bin/python"):
        # What runs is what the ini file says, however it is written here.
        own = f"fp32: {{python: {other.format(tmp_path.name)}}}"
        assert subjects(tmp_path, own, allowed)["fp32"].python == str(python)
    below = Permissions(interpreters={"old": tmp_path / "x" / ".." / "venv" / "bin" / "python"})
    assert subjects(tmp_path, "fp32: {python: venv/bin/python}", below)["fp32"].python == str(below.interpreters["old"])
    assert mistake(tmp_path, "fp32: {python: odl}", allowed) == (
        "python: 'odl' is not among the ini file's `quant_interpreters`; did you mean 'old'?"
    )
    assert mistake(tmp_path, "fp32: {python: other/bin/python}") == (
        "python: 'other/bin/python' is not among the ini file's `quant_interpreters`; "
        f"the ini line `quant_interpreters = NAME = {tmp_path / 'other/bin/python'}` allows it"
    )


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            "fp8: {}",
            "there is no method 'fp8'; did you mean 'fp32'? (a name of your own needs a `kind` or a ",
        ),
        (
            "mine: {}",
            "there is no method 'mine'; did you mean 'int8'? (a name of your own needs a `kind` or a ",
        ),
        ("mine: {kind: nf5}", "kind: 'nf5' is not one of fp32, bf16, "),
        ("nf4: {kind: fp32}", "nf4 is the name of a kind, and this is fp32: name the method otherwise"),
        ("'a b': {kind: nf4}", "a method's name has letters, digits and -_.+ (at most 60), not 'a b'"),
        ("'a::b': {kind: nf4}", "a method's name has letters, digits and -_.+ (at most 60), not 'a::b'"),
        (
            "x: {kind: nf4, engine: vlm}",
            "engine: 'vlm' is not one of transformers, llama.cpp, vllm, openai, auto-gptq, autoawq; did you",
        ),
        ("x: {kind: nf4, engine: vllm}", "vllm does not run nf4, which is for transformers; it runs fp32, bf16, "),
        ("x: {kind: gptq-int4, engine: vllm}", "vllm does not quantize: gptq-int4 needs a `checkpoint`"),
        ("x: {checkpoint: a/b, decompressed: yes}", "decompressed: True is not one of allow"),
        (
            "x: {engine: vllm, checkpoint: ./m.gguf}",
            "./m.gguf is a GGUF file, which `engine: llama.cpp` runs, and ",
        ),
        ("x: {checkpoint: org/x, options: {bits: 4}}", "x's options has no key 'bits'"),
        ("x: {engine: vllm}", "there is no method 'x'; known: fp32, bf16, "),
        ("x: {kind: checkpoint}", "the kind checkpoint is whatever its `checkpoint` says, and there is none"),
        ("fp32: {engine_options: {threads: 2}}", "engine_options of transformers has no key 'threads'"),
        (
            "fp32: {engine: vllm, engine_options: {ec_manager_config: {a: b}}}",
            "engine_options: ec_manager_config names c",
        ),
        (
            "fp32: {engine: vllm, engine_options: {compilation_config: {backend: a.b}}}",
            "engine_options: compilation_con",
        ),
        (
            "fp32: {engine: vllm, engine_options: {compilation_config: '{}'}}",
            "engine_options: compilation_config takes k",
        ),
        (
            "fp32: {engine: vllm, engine_options: {speculative_config: {method: custom_class}}}",
            "engine_options: specul",
        ),
        (
            "fp32: {engine: vllm, engine_options: {speculative_config: {model: a.B}}}",
            "engine_options: speculative_config:",
        ),
        (
            'fp32: {engine: vllm, engine_options: {hf_overrides: \'{"a": "/etc"}\'}}',
            "engine_options: hf_overrides: what it holds is JSON in a text; give it as YAML",
        ),
        ("fp32: {engine: vllm, engine_options: [1]}", "engine_options takes vllm's own options by name, not [1]"),
        ("fp32: {engine: vllm, engine_options: {--port: 1}}", "engine_options: '--port' is no option's name, such as"),
        ("fp32: {engine: vllm, engine_options: {seed: }}", "engine_options: seed has no value; leave it out for the"),
        ("fp32: {engine: vllm, engine_options: {port: 1}}", "engine_options: port is set by the plugin, which has to"),
        ("fp32: {engine: vllm, engine_options: {hos: x}}", "engine_options: hos is set by the plugin, which has to"),
        (
            "fp32: {engine: vllm, engine_options: {trust_remote_cod: true}}",
            "engine_options: trust_remote_cod is for the",
        ),
        ("fp32: {engine: vllm, engine_options: {middleware: [os.x]}}", "engine_options: middleware names code to run"),
        ("fp32: {engine: vllm, engine_options: {worker_cls: a.b}}", "engine_options: worker_cls names code to run"),
        ("fp32: {engine: vllm, engine_options: {config: x.yaml}}", "engine_options: config names a file of other"),
        (
            "fp32: {engine: vllm, engine_options: {load_format: pt}}",
            "engine_options: load_format is said by the budget",
        ),
        (f"fp32: {{{RUNS}}}", "server is for the engine openai; fp32 runs with transformers"),
        ("x: {engine: openai}", "x needs a `server` with a `url`, or a `command` that starts one"),
        ("x: {engine: openai, server: {model: q}}", "server needs the `url` of one that runs, or a `command` that"),
        ("x: {engine: openai, server: {url: 'http://[::1', }}", "url: Invalid IPv6 URL"),
        ("x: {engine: openai, server: {url: 'ftp://127.0.0.1'}}", "url: 'ftp://127.0.0.1' is not one such as http://"),
        ("x: {engine: openai, server: {url: '127.0.0.1:8000'}}", "url: '127.0.0.1:8000' is not one such as http://"),
        ("x: {engine: openai, server: {url: 'http://localhost:99999'}}", "url: Port out of range 0-65535"),
        ("x: {engine: openai, server: {url: 'http://u:p@localhost/v1'}}", "url: a key belongs in an environment"),
        ("x: {engine: openai, server: {url: 'http://localhost/v1?key=1'}}", "url: what stands behind the path is not"),
        ("x: {engine: openai, server: {url: 'http://example.org/v1'}}", "url: example.org is another machine; "),
        ("x: {engine: openai, server: {url: 'http://10.0.0.1/v1'}}", "url: 10.0.0.1 is another machine; --quant-allow"),
        ("x: {engine: openai, server: {url: 'http://127.0.0.1.evil.org/'}}", "url: 127.0.0.1.evil.org is another"),
        ("x: {engine: openai, server: {command: [serve]}}", "command: a budget starts no program by itself; --quant-"),
        ("x: {engine: openai, server: {command: serve --port 1}}", "command: must be a list of words, such as ["),
        ("x: {engine: openai, server: {command: []}}", "command: must be a list of words, such as ["),
        ("x: {engine: openai, server: {command: ['']}}", "command: must be a list of words whose first is a program"),
        ("x: {engine: openai, server: {urll: 'http://localhost'}}", "server has no key 'urll'; did you mean 'url'?"),
    ],
)
def test_a_mistake_in_what_runs_a_method(methods: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BudgetError) as error:
        subjects(tmp_path, methods)
    first = error.value.problems[0]
    assert (first.line, first.message[: len(message)]) == (3, message)


def test_the_command_line_allows_commands_and_hosts(tmp_path: Path) -> None:
    command = "x: {engine: openai, server: {command: [serve, --port, '{port}', 8], start_timeout: 2 min}}"
    server = subjects(tmp_path, command, Permissions(commands=True))["x"].server
    assert server == Server(command=("serve", "--port", "{port}", "8"), folder=str(tmp_path), start_timeout_s=120.0)
    there = "x: {engine: openai, server: {url: 'https://gpu.example.org/v1/'}}"
    server = subjects(tmp_path, there, Permissions(hosts=frozenset(["gpu.example.org"])))["x"].server
    assert server is not None
    assert server.url == "https://gpu.example.org/v1"
    for methods in (command, there, "fp32: {python: ./anything}"):
        assert subjects(tmp_path, methods, ALL)
    portless = "x: {engine: openai, server: {command: [serve]}}"
    assert mistake(tmp_path, portless, ALL) == (
        "command: needs `{port}` where the server is told its port, or `port` with the one that it takes by itself"
    )
    server = subjects(tmp_path, portless.replace("[serve]", "[serve], port: 8123"), ALL)["x"].server
    assert server is not None
    assert server.port == 8123

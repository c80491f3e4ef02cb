"""The page about methods, docs/methods.md, from what the code says of them and from the tests that run them.

    python tools/methods_page.py > docs/methods.md

`tests/test_methods_page.py` fails where the page is not what this prints, or names a test that there is not.
"""

from __future__ import annotations

from collections.abc import Iterator

from pytest_quantbudget.core.engines import AUTO_GPTQ, AUTOAWQ, LLAMA_CPP, OPENAI, TRANSFORMERS, VLLM
from pytest_quantbudget.engine.vllm import operators
from pytest_quantbudget.models import engines, methods
from pytest_quantbudget.models.methods import ANY_FORMAT, Spec

SEVERAL = "end_to_end/test_several_engines.py::test_one_budget_over_many_methods_of_three_engines"
GGUF = "engine/test_gguf_kinds.py::test_every_kind_is_made_loaded_and_close_to_the_weights_that_it_was_made_of"
IN_SEVERAL = (
    *("fp32", "bf16", "fp16", "int8", "nf4", "gptq-int4", "awq-int4", "torchao-int8", "torchao-int4", "torchao-fp8"),
)
# Engines that run the kind of their name alone.
OWN = (AUTO_GPTQ, AUTOAWQ)
# Which test runs a kind on an engine, for real.
RUN_BY: dict[tuple[str, str], str] = {
    **{(kind, TRANSFORMERS): SEVERAL for kind in IN_SEVERAL},
    ("served", OPENAI): SEVERAL,
    ("torchao-intx", TRANSFORMERS): "models/test_torchao.py::test_a_saved_checkpoint_is_the_model_that_was_saved",
    ("checkpoint", TRANSFORMERS): "engine/test_ready.py::test_the_answers_are_nearly_those_of_the_source",
    ("gguf", LLAMA_CPP): "engine/test_gguf_files.py::test_a_ready_file_is_what_it_is",
    **{(kind, LLAMA_CPP): GGUF for kind in methods.run_by(LLAMA_CPP) if kind != "gguf"},
    (AUTO_GPTQ, AUTO_GPTQ): "engine/test_real_archived.py::test_the_served_logits_are_those_that_are_stored",
    (AUTOAWQ, AUTOAWQ): "engine/test_real_archived.py::test_the_served_logits_are_those_that_are_stored",
    ("fp32", VLLM): "end_to_end/test_vllm.py::test_it_answers_as_transformers_does_and_leaves_nothing_behind",
}
# What was run by hand, and where that is told.
BY_HAND = {
    ("bf16", VLLM): "vllm.md#3-try-it-without-a-gpu",
    ("awq-int4", VLLM): "results/checkpoints.md",
    ("checkpoint", VLLM): "results/checkpoints.md",
}
WITHOUT = {
    "operator": "vLLM on a CPU without AVX-512 lacks the operator `{}`: the run asks for it, and skips in words. "
    "The GPTQ checkpoint at hand has `desc_act`, which vLLM refuses.",
    "fp16": "vLLM on a CPU was tried in float32 and bfloat16 alone.",
    "labels": "`kind` is what you call what is served: nothing follows from it.",
}
HEAD = """# Methods

Made by `python tools/methods_page.py` from what each method says of itself.

A method's `kind` says what it is, and its `engine` what runs it. "Test" leads to a test that runs the kind on that
engine, for real, on a small model; those of vLLM, auto-gptq and autoawq want an interpreter that has it, which
`QUANT_VLLM_PYTHON`, `QUANT_AUTO_GPTQ_PYTHON` or `QUANT_AUTOAWQ_PYTHON` names, and run by hand.
"-" is a kind that the engine does not take: the budget's line is refused with those that it does. Which engines run the
format of a ready checkpoint is told in [engines.md](engines.md), adapters in [adapters.md](adapters.md), and how to add
a kind in [extending.md](extending.md).
"""


def main() -> None:
    print("\n".join(page()))


def page() -> Iterator[str]:
    """The page's lines."""
    yield HEAD
    known = [name for name in engines.names() if name not in OWN]
    notes: list[str] = []
    yield f"| kind | what it is | bits | {' | '.join(known)} | of the kind's name |"
    yield f"| --- | --- | --- | {' | '.join('---' for _ in known)} | --- |"
    for kind in methods.names():
        spec = methods.spec(kind)
        cells = [*(cell(kind, engine, notes) for engine in known), cell(kind, kind, notes) if kind in OWN else "-"]
        yield f"| `{kind}` | {spec.summary.rstrip('.')} | {spec.bits or 'as it says'} | {' | '.join(cells)} |"
    yield ""
    yield from (f"{number}. {note}" for number, note in enumerate(notes, 1))
    yield "\n## What each takes"
    for kind in methods.names():
        yield from of_kind(methods.spec(kind))
    yield ""


def cell(kind: str, engine: str, notes: list[str]) -> str:
    """What shows that an engine runs a kind; a reason why that is not shown is numbered in `notes`."""
    spec = methods.spec(kind)
    if (kind, engine) in RUN_BY:
        return f"[test](../tests/{RUN_BY[kind, engine].partition('::')[0]})"
    if (kind, engine) in BY_HAND:
        return f"[by hand]({BY_HAND[kind, engine]})"
    if not engines.spec(engine).takes(spec):
        return "-"
    operator = operators.needed({"quant_method": spec.checkpoint_format})
    if engines.spec(engine).labels:
        why = WITHOUT["labels"]
    elif operator is not None:
        why = WITHOUT["operator"].format(operator)
    else:
        why = WITHOUT[kind]
    if why not in notes:
        notes.append(why)
    return f"({notes.index(why) + 1})"


def of_kind(spec: Spec) -> Iterator[str]:
    """A section on one kind."""
    yield f"\n### {spec.name}\n"
    alone = spec.checkpoint_format == ANY_FORMAT or spec.name in OWN
    made = "by `checkpoint` alone" if alone else "at load"
    if spec.quantize is not None:
        made = "of the model, once, and kept" + (" (from `calibration` texts)" if spec.calibrated else "")
    ready = f"; ready ones by `checkpoint`, in the format {spec.checkpoint_format}" if _loads_ready(spec) else ""
    if spec.name in OWN:
        ready = f", in the format {spec.checkpoint_format}"
    yield f"- Made: {made}{ready}."
    if spec.packages:
        yield f"- Needs {', '.join(f'`{name}`' for name in spec.packages)}: `{methods.pip_command(*spec.packages)}`."
    known = spec.storage(spec.filled({})) is not None
    yield f"- Estimate of its memory: {'to the byte' if known else 'none'}."
    options = [("", field) for field in spec.options]
    if spec.name in OWN:
        engine = engines.spec(spec.name)
        yield from (
            "- Needs an interpreter of its own:\n",
            "  ```bash",
            *(f"  {each}" for each in engine.setup),
            "  ```\n",
        )
        options += [("engine_options: ", field) for field in engine.options or ()]
    for where, field in options:
        default = "" if field.default is None else f" (default `{field.default}`)"
        yield f"- `{where}{field.name}`: {field.doc}{default}"


def _loads_ready(spec: Spec) -> bool:
    return spec.checkpoint_format not in (None, ANY_FORMAT)


if __name__ == "__main__":
    main()

"""The engines, as far as a budget's reader must know them: nothing here imports one."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_quantbudget.core import entry_points, versions
from pytest_quantbudget.core.engines import AUTO_GPTQ, AUTOAWQ, LLAMA_CPP, OPENAI, TRANSFORMERS, VLLM
from pytest_quantbudget.core.fields import Field
from pytest_quantbudget.core.request import DUMMY, Subject
from pytest_quantbudget.models import archived_options, llama_options, methods, vllm_options
from pytest_quantbudget.models.methods import Spec


@dataclass(frozen=True)
class EngineSpec:
    """What is known of an engine before it is started.

    `module` is imported on first use, and holds what `pytest_quantbudget.engine` says. `options` are those that a
    budget may give; None where only the engine itself knows them: then `refused` says by name why some are not taken.
    `packages` are modules that the measuring process imports for it, and `extra` is the project's extra that brings
    them. `serving` are modules of a server that the method's interpreter runs: then the measuring process runs in this
    one. `setup` are the commands that bring these, where they need an interpreter of their own, `{python}`, and
    `libraries` are distributions there that figures depend on. A method that names no kind, and is not named as one,
    has the `default` kind, and with a checkpoint the kind `ready`. An engine that `labels` takes every kind: for it a
    kind is what the user calls what is served. One that is `like` another runs that one's kinds, and imports their
    packages. One that `quantizes` makes what it needs of the model; for the others a quantized kind needs a checkpoint.
    One that gives no full `logits` can be no baseline of a divergence.
    """

    name: str
    summary: str
    module: str
    options: Sequence[Field] | None = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    packages: Sequence[str] = ()
    serving: Sequence[str] = ()
    setup: Sequence[str] = ()
    libraries: Sequence[str] = ()
    default: str | None = None
    ready: str = "checkpoint"
    labels: bool = False
    like: str = ""
    quantizes: bool = False
    logits: bool = True

    def refusal(self, option: str, value: object = None) -> str | None:
        """Why an option is not taken, None where it is; an engine may take the beginning of a name for all of it."""
        for name, why in self.refused.items():
            outer, dot, inner = name.partition(".")
            if not dot and outer.startswith(option):
                return f"{option} {why}"
            if dot and outer.startswith(option) and not isinstance(value, dict):
                return f"{option} takes keys, not {value!r}"
            if dot and outer.startswith(option) and isinstance(value, dict):
                key, _, what = inner.removeprefix("!").partition("=")
                if (key not in value) if inner.startswith("!") else key in value and what in ("", str(value[key])):
                    return f"{option}: {key} {why}"
        return None

    def takes(self, kind: Spec) -> bool:
        """Whether the engine runs methods of a kind."""
        return self.labels or self.name in kind.engines or self.like in kind.engines


SPECS: dict[str, EngineSpec] = {
    spec.name: spec
    for spec in (
        EngineSpec(
            TRANSFORMERS,
            "Hugging Face transformers, in the measuring process.",
            "pytest_quantbudget.engine.hf.engine",
            packages=methods.BASE_PACKAGES,
            quantizes=True,
        ),
        EngineSpec(
            LLAMA_CPP,
            "llama.cpp, in the measuring process.",
            "pytest_quantbudget.engine.llama_cpp.engine",
            options=llama_options.OPTIONS,
            packages=("torch", "transformers", "llama_cpp", "gguf"),
            ready="gguf",
            quantizes=True,
        ),
        EngineSpec(
            VLLM,
            "vLLM's own server, started with `engine_options`.",
            "pytest_quantbudget.engine.vllm.engine",
            options=None,
            refused=vllm_options.REFUSED,
            packages=("transformers",),
            serving=("vllm",),
            libraries=vllm_options.LIBRARIES,
            logits=False,
        ),
        EngineSpec(
            OPENAI,
            "Any OpenAI-compatible server.",
            "pytest_quantbudget.engine.openai.engine",
            packages=("transformers",),
            default="served",
            labels=True,
            logits=False,
        ),
        EngineSpec(
            AUTO_GPTQ,
            "auto-gptq's own loader, served from an interpreter of its own.",
            "pytest_quantbudget.engine.archived.engine",
            options=archived_options.AUTO_GPTQ_OPTIONS,
            packages=("transformers",),
            serving=("auto_gptq",),
            setup=archived_options.AUTO_GPTQ_SETUP,
            libraries=archived_options.AUTO_GPTQ_LIBRARIES,
            ready=AUTO_GPTQ,
            logits=False,
        ),
        EngineSpec(
            AUTOAWQ,
            "autoawq's own loader, served from an interpreter of its own.",
            "pytest_quantbudget.engine.archived.engine",
            options=archived_options.AUTOAWQ_OPTIONS,
            packages=("transformers",),
            serving=("awq",),
            setup=archived_options.AUTOAWQ_SETUP,
            libraries=archived_options.AUTOAWQ_LIBRARIES,
            ready=AUTOAWQ,
            logits=False,
        ),
    )
}


def others() -> entry_points.Added:
    """The engines of other packages: an entry point of `pytest_quantbudget.engines` names an EngineSpec."""
    return entry_points.added(entry_points.ENGINES, EngineSpec, tuple(SPECS))


def names() -> tuple[str, ...]:
    """All engines."""
    return (*SPECS, *others().objects)


def spec(name: str) -> EngineSpec:
    """The spec of a known engine. Raises KeyError for an unknown name."""
    found: EngineSpec = SPECS[name] if name in SPECS else others().objects[name]
    return found


def measured_in(subject: Subject) -> str | None:
    """The interpreter of a subject's measuring process; None for this one, which also measures what a server runs."""
    engine = spec(subject.engine)
    return None if engine.serving or engine.labels else subject.python


def libraries() -> tuple[str, ...]:
    """The distributions of servers' interpreters that figures depend on."""
    return tuple(dict.fromkeys(name for each in map(spec, names()) for name in each.libraries))


def missing(subject: Subject, there: Collection[str] | None = None) -> str | None:
    """What has to be installed first, with the command, or None where all is there. Imports nothing.

    `there` are the modules of the subject's interpreter, where that is another one.
    """
    python = measured_in(subject)
    return _gone(subject, imported(subject), there if python else None, python) or _gone(
        subject, spec(subject.engine).serving, there, subject.python
    )


def absent(subject: Subject) -> list[str]:
    """The modules of this interpreter that a subject needs and that are not there, but for an engine's own one."""
    if subject.python is not None:
        return []
    engine = spec(subject.engine)
    wanted = (*imported(subject), *(() if engine.setup else engine.serving))
    return [name for name in wanted if not versions.is_there(name)]


def setup(subject: Subject) -> str:
    """The commands that make the interpreter of a subject's engine, as far as it is not there; empty where all is.

    They stand behind what is missing in a sentence.
    """
    engine = spec(subject.engine)
    if not engine.setup:
        return ""
    python = Path(subject.python or f".venv-{engine.name}/bin/python")
    line = f"`quant_interpreters = {engine.name} = {python}`"
    named = "" if subject.python else f" in an interpreter of its own, which the ini line {line} names"
    made = [] if python.exists() else [f"python3.11 -m venv {shlex.quote(str(python.parents[1]))}"]
    filled = [command.replace("{python}", shlex.quote(str(python))) for command in engine.setup]
    return f"{named}: {' && '.join([*made, *filled])}"


def imported(subject: Subject) -> list[str]:
    """The modules that a subject's measuring process imports."""
    engine, kind = spec(subject.engine), methods.resolved(subject)
    of_kind = kind.packages if TRANSFORMERS in (engine.name, engine.like) else ()
    of_adapter = (methods.PEFT,) if needs_peft(subject) else ()
    return list(dict.fromkeys((*engine.packages, *of_kind, *of_adapter)))


def needs_peft(subject: Subject) -> bool:
    """Whether PEFT runs or merges the subject's adapter; other engines run it themselves."""
    adapter = subject.adapter
    return adapter is not None and (adapter.merge or subject.engine == TRANSFORMERS)


def merged_first(subject: Subject) -> bool:
    """Whether the subject's adapter is merged into its model's weights before anything else is made of them."""
    adapter = subject.adapter
    return adapter is not None and adapter.merge and subject.checkpoint is None and subject.load_format != DUMMY


def makes_first(subject: Subject) -> bool:
    """Whether something is made and kept before a subject can be loaded: a checkpoint, or a form of its adapter."""
    if subject.load_format == DUMMY:
        return False
    if methods.spec(subject.kind).quantize is not None and subject.checkpoint is None:
        return True
    return merged_first(subject) or (subject.adapter is not None and subject.engine == LLAMA_CPP)


def _gone(subject: Subject, wanted: Iterable[str], there: Collection[str] | None, python: str | None) -> str | None:
    gone = [name for name in wanted if (importlib.util.find_spec(name) is None if there is None else name not in there)]
    if not gone:
        return None
    what = f"{subject.method} needs {', '.join(gone)}{f' in {python}' if python else ''}"
    made = setup(subject) if wanted is spec(subject.engine).serving else ""
    return what + (made or f": {methods.pip_command(*gone, python=python)}")

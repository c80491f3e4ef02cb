"""Decoding by compiled steps: transformers' static cache and `torch.compile`, which on a GPU records CUDA graphs.

As in "Static kv-cache and torch.compile" of transformers' documentation ("Optimizing inference"), with its own
`CompileConfig` (mode `reduce-overhead`). The prefill stays eager, there as here. A step has to be one graph: where it
falls into parts, the device waits for Python between them, and that is what compiling is to end. A linear layer that
torch cannot trace, such as a kernel of gptqmodel's, is made one operation of the graph, which a CUDA graph replays.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core.request import Workload
from pytest_quantbudget.core.safetext import safe
from pytest_quantbudget.engine import out_of_memory
from pytest_quantbudget.engine.hf import placement

if TYPE_CHECKING:
    import torch

# Tokens whose logits differ by so many units of rounding, at the size of the largest logit, may change places.
NEAR_TIE = 8
# The own forward of each opaque layer, by the number that its operation is given.
FORWARDS: list[Callable[[Any], Any]] = []
NO_COMPILER = ("InvalidCxxCompiler", "Failed to find C compiler", "TritonMissing", "Cannot find a working triton")


class NotCompiled(RuntimeError):
    """Decoding cannot be compiled, or not without a change of the answers; says what stands in the way."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the workload says `compile: true`, and {why}")


class Compiled:
    """A model whose decoding steps are compiled while this context is open; its other passes stay as they are.

    The cache is kept, and emptied between two runs: CUDA graphs are recorded for its addresses.
    """

    def __init__(self, model: Any, workload: Workload, *, on_gpu: bool) -> None:
        self.model, self.workload, self.on_gpu = model, workload, on_gpu
        self.opaque: list[str] = []
        self.replaced: list[tuple[Any, dict[str, Any]]] = []

    def __enter__(self) -> Compiled:
        """Raises NotCompiled where transformers has no static cache for the model, or parts of it are offloaded."""
        from transformers import CompileConfig, StaticCache

        name = type(self.model).__name__
        outside = placement.in_words(placement.outside(self.model)) if self.on_gpu else ""
        if outside:
            raise NotCompiled(outside)
        tokens = self.workload.prompt_tokens + self.workload.new_tokens
        try:
            self.cache = StaticCache(config=self.model.config.get_text_config(decoder=True), max_cache_len=tokens)
            fits = self.model._supports_default_dynamic_cache() and self.cache.is_compileable
        except (AttributeError, TypeError, ValueError) as error:
            raise NotCompiled(f"transformers has no static cache for {name}: {safe(str(error))}") from error
        if not fits:
            raise NotCompiled(f"transformers has no static cache for {name}")
        self.config = CompileConfig(fullgraph=True)
        # transformers compiles on a CPU, and the models of quantizers that do not say that they can be compiled, only
        # on demand; whether they can, torch knows better than a flag.
        self.config._compile_all_devices = True  # type: ignore[assignment]
        self.model._valid_auto_compile_criteria = lambda arguments, config: config.compile_config is not None
        self.graphs = self.before = _count("stats", "unique_graphs")
        self.skipped = _count("inductor", "cudagraph_skips")
        return self

    def __exit__(self, *_: object) -> None:
        """Forget what was compiled, and free the cache and the graphs' memory."""
        import torch

        for layer, own in self.replaced:
            vars(layer).pop("forward")
            vars(layer).update(own)
        FORWARDS.clear()
        for name in ("_valid_auto_compile_criteria", "_compiled_call", "_last_compile_config"):
            vars(self.model).pop(name, None)
        del self.cache
        torch._dynamo.reset()
        out_of_memory.release()

    def empty_cache(self) -> Any:
        """The cache, without a token in it."""
        import torch

        with torch.inference_mode():
            self.cache.reset()
        return self.cache

    def compiles(self) -> bool:
        """Whether a step was compiled since this was last asked.

        Raises NotCompiled where nothing ever was, and where CUDA graphs were asked for and left out.
        """
        known, self.graphs = self.graphs, _count("stats", "unique_graphs")
        if self.graphs == self.before:
            raise NotCompiled(f"transformers left {type(self.model).__name__} eager, though it was told to compile it")
        if self.on_gpu and _count("inductor", "cudagraph_skips") > self.skipped:
            raise NotCompiled("torch left CUDA graphs out of the compiled steps: TORCH_LOGS=perf_hints says why")
        return self.graphs > known

    def make_opaque(self, error: Exception) -> bool:
        """Make the layers that could not be traced one operation each; False where that is no help.

        They are those of the class in which torch stopped, if it is a linear layer; neighbours are not fused with them.
        """
        import torch

        kind, _ = self._place(error)
        layers: list[Any] = [module for module in self.model.modules() if type(module) is kind]
        linear = all(isinstance(getattr(layer, "out_features", None), int) for layer in layers)
        if kind is None or not linear or kind.__name__ in self.opaque:
            return False
        for layer in layers:
            self.replaced.append((layer, {name: own for name, own in vars(layer).items() if name == "forward"}))
            layer.forward = _opaque(layer.forward, layer.out_features)
        self.opaque.append(kind.__name__)
        torch._dynamo.reset()
        return True

    def explain(self, error: Exception) -> Exception:
        """What stood in the way of compiling, in words, as NotCompiled; other errors as they are."""
        from torch._dynamo.exc import TorchDynamoException

        told = [f"{type(each).__name__}: {each}" for each in (error, *_causes(error))]
        if any(sign in line for sign in NO_COMPILER for line in told):
            needed = "Triton and a C compiler (gcc)" if self.on_gpu else "a C++ compiler (g++, or the one in CXX)"
            return NotCompiled(f"torch needs {needed} to compile decoding, and finds none that works")
        if not isinstance(error, TorchDynamoException) or out_of_memory.is_out_of_memory(error):
            return error
        lines = str(error).strip().splitlines() or [type(error).__name__]
        kind, line = self._place(error)
        where = f" at {kind.__name__} ({line})" if kind else ""
        return NotCompiled(f"a decoding step cannot be compiled as a whole{where}: {safe(lines[0])}")

    def _place(self, error: Exception) -> tuple[type | None, str]:
        """The class of the innermost layer in which torch stopped to trace, and the line: `modules.py:1021`."""
        stacks = (getattr(each, "real_stack", None) or () for each in (error, *_causes(error)))
        for frame in (frame for stack in stacks for frame in reversed(stack)):
            for kind in {type(module) for module in self.model.modules()}:
                start, end = _lines(kind, frame.filename)
                if start <= frame.lineno < end:
                    return kind, f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
        return None, ""


def _opaque(forward: Callable[[Any], Any], outputs: int) -> Callable[[Any], Any]:
    """A layer's forward, which is one operation where a step is compiled, and as it was in the prefill."""
    import torch

    operation, number = _opaque_operation(), len(FORWARDS)
    FORWARDS.append(forward)

    def either(x: torch.Tensor) -> Any:
        return operation(x, number, outputs) if torch.compiler.is_compiling() else forward(x)

    return either


@functools.cache
def _opaque_operation() -> Any:
    """An operation that runs the forward of a layer by its number, of which torch knows the result's shape alone."""
    import torch

    def run(x: torch.Tensor, number: int, outputs: int) -> torch.Tensor:
        return FORWARDS[number](x).contiguous()  # type: ignore[no-any-return]

    def shape(x: torch.Tensor, number: int, outputs: int) -> torch.Tensor:
        return x.new_empty((*x.shape[:-1], outputs))

    schema = "(Tensor x, int number, int outputs) -> Tensor"
    operation = torch.library.custom_op("quantbudget::layer", run, mutates_args=(), schema=schema)
    operation.register_fake(shape)
    return operation


def _causes(error: BaseException) -> Iterator[BaseException]:
    while error := error.__cause__ or error.__context__:  # type: ignore[assignment]
        yield error


def _lines(kind: type, file: str) -> tuple[int, int]:
    """The lines of a class in a file; none where it is not there."""
    try:
        if inspect.getsourcefile(kind) == file:
            text, start = inspect.getsourcelines(kind)
            return start, start + len(text)
    except (OSError, TypeError):
        pass
    return 0, 0


def _count(group: str, name: str) -> int:
    from torch._dynamo.utils import counters

    return int(counters[group][name])


def difference(model: Any, eager: torch.Tensor, compiled: torch.Tensor, prompt_tokens: int) -> str:
    """Where compiled decoding gives other tokens than eager decoding, in words; empty where it does not.

    Both are token ids of shape (batch, prompt and new tokens). Compiled kernels round otherwise, so a near-tie between
    two tokens may turn, and what follows with it. Raises NotCompiled where the first token that differs is none.
    """
    import torch

    told = []
    for row in range(eager.shape[0]):
        places = (eager[row] != compiled[row]).nonzero()
        if not len(places):
            continue
        at = int(places[0])
        with torch.inference_mode():
            logits = model(input_ids=eager[row : row + 1, :at]).logits[0, -1]
        gap = float(logits[eager[row, at]].float() - logits[compiled[row, at]].float())
        largest = float(logits.float().abs().max())
        if not abs(gap) <= NEAR_TIE * torch.finfo(logits.dtype).eps * largest:
            raise NotCompiled(
                f"compiled decoding changes the answers: token {at - prompt_tokens + 1:,} of sequence {row + 1:,} is "
                f"another, whose logit is {gap:.3g} lower where the largest is {largest:.3g}"
            )
        told.append(at - prompt_tokens + 1)
    if not told:
        return ""
    return (
        f"compiled decoding gives other tokens than eager decoding in {len(told):,} of {eager.shape[0]:,} sequences of "
        f"the workload, from token {min(told):,} on: near-ties that rounding turned"
    )

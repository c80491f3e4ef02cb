"""What torchao's checkpoints say of themselves, and what its tensors take: all of it without torchao."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pytest_quantbudget.models.estimate.architecture import LINEAR, OUTSIDE, OWN, Architecture, Matrix, Unknown
from pytest_quantbudget.models.estimate.formats import FLOAT, WIDTHS, Format

INT8, INT4, INTX, FP8 = "torchao-int8", "torchao-int4", "torchao-intx", "torchao-fp8"
AUTO, CPU, TILED, PLAIN = "auto", "cpu", "tile_packed_to_4d", "plain"
ROW = -1  # a scale for all of a row
WHOLE = "tensor"  # a scale for all of a matrix, which only a checkpoint has
TILE_INPUTS, TILE_OUTPUTS = 1024, 8  # what tinygemm's layout for GPUs is padded to
CPU_OUTPUTS = 16  # what its layout for CPUs has to be a multiple of

# torchao's configurations that a checkpoint may name, and the kinds that they are.
KINDS = {
    "Int8WeightOnlyConfig": INT8,
    "Int4WeightOnlyConfig": INT4,
    "IntxWeightOnlyConfig": INTX,
    "Float8WeightOnlyConfig": FP8,
}


def told(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint's `quantization_config` says: the kind with its options, or torchao's name for another one.

    Raises ValueError for one that torchao would not understand.
    """
    made = config.get("quant_type")
    made = made.get("default") if isinstance(made, dict) and len(made) == 1 else None
    data = made.get("_data") if isinstance(made, dict) else None
    if not isinstance(made, dict) or not isinstance(data, dict):
        raise ValueError("quantization_config: quant_type is not one configuration of torchao")
    name = made.get("_type")
    if name not in KINDS:
        return {"method": f"torchao's {name!r:.60}"}
    found: dict[str, Any] = {"method": KINDS[name]}
    if config.get("dtype") in WIDTHS:
        found["compute_dtype"] = config["dtype"]
    if name == "Int4WeightOnlyConfig":
        packing = _value(data, "int4_packing_format", PLAIN).lower()
        hqq = _value(data, "int4_choose_qparams_algorithm", "tinygemm").lower() == "hqq"
        return {**found, "group_size": data.get("group_size", 128), "packing": packing, "hqq": hqq}
    if name == "IntxWeightOnlyConfig":
        found["bits"] = int(_value(data, "weight_dtype", "int8").removeprefix("int") or 0)
    return {**found, "group_size": _group_size(data.get("granularity"))}


def _value(data: Mapping[str, Any], key: str, default: str) -> str:
    """The name in an entry such as `{"_type": "torch.dtype", "_data": "int4"}`."""
    entry = data.get(key, default)
    return str(entry.get("_data") if isinstance(entry, dict) else entry)


def _group_size(entry: object) -> Any:
    fields = entry if isinstance(entry, dict) else {"_type": "PerRow"}
    if fields.get("_type") == "PerGroup":
        data = fields.get("_data")
        return data.get("group_size") if isinstance(data, dict) else None
    return WHOLE if fields.get("_type") == "PerTensor" else ROW


def _is_float16(found: Mapping[str, Any]) -> bool:
    return found.get("compute_dtype") == "float16"


@dataclass(frozen=True)
class Quantized(Format):
    """A byte a value, with scales of `scale` and zero points of `zero` bytes, one for `group` inputs and each output.

    torchao 0.18: `Int8Tensor`, `Float8Tensor` and `IntxUnpackedToInt8Tensor`, which gives values of 2 to 8 bits a byte.
    The weight is written out in 16 or 32 bits before it is multiplied.
    """

    group: Any = ROW
    scale: int = FLOAT
    zero: int = 1
    kind: str = INT8

    @property
    def bits(self) -> int:
        """8: what is stored, also where fewer bits are used."""
        return 8

    def packs(self, matrix: Matrix) -> bool:
        """Linear layers, and what a model derives from them (`TorchAoHfQuantizer.param_needs_quantization`)."""
        return matrix.layer in (LINEAR, OWN, OUTSIDE)

    def values(self, matrix: Matrix) -> int:
        """A byte each."""
        return matrix.values

    def scales(self, matrix: Matrix) -> int:
        """Scales and zero points; symmetric formats hold the latter too, all of them zero."""
        if self.group == WHOLE:
            return self.scale + self.zero
        return (self.scale + self.zero) * matrix.outputs * self.groups(matrix)

    def groups(self, matrix: Matrix) -> int:
        """Groups in a row of inputs."""
        group = matrix.inputs if self.group == ROW else self.group
        if matrix.inputs % group:
            raise ValueError(f"{self.kind} in groups of {group} cannot hold a layer of {matrix.inputs} inputs")
        return matrix.inputs // group

    def prefill(self, shape: Architecture, tokens: int, activations: int) -> int:
        """A weight is written out before it is multiplied, instead of one of the MLP's results.

        From float8 it is cast to float32 first and scaled into another tensor, when two of these results are not there.
        """
        largest, result = max(matrix.values for matrix in self.packed(shape)), tokens * shape.intermediate * self.width
        written = activations - result + largest * self.width
        if self.kind == FP8:
            scaled = 2 * FLOAT + (self.width if self.width < FLOAT else 0)
            written = max(written, activations - 2 * result + largest * scaled)
        return max(activations, written)

    def step(self, shape: Architecture, sequences: int, activations: int) -> int:
        """The same for every token."""
        return self.prefill(shape, sequences, activations)

    def of_checkpoint(self, config: Mapping[str, Any]) -> Format:
        """With what the checkpoint says. Raises Unknown for another kind, and a quantized embedding or output."""
        super().of_checkpoint(config)
        if config.get("modules_to_not_convert") == []:
            # transformers then takes no layer out, and the output layer is quantized unless it is tied.
            raise Unknown("a checkpoint with an empty modules_to_not_convert is not known to the estimate")
        found = told(config)
        if found["method"] != self.kind:
            raise Unknown(f"a checkpoint that is {found['method']} is not known to the estimate of {self.kind}")
        data = config["quant_type"]["default"]["_data"]
        for name, entries in (("include_input_output_embeddings", config), ("scale_dtype", data)):
            if entries.get(name):
                raise Unknown(f"a checkpoint with {name} is not known to the estimate")
        group = found["group_size"]
        if group not in (ROW, WHOLE) and (type(group) is not int or group < 1):
            raise Unknown(f"a checkpoint in groups of {group!r:.60} is not known to the estimate")
        return self.with_told(found, WIDTHS[found.get("compute_dtype", "bfloat16")])

    def with_told(self, found: Mapping[str, Any], width: int) -> Format:
        """The format with a checkpoint's own options and width."""
        scale = width if self.kind == INTX else self.scale
        return replace(self, width=width, group=found["group_size"], scale=scale, float16=_is_float16(found))


@dataclass(frozen=True)
class Int4(Quantized):
    """Two values a byte; a scale and a zero point a group, both as wide as what is not quantized.

    torchao 0.18: `Int4OpaqueTensor` (CPU), `Int4Tensor`, and `Int4TilePackedTo4dTensor`, which pads (`packing`).
    """

    kind: str = INT4
    packing: str = AUTO

    @property
    def bits(self) -> int:
        """4."""
        return 4

    def values(self, matrix: Matrix) -> int:
        """Half a byte each, of padding too."""
        return self._padded(matrix)[0] * self._padded(matrix)[1] // 2

    def scales(self, matrix: Matrix) -> int:
        """One and a zero point a group."""
        groups = self.groups(matrix)
        if self.packing in (AUTO, CPU) and matrix.outputs % CPU_OUTPUTS:
            raise ValueError(f"{self.kind} cannot hold a layer of {matrix.outputs} outputs")
        inputs, outputs = self._padded(matrix)
        return 2 * self.width * outputs * groups * inputs // matrix.inputs

    def _padded(self, matrix: Matrix) -> tuple[int, int]:
        if self.packing != TILED:
            return matrix.inputs, matrix.outputs
        return -(-matrix.inputs // TILE_INPUTS) * TILE_INPUTS, -(-matrix.outputs // TILE_OUTPUTS) * TILE_OUTPUTS

    def prefill(self, shape: Architecture, tokens: int, activations: int) -> int:
        """The product takes packed values, in every step too."""
        return activations

    def assumed(self, shape: Architecture) -> str:
        """On a GPU, `auto` means a layout that pads."""
        if self.packing != AUTO or not any(
            m.inputs % TILE_INPUTS or m.outputs % TILE_OUTPUTS for m in self.packed(shape)
        ):
            return ""
        return f"on a GPU it takes more: the layers' inputs are padded to multiples of {TILE_INPUTS:,} there"

    def with_told(self, found: Mapping[str, Any], width: int) -> Format:
        """The format with a checkpoint's own options and width."""
        return replace(
            self, width=width, group=found["group_size"], packing=found["packing"], float16=_is_float16(found)
        )

"""What a quantized checkpoint has in place of weights: small elements, and their scales as weights of their own.

fp8: a weight in float8, and in `..._scale_inv` a float32 for each block of rows and columns, as in DeepSeek-V3's
checkpoint (quantization_config: quant_method fp8, weight_block_size [128, 128]; vllm/model_executor/layers/
quantization/fp8.py). Embeddings, norms and the router stay as they are.

mxfp4: of GPT-OSS's experts `..._blocks`, 16 bytes for 32 elements along what a matrix product sums, and `..._scales`,
one byte for each of these (https://arxiv.org/abs/2508.10925, section 2.1). Both stand as [experts, out, in / 32].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, cast

from parallel_topology.errors import TopologyError
from parallel_topology.topology.whole import quoted, require
from parallel_topology.weights.config import Config
from parallel_topology.weights.weight import Weight

MXFP4_BLOCK = 32
"""Elements that share a scale (OCP Microscaling Formats 1.0)."""

_Store: TypeAlias = Callable[[Weight, Mapping[str, Any]], Iterable[Weight]]


def as_stored(config: Config, weights: Iterable[Weight]) -> list[Weight]:
    """The weights as the checkpoint has them, in their order; the same where it is not quantized.

    Raises:
        TopologyError: it is quantized in another way.
    """
    found: object = config.fields.get("quantization_config")
    if not found:
        return list(weights)
    said = cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else dict[str, Any]()
    method = said.get("quant_method")
    store = _STORES.get(method) if isinstance(method, str) else None
    if store is None or (method == "fp8" and not said.get("weight_block_size")):
        shown = quoted(config.fields["quantization_config"])
        raise TopologyError(
            f"the checkpoint is quantized (quantization_config={shown}) in a way that is not read: expected "
            "quant_method fp8 with a weight_block_size, or mxfp4; or give dtype='bfloat16', say, for its weights before"
        )
    return [stored for weight in weights for stored in store(weight, said)]


def _fp8(weight: Weight, said: Mapping[str, Any]) -> Iterator[Weight]:
    module, _, kind = weight.name.rpartition(".")
    projection = weight.layer is not False and kind == "weight" and "_proj" in module.rpartition(".")[2]
    if not projection or _left_out(weight.name, said):
        yield weight
        return
    given = cast("object", said["weight_block_size"])
    blocks = cast("list[object]", given) if isinstance(given, list) else list[object]()
    if len(blocks) != 2:
        raise TopologyError(
            f"weight_block_size={quoted(said['weight_block_size'])}: expected rows and columns, as in [128, 128]"
        )
    sizes = {len(weight.shape) - 2 + place: require(1, "weight_block_size", one) for place, one in enumerate(blocks)}
    yield _of_dtype(weight, "float8_e4m3fn")
    shape = [-(-size // sizes.get(dim, 1)) for dim, size in enumerate(weight.shape)]
    # A block that two ranks would have parts of is needed by both: then each has the scales of all
    cut = {dim: weight.axes(dim) for dim in weight.cut if weight.shape[dim] % sizes.get(dim, 1) == 0}
    units = {
        dim: count
        for dim, count in weight.units.items()
        if dim in cut and (weight.shape[dim] // count) % sizes.get(dim, 1) == 0
    }
    yield Weight(f"{weight.name}_scale_inv", shape, cut=cut, layer=weight.layer, units=units, dtype="float32")


def _mxfp4(weight: Weight, said: Mapping[str, Any]) -> Iterator[Weight]:
    if not weight.name.endswith(("experts.gate_up_proj", "experts.down_proj")) or _left_out(weight.name, said):
        yield weight
        return
    experts, inside, out = weight.shape
    if inside % MXFP4_BLOCK:
        raise TopologyError(f"weight {weight.name!r}: {inside} is no multiple of the {MXFP4_BLOCK} elements of a block")
    turned = {0: 0, 1: 2, 2: 1}
    cut = {turned[dim]: weight.axes(dim) for dim in weight.cut}
    units = {turned[dim]: count for dim, count in weight.units.items()}
    scales = [experts, out, inside // MXFP4_BLOCK]
    for name, shape in (("blocks", [*scales, MXFP4_BLOCK // 2]), ("scales", scales)):
        yield Weight(f"{weight.name}_{name}", shape, cut=cut, layer=weight.layer, units=units, dtype="uint8")


_STORES: Mapping[str, _Store] = {"fp8": _fp8, "mxfp4": _mxfp4}


def _left_out(name: str, said: Mapping[str, Any]) -> bool:
    """Whether the configuration says that a module stays as it is."""
    kept = said.get("modules_to_not_convert") or ()
    return any(str(one).replace("model.layers.*.", "") in name for one in kept)


def _of_dtype(weight: Weight, dtype: str) -> Weight:
    """The same weight of other elements."""
    return Weight(
        weight.name, weight.shape, cut={dim: weight.axes(dim) for dim in weight.cut}, layer=weight.layer,
        stage=weight.stage, units=weight.units, pad_to=weight.pad_to, pad_whole_to=weight.pad_whole_to,
        uneven=weight.uneven, dtype=dtype,
    )  # fmt: skip

"""Public LlamaGen and PAR image checkpoints as weights of ours.

The public class-conditional models name their tensors as below; PAR adds its learned tokens. They
rotate neighbouring channels (2i, 2i+1) of a head, we rotate (i, i + D/2): so the rows of the query
and key weights change places, and the angles agree by `ParConfig.image`. Scores are sums over the
same products in another order, hence equal up to rounding.

Use: `import_public(torch.load(path, weights_only=True), heads=20)`.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from videoar.benchmarks.par_config import ParConfig
from videoar.kernels.grids import is_grid
from videoar.runtime.errors import CheckpointError

_BRIDGE = "spe_tok_embeddings.special_embeddings.weight"
_OUTER = {
    "tok_embeddings.weight": "embed_tokens.weight",
    "cls_embedding.embedding_table.weight": "embed_class.weight",
    "norm.weight": "norm.weight",
    "output.weight": "head.weight",
}
_LAYER = {
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_WQKV = "attention.wqkv.weight"
# What a file holds its weights in, and what is put in front of their names.
_WRAPPERS = ("model", "model_ema", "module", "state_dict")
_PREFIXES = ("module.", "_orig_mod.", "model.")
# Tables that some files carry and that are made again here.
_TABLES = re.compile(r"(freqs_cis|causal_mask|group_mask|.*\.kv_cache\.[kv]_cache)$")


def import_public(
    tensors: Mapping[str, Tensor], *, heads: int, grid: tuple[int, int] = (16, 16)
) -> tuple[ParConfig, dict[str, Tensor]]:
    """Sizes and a state dict of `ParTransformer` from a public state dict.

    Args:
        tensors: by the public names; also inside of a file's "model", "model_ema", "module" or
            "state_dict", if it has one of them only, and behind prefixes that all names have, such
            as "module." and "_orig_mod.".
        heads: which the shapes do not tell (LlamaGen-B/L/XL/XXL: 12/16/20/24).
        grid: nor this: 16x16 for images of 256x256, 24x24 for 384x384.

    Raises:
        CheckpointError: a tensor missing, unknown, of another shape or dtype, or not finite; or
            more than one set of weights.
        ValueError: heads or a grid that do not go with them.
    """
    tensors = {name: t for name, t in _unwrapped(tensors).items() if not _TABLES.match(name)}
    config = _sizes(tensors, heads, grid)
    _check(tensors, config)
    ours = {new: tensors[old] for old, new in _OUTER.items()}
    none = ours["embed_tokens.weight"].new_empty(0, config.width)
    ours["embed_bridge.weight"] = tensors.get(_BRIDGE, none)
    for i in range(config.layers):
        old, new = f"layers.{i}.", f"layers.{i}."
        ours |= {new + ours_: tensors[old + theirs] for theirs, ours_ in _LAYER.items()}
        q, k, v = tensors[old + _WQKV].chunk(3)
        ours[new + "self_attn.q_proj.weight"] = _halves(q, heads)
        ours[new + "self_attn.k_proj.weight"] = _halves(k, heads)
        ours[new + "self_attn.v_proj.weight"] = v
    return config, ours


def _unwrapped(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a public file, by their names without what wraps them."""
    if found := [name for name in _WRAPPERS if isinstance(tensors.get(name), Mapping)]:
        if len(found) > 1:
            raise CheckpointError(f"{', '.join(found)}: several sets of weights, hand over one")
        return _unwrapped(tensors[found[0]])
    if not tensors:
        raise CheckpointError("no tensors")
    for name in tensors:
        if not isinstance(name, str):
            raise CheckpointError(f"expected tensors by name, got {name!r}")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            return _unwrapped({name.removeprefix(prefix): t for name, t in tensors.items()})
    return dict(tensors)


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows 0, 2, 4, .. of every head in front of rows 1, 3, 5, .."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _sizes(tensors: Mapping[str, Tensor], heads: int, grid: tuple[int, int]) -> ParConfig:
    """The configuration that the shapes tell."""
    if type(heads) is not int or heads < 1:
        raise ValueError(f"heads: expected at least 1, got {heads!r}")
    if not is_grid(grid):
        raise ValueError(f"grid: expected (h, w) of at least 1, got {grid!r}")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{name}: expected floating, got {tensor.dtype}")
    needed = ("tok_embeddings.weight", "cls_embedding.embedding_table.weight")
    bridge = (_BRIDGE,) if _BRIDGE in tensors else ()
    for name in (*needed, "layers.0.feed_forward.w1.weight", *bridge):
        if name not in tensors:
            some = ", ".join(list(tensors)[:3])
            raise CheckpointError(f"{name}: missing; there are {some} and so on")
        if tensors[name].dim() != 2 or not tensors[name].numel():
            raise CheckpointError(f"{name}: expected a matrix, got {list(tensors[name].shape)}")
    codebook, width = tensors[needed[0]].shape
    layers = [int(m[1]) for name in tensors if (m := re.match(r"layers\.(\d+)\.", name))]
    return ParConfig.image(
        layers=1 + max(layers),
        width=width,
        heads=heads,
        mlp_width=len(tensors["layers.0.feed_forward.w1.weight"]),
        grid=grid,
        group=1 + len(tensors.get(_BRIDGE, ())),
        classes=len(tensors[needed[1]]) - 1,
        codebook=codebook,
    )


def _check(tensors: Mapping[str, Tensor], config: ParConfig) -> None:
    width, mlp, codes = config.width, config.mlp_width, config.codebook
    expected = {
        "tok_embeddings.weight": (codes, width),
        "cls_embedding.embedding_table.weight": (config.classes + 1, width),
        "norm.weight": (width,),
        "output.weight": (codes, width),
    }
    if config.group > 1:
        expected[_BRIDGE] = (config.group - 1, width)
    shapes = ((width, width), (mlp, width), (mlp, width), (width, mlp), (width,), (width,))
    for i in range(config.layers):
        expected |= {f"layers.{i}.{n}": s for n, s in zip(_LAYER, shapes, strict=True)}
        expected[f"layers.{i}.{_WQKV}"] = (3 * width, width)
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise CheckpointError(f"{name}: {'unknown' if name in tensors else 'missing'}")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            got = list(tensors[name].shape)
            raise CheckpointError(f"{name}: expected {list(shape)}, got {got}")
        if not torch.isfinite(tensors[name]).all():
            raise CheckpointError(f"{name}: a value is not finite")

"""The layers of one decoding step on a CPU, with all prepared that does not change between steps.

It computes what `Transformer.forward` computes, bit for bit, by the same kernels. There every
operation checks its arguments, makes views and allocates its result, in a Python whose own data the
weights, streaming through the caches, have pushed out to memory. Here all layers are one call where
their products are packed in panels; elsewhere a layer is four products and four calls.
"""

import torch
from torch import Tensor

from videoar.kernels.cpp import _C, DTYPE_CODES
from videoar.kernels.dispatch import forced_backend
from videoar.kernels.packed_linear import whole_panels
from videoar.kernels.qk_norm_rope_cpp import frequencies
from videoar.runtime.cache import StaticCache
from videoar.runtime.config import TransformerConfig
from videoar.runtime.packed import PackedLinear, Product
from videoar.runtime.transformer import AttentionPlan, Layer, Transformer


class CpuLayers:
    """`Transformer.forward` for chunks that read the cache; made once for a packed model.

    Args:
        model: on a CPU, packed, as `serves` says; its weights are read in place. Of another model
            on these layers `layers` and `norm` are enough.
        rows: tokens a chunk has at most, all sequences together.

    Attributes:
        num_bytes: of the buffers.
        whole: whether all layers are one call, as `one_call` says.
    """

    def __init__(self, model: Transformer, rows: int) -> None:
        assert self.serves(model), "the model is not packed, or not of a dtype of the C++ kernels"
        config, self.model = model.layers[0].self_attn.config, model
        dtype, heads = model.norm.weight.dtype, config.heads * config.head_dim
        widths = {
            "sum": config.width,
            "normed": config.width,
            "q": heads,
            "k": config.kv_heads * config.head_dim,
            "attended": heads,
            "activated": config.mlp_width,
            "product": _widest(config),
        }
        self._buffers = {
            name: torch.zeros(rows, width, dtype=dtype) for name, width in widths.items()
        }
        self._frequencies = frequencies(config.head_dim // 2, config.rope_theta)
        norms = [norm.weight for layer in model.layers for norm in _norms(layer)]
        attentions = [layer.self_attn for layer in model.layers] if config.qk_norm else []
        self._products = [_products(layer) for layer in model.layers]
        self.whole = all(product.panels for products in self._products for product in products)
        packed = self._products if self.whole else []
        self._call = _C.DecodingLayers(
            width=config.width,
            heads=config.heads,
            groups=config.kv_heads,
            head_dim=config.head_dim,
            mlp_width=config.mlp_width,
            dtype=DTYPE_CODES[dtype],
            eps=config.norm_eps,
            sections=config.rope_sections,
            frequencies=self._frequencies.data_ptr(),
            norms=[weight.data_ptr() for weight in [*norms, model.norm.weight]],
            q_norms=[attention.q_norm.weight.data_ptr() for attention in attentions],
            k_norms=[attention.k_norm.weight.data_ptr() for attention in attentions],
            weights=[[product.weight.data_ptr() for product in products] for products in packed],
            capacity_rows=rows,
            **{name: buffer.data_ptr() for name, buffer in self._buffers.items()},
        )
        self._views: dict[int, tuple[Tensor, ...]] = {}

    @property
    def num_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers.values())

    @staticmethod
    def serves(model: Transformer) -> bool:
        """Whether the model is packed on a CPU, in one dtype that the C++ kernels compute."""
        dtypes = {parameter.dtype for parameter in model.parameters()}
        packed = all(isinstance(layer.mlp.up_proj, PackedLinear) for layer in model.layers)
        one = len(dtypes) == 1 and dtypes <= DTYPE_CODES.keys()
        return packed and one and model.norm.weight.is_cpu

    def __call__(self, x_BLC: Tensor, positions: Tensor, plan: AttentionPlan) -> Tensor:
        """As `Transformer.forward`, for a plan with a cache, segments and starts `[B]`.

        Returns:
            `[B,L,C]`, in a buffer that the next call overwrites.
        """
        if forced_backend() is not None or plan.unplaced is not None:
            return self.model(x_BLC, positions, plan)
        batch, length, width = x_BLC.shape
        normed, attended, activated = self._rows(batch * length)
        x = x_BLC.contiguous()
        segments = plan.segments.contiguous()
        strides = positions.stride()
        call = self._call
        call.begin(
            batch,
            length,
            positions.data_ptr(),
            strides if len(strides) == 3 else (0, *strides),
            plan.start.data_ptr(),
            segments.data_ptr(),
            segments.shape[1],
            *_cache_arguments(plan.cache),
            x.data_ptr(),
        )
        if self.whole:
            call.run()
            return normed.view(batch, length, width)
        # Every result keeps a name until its address has been used.
        for index, (qkv, output, gate_up, down) in enumerate(self._products):
            result = qkv(normed)
            call.attend(index, result.data_ptr())
            result = output(attended)
            call.add_norm(2 * index + 1, result.data_ptr())
            result = gate_up(normed)
            call.activate(result.data_ptr())
            result = down(activated)
            call.add_norm(2 * index + 2, result.data_ptr())
        return normed.view(batch, length, width)

    def _rows(self, count: int) -> tuple[Tensor, ...]:
        """The first `count` rows of what the products read."""
        if count not in self._views:
            names = ("normed", "attended", "activated")
            self._views[count] = tuple(self._buffers[name][:count] for name in names)
        return self._views[count]


def one_call(config: TransformerConfig, dtype: torch.dtype) -> bool:
    """Whether all products of a packed model on a CPU are in panels.

    Then a row gives the same bits alone and among others: `packed_linear` sums in one order.
    """
    attended = config.heads * config.head_dim
    projected = attended + 2 * config.kv_heads * config.head_dim
    products = (
        (projected, config.width),
        (config.width, attended),
        (2 * config.mlp_width, config.width),
        (config.width, config.mlp_width),
    )
    return all(whole_panels(features, inputs, dtype) for features, inputs in products)


def layers_bytes(config: TransformerConfig, rows: int, dtype: torch.dtype) -> int:
    """Bytes of the buffers for chunks of `rows` tokens."""
    heads = (2 * config.heads + config.kv_heads) * config.head_dim
    columns = 2 * config.width + heads + config.mlp_width + _widest(config)
    return rows * columns * dtype.itemsize


def _widest(config: TransformerConfig) -> int:
    """Outputs of the widest product of a layer."""
    projected = (config.heads + 2 * config.kv_heads) * config.head_dim
    return max(projected, config.width, 2 * config.mlp_width)


def _norms(layer: Layer) -> tuple[torch.nn.Module, torch.nn.Module]:
    return layer.input_layernorm, layer.post_attention_layernorm


def _products(layer: Layer) -> tuple[Product, Product, Product, Product]:
    """Queries, keys and values; output; gate and up; down."""
    attention, mlp = layer.self_attn, layer.mlp
    packed = attention.q_proj, attention.o_proj, mlp.gate_proj, mlp.down_proj
    return tuple(linear.product for linear in packed)


def _cache_arguments(cache: StaticCache) -> tuple:
    """Keys, values, their strides, elements from layer to layer, and capacity."""
    keys, values = cache.data[0, 0], cache.data[1, 0]
    layer_stride, capacity = cache.data.stride(1), cache.data.shape[4]
    return keys.data_ptr(), values.data_ptr(), keys.stride(), layer_stride, capacity

"""VideoAR decoding by `torch.compile` and a static cache, the way gpt-fast is written.

The weights and the computation of `videoar.benchmarks.eager`, with three changes: keys and values
are written in place into a cache of full length, attention reads all of it under a mask, and what a
step does is compiled, with its shapes known, in the mode "reduce-overhead". A draw is the argmax of
p / e with e exponential, since `torch.multinomial` would make the host wait.

On a GPU a step is two compiled functions, hence two CUDA graphs a scale. On a CPU there are no
graphs to gain, and inductor would compile every layer anew: there the unit is one layer, compiled
once a scale and shared by all layers (torch's "regional compilation").
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoar.benchmarks.eager import Attention, EagerVideoAR, Layer, rotate
from videoar.runtime.pixels import to_pixels

# Shapes that one function may be compiled for: scales, kinds of steps, presets.
_MOST_SHAPES = 128


class StaticAttention(nn.Module):
    """`Attention` with a cache of `capacity` tokens; the weights are shared."""

    def __init__(self, attention: Attention, rows: int, capacity: int) -> None:
        super().__init__()
        self.config, self.wqkv, self.wo = attention.config, attention.wqkv, attention.wo
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        shape = (rows, self.config.kv_heads, capacity, self.config.head_dim)
        self.register_buffer("k_cache", self.wo.new_zeros(shape))
        self.register_buffer("v_cache", self.wo.new_zeros(shape))
        if self.wo.is_cuda:
            # What is written in place and may move cannot be part of a CUDA graph.
            for cache in (self.k_cache, self.v_cache):
                torch._dynamo.mark_static_address(cache)

    def forward(self, x_RLC: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, at: Tensor) -> Tensor:
        config, (rows, length, _) = self.config, x_RLC.shape
        qkv = F.linear(x_RLC, self.wqkv).view(rows, length, -1, config.head_dim).transpose(1, 2)
        q, k, v = qkv.split([config.heads, config.kv_heads, config.kv_heads], dim=1)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        self.k_cache[:, :, at] = k
        self.v_cache[:, :, at] = v
        k, v = self.k_cache, self.v_cache
        if config.kv_heads != config.heads:
            k = k.repeat_interleave(config.heads // config.kv_heads, dim=1)
            v = v.repeat_interleave(config.heads // config.kv_heads, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return F.linear(out.transpose(1, 2).reshape(rows, length, -1), self.wo)


class StaticLayer(nn.Module):
    """`Layer` with a static cache; the weights are shared."""

    def __init__(self, layer: Layer, rows: int, capacity: int) -> None:
        super().__init__()
        self.attention = StaticAttention(layer.attention, rows, capacity)
        self.attention_norm, self.ffn_norm = layer.attention_norm, layer.ffn_norm
        self.w1, self.w2, self.w3 = layer.w1, layer.w2, layer.w3

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, at: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, mask, at)
        y = self.ffn_norm(x)
        return x + F.linear(F.silu(F.linear(y, self.w1)) * F.linear(y, self.w3), self.w2)


def compiler(backend: str) -> Callable[[Any], Any]:
    """What compiles a function or a module for the shapes it is called with."""
    options = {"mode": "reduce-overhead"} if backend == "inductor" else {}
    return lambda one: torch.compile(one, backend=backend, dynamic=False, fullgraph=True, **options)


def compiling() -> Any:
    """Inside, a function may be compiled for many shapes, and too many are an error."""
    return torch._dynamo.config.patch(
        recompile_limit=_MOST_SHAPES,
        accumulated_recompile_limit=8 * _MOST_SHAPES,
        fail_on_recompile_limit_hit=True,
    )


def kept(x: Tensor) -> Tensor:
    """A result beyond the next replay of the CUDA graph that wrote it."""
    return x.clone() if x.is_cuda else x


def drawn(probabilities: Tensor) -> Tensor:
    """One draw from each distribution of the last dimension."""
    return (probabilities / torch.empty_like(probabilities).exponential_(1)).argmax(-1)


class LayerStack:
    """The layers of a step and what follows them, compiled whole on a GPU and by layer on a CPU.

    Args:
        layers: with their caches.
        tail: called with the hidden states `[R,L,C]`, gives the logits.
        backend: of `torch.compile`.
    """

    def __init__(
        self, layers: nn.ModuleList, tail: Callable[[Tensor], Tensor], backend: str
    ) -> None:
        compile_, regional = compiler(backend), not next(layers.parameters()).is_cuda
        self._layers = [compile_(layer) for layer in layers] if regional else list(layers)
        self._tail = compile_(tail) if regional else tail
        self._call = self._run if regional else compile_(self._run)

    def _run(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, at: Tensor) -> Tensor:
        for layer in self._layers:
            x = layer(x, cos, sin, mask, at)
        return self._tail(x)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, at: Tensor) -> Tensor:
        """Logits of the tokens `at`, int64 `[L]`, that see what `mask` `[1|R,1,1,S]` says."""
        with compiling():
            return kept(self._call(x, cos, sin, mask, at))


class CompiledVideoAR(EagerVideoAR):
    """An eager model's weights, decoded by compiled code.

    Args:
        eager: its weights and its tokenizer are shared.
        rows: sequences decoded together, two a request with guidance.
        max_text: tokens in front of the frames.
        backend: of `torch.compile`.
    """

    def __init__(
        self, eager: EagerVideoAR, *, rows: int, max_text: int, backend: str = "inductor"
    ) -> None:
        nn.Module.__init__(self)
        self.config, self.tokenizer, self.norm = eager.config, eager.tokenizer, eager.norm
        for name, buffer in eager.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        capacity = max_text + self.config.max_frames * self.config.tokens_per_frame
        self.layers = nn.ModuleList(StaticLayer(one, rows, capacity) for one in eager.layers)
        self._stack = LayerStack(self.layers, self._tail, backend)
        compile_ = compiler(backend)
        self._compiled_sample = compile_(self._draw)
        self._compiled_next = compile_(super()._next)
        self._compiled_decode = compile_(self._frames)
        self._keys = torch.arange(capacity, device=self.sos.device)

    def _tail(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(x), self.head)

    def _mask(self, tables: Any, end: int) -> Tensor:
        """`[1|R,1,1,S]`: what is written and no padding."""
        mask = (self._keys < end)[None, None, None]
        if tables.visible is None:
            return mask
        spare = len(self._keys) - tables.visible.shape[-1]
        return mask & F.pad(tables.visible, (0, spare))

    def _prefill(self, tokens: Tensor, tables: Any) -> None:
        x, text = F.embedding(tokens, self.embed_tokens), tokens.shape[1]
        causal = self._keys <= self._keys[:text, None]
        mask, (cos, sin, _) = self._mask(tables, text) & causal, tables.at(0, text)
        for layer in self.layers:
            x = layer(x, cos, sin, mask, self._keys[:text])

    def _logits(self, x: Tensor, tables: Any, begin: int, end: int) -> Tensor:
        cos, sin, _ = tables.at(begin, end)
        return self._stack(x, cos, sin, self._mask(tables, end), self._keys[begin:end])

    def _sample(self, logits: Tensor, strength: float, temperature: float, guided: bool) -> Tensor:
        strengths = torch.full((), strength, device=logits.device)
        with compiling():
            return kept(self._compiled_sample(logits, strengths, temperature, guided))

    def _draw(self, logits: Tensor, strength: Tensor, temperature: float, guided: bool) -> Tensor:
        pairs = logits.float().unflatten(-1, (-1, 2))
        if guided:
            cond, uncond = pairs.chunk(2)
            pairs = uncond + strength * (cond - uncond)
        if temperature == 0:
            return pairs.argmax(-1)
        return drawn((pairs / temperature).softmax(-1))

    def _next(self, total: Tensor | float, bits: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        if not isinstance(total, Tensor):
            shape = (len(bits), self.config.latent_dim, *self.config.sizes[-1])
            total = torch.zeros(shape, device=bits.device)
        with compiling():
            total, features = self._compiled_next(total, bits, scale)
        return kept(total), kept(features)

    def _frames(self, latents: Tensor) -> Tensor:
        return self.tokenizer.decode(latents)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        weight = self.tokenizer.decoder.conv_in.conv.weight
        with compiling():
            return to_pixels(self._compiled_decode(latents.to(weight.dtype)))

"""VideoAR decoding in plain eager PyTorch, the way public VAR, Infinity and PAR code is written.

The baseline of whole clips: the same weights and the same computation as `videoar.runtime`, one
PyTorch operation after the other. Like those codebases it fuses q, k and v into one product, grows
its keys and values by `torch.cat`, attends by flash-attn where that is installed, else by
`scaled_dot_product_attention`, rotates by a table of cosines made once, runs rows with and without
their condition as one batch, samples each bit by `torch.multinomial`, and decodes the whole clip at
its end.

Axes: R rows (requests, behind them the same without their condition), L tokens, C width, H and G
heads of queries and of keys, D their width, d bits, t latent frames of N tokens.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoar.benchmarks.suite_turns import result_of
from videoar.kernels.qk_norm_rope import rope_angles
from videoar.runtime.config import TransformerConfig
from videoar.runtime.guidance import GuidanceSchedule
from videoar.runtime.pixels import to_pixels
from videoar.runtime.schedule import ChunkSchedule
from videoar.runtime.text import pad
from videoar.runtime.transformer import Transformer
from videoar.runtime.video_tokenizer import VideoTokenizer

LogitsHook = Callable[[int, int, Tensor], None]
"""Called with (frame, scale, logits `[R,n,2d]` before guidance) behind every step."""


@lru_cache
def flash_attention() -> Callable[..., Tensor] | None:
    """flash-attn's function, or None where the package is not installed."""
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return None
    return flash_attn_func


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Attention of `[R,H,L,D]` to `[R,G,S,D]`; flash-attn takes no mask and 16 bits on a GPU."""
    flash = flash_attention() if q.is_cuda and mask is None and q.itemsize == 2 else None
    if flash is not None:
        return flash(*(x.transpose(1, 2) for x in (q, k, v)), causal=causal).transpose(1, 2)
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


class RMSNorm(nn.Module):
    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(weight, requires_grad=False), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return normed.type_as(x) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `[R,H,L,D]` by float32 tables `[R,1,L,D]`."""
    wide = x.float()
    low, high = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat([-high, low], dim=-1) * sin).type_as(x)


class Attention(nn.Module):
    """Self-attention over everything since `reset`."""

    def __init__(self, config: TransformerConfig, weights: dict[str, Tensor], prefix: str) -> None:
        super().__init__()
        self.config = config
        own = {name: weights[f"{prefix}{name}_proj.weight"] for name in "qkvo"}
        self.wqkv = nn.Parameter(torch.cat([own[name] for name in "qkv"]), requires_grad=False)
        self.wo = nn.Parameter(own["o"], requires_grad=False)
        self.q_norm = self.k_norm = nn.Identity()
        if config.qk_norm:
            self.q_norm = RMSNorm(weights[f"{prefix}q_norm.weight"], config.norm_eps)
            self.k_norm = RMSNorm(weights[f"{prefix}k_norm.weight"], config.norm_eps)
        self.reset()

    def reset(self) -> None:
        self.cached_k: Tensor | None = None
        self.cached_v: Tensor | None = None

    def forward(
        self, x_RLC: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, causal: bool
    ) -> Tensor:
        config, (rows, length, _) = self.config, x_RLC.shape
        qkv = F.linear(x_RLC, self.wqkv).view(rows, length, -1, config.head_dim).transpose(1, 2)
        q, k, v = qkv.split([config.heads, config.kv_heads, config.kv_heads], dim=1)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        if self.cached_k is not None:
            k = torch.cat([self.cached_k, k], dim=2)
            v = torch.cat([self.cached_v, v], dim=2)
        self.cached_k, self.cached_v = k, v
        out = attend(q, k, v, mask, causal)
        return F.linear(out.transpose(1, 2).reshape(rows, length, -1), self.wo)


class Layer(nn.Module):
    def __init__(self, config: TransformerConfig, weights: dict[str, Tensor], prefix: str) -> None:
        super().__init__()
        eps = config.norm_eps
        self.attention_norm = RMSNorm(weights[f"{prefix}input_layernorm.weight"], eps)
        self.attention = Attention(config, weights, f"{prefix}self_attn.")
        self.ffn_norm = RMSNorm(weights[f"{prefix}post_attention_layernorm.weight"], eps)
        w1, w3, w2 = (weights[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        self.w1 = nn.Parameter(w1, requires_grad=False)
        self.w2 = nn.Parameter(w2, requires_grad=False)
        self.w3 = nn.Parameter(w3, requires_grad=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, causal: bool = False
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, mask, causal)
        y = self.ffn_norm(x)
        return x + F.linear(F.silu(F.linear(y, self.w1)) * F.linear(y, self.w3), self.w2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tables:
    """What a clip needs besides its tokens, made once.

    Attributes:
        cos, sin: float32 `[R,1,text + t N,D]`.
        visible: bool `[R,1,1,text + t N]`, False for padding; None: there is none.
    """

    cos: Tensor
    sin: Tensor
    visible: Tensor | None

    def at(self, begin: int, end: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Cosines, sines and mask of tokens begin .. end."""
        mask = None if self.visible is None else self.visible[..., :end]
        return self.cos[:, :, begin:end], self.sin[:, :, begin:end], mask


class EagerVideoAR(nn.Module):
    """A transformer's weights and a tokenizer as eager code.

    Args:
        transformer: its weights are shared, but for q, k and v, which are copied into one; they
            must not be packed.
        tokenizer: used as it is, its plain decoder for the whole clip.
    """

    def __init__(self, transformer: Transformer, tokenizer: VideoTokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = transformer.config, tokenizer
        weights = {name: weight.detach() for name, weight in transformer.named_parameters()}
        self.layers = nn.ModuleList(
            Layer(self.config, weights, f"layers.{index}.") for index in range(self.config.layers)
        )
        self.norm = RMSNorm(weights["norm.weight"], self.config.norm_eps)
        for name in ("embed_tokens", "embed_bits", "embed_scale", "head"):
            self.register_buffer(name, weights[f"{name}.weight"])
        self.register_buffer("sos", weights["sos"])

    def _tables(self, rows: Sequence[Sequence[int]], frames: int) -> tuple[Tensor, _Tables]:
        """Padded tokens int64 `[R,text]`, and the tables of a clip behind them."""
        tokens, lengths = (x.to(self.sos.device) for x in pad(rows, max(map(len, rows))))
        text = tokens.shape[1]
        positions = ChunkSchedule.video(frames, self.config.sizes).positions().to(lengths.device)
        prefix = torch.arange(text, device=lengths.device)[:, None].expand(len(rows), -1, 3)
        positions = torch.cat([prefix, positions + lengths[:, None, None]], dim=1)
        angles = rope_angles(positions, self.config.rope_sections, self.config.rope_theta)
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        visible = None
        if len(set(map(len, rows))) > 1:
            keys = torch.arange(positions.shape[1], device=lengths.device)
            visible = ((keys < lengths[:, None]) | (keys >= text))[:, None, None]
        return tokens, _Tables(cos=angles.cos(), sin=angles.sin(), visible=visible)

    def _prefill(self, tokens: Tensor, tables: _Tables) -> None:
        x, text, mask = F.embedding(tokens, self.embed_tokens), tokens.shape[1], None
        if tables.visible is not None:
            ones = torch.ones(text, text, dtype=torch.bool, device=tokens.device)
            mask = tables.visible[..., :text] & ones.tril()
        cos, sin, _ = tables.at(0, text)
        for layer in self.layers:
            layer.attention.reset()
            x = layer(x, cos, sin, mask, causal=mask is None)

    def _embed(self, features: Tensor, frame: int, scale: int, rows: int) -> Tensor:
        """Features `[B,d,h,w]` of the coming scale to tokens `[R,n,C]`."""
        if frame == 0 and scale == 0:
            count = features.shape[2] * features.shape[3]
            x = self.sos.expand(features.shape[0], count, -1)
        else:
            tokens = features.flatten(2).transpose(1, 2).to(self.embed_bits.dtype)
            x = F.linear(tokens, self.embed_bits)
        return (x + self.embed_scale[scale]).repeat(rows // len(x), 1, 1)

    def _logits(self, x: Tensor, tables: _Tables, begin: int, end: int) -> Tensor:
        """Logits `[R,n,2d]` of the tokens begin .. end, whose keys and values are kept."""
        for layer in self.layers:
            x = layer(x, *tables.at(begin, end))
        return F.linear(self.norm(x), self.head)

    def _sample(self, logits: Tensor, strength: float, temperature: float, guided: bool) -> Tensor:
        """Bits `[B,n,d]` of logits `[R,n,2d]`."""
        pairs = logits.float().unflatten(-1, (-1, 2))
        if guided:
            cond, uncond = pairs.chunk(2)
            pairs = uncond + strength * (cond - uncond)
        if temperature == 0:
            return pairs.argmax(-1)
        probabilities = (pairs / temperature).softmax(-1)
        return torch.multinomial(probabilities.flatten(0, -2), 1).view(pairs.shape[:-1])

    def latents(self, *arguments: Any, **options: Any) -> Tensor:
        """Latents float32 `[B,d,t,H,W]` of clips; arguments and errors as those of `steps`."""
        return result_of(self.steps(*arguments, **options))

    @torch.inference_mode()
    def steps(
        self,
        prefixes: Sequence[Sequence[int]],
        null_prefix: Sequence[int] | None,
        latent_frames: int,
        *,
        guidance: GuidanceSchedule,
        temperature: float = 1.0,
        given_bits: Tensor | None = None,
        on_logits: LogitsHook | None = None,
    ) -> Generator[None, None, Tensor]:
        """Stop behind the prefill and behind every decoding step; return what `latents` does.

        Args:
            prefixes: text tokens or class of each request.
            null_prefix: the unconditional prefix; None without guidance.
            latent_frames: of clips that stay within the trained length.
            given_bits: bool `[B,t,N,d]`, taken instead of sampled ones.

        Raises:
            ValueError: more latent frames than the model was trained for.
        """
        config, guided = self.config, null_prefix is not None
        if latent_frames > config.max_frames:
            raise ValueError(f"latent_frames: at most {config.max_frames}, got {latent_frames}")
        rows = [*prefixes, *([null_prefix] * len(prefixes) if guided else [])]
        tokens, tables = self._tables(rows, latent_frames)
        self._prefill(tokens, tables)
        yield
        features = torch.zeros(
            len(prefixes), config.latent_dim, *config.sizes[0], device=self.sos.device
        )
        end, frames = tokens.shape[1], []
        for frame in range(latent_frames):
            total, filled = 0.0, 0
            for scale, (height, width) in enumerate(config.sizes):
                begin, end = end, end + height * width
                x = self._embed(features, frame, scale, len(rows))
                logits = self._logits(x, tables, begin, end)
                if on_logits is not None:
                    on_logits(frame, scale, logits)
                if given_bits is None:
                    strength = guidance.strength(frame, scale, latent_frames, len(config.sizes))
                    bits = self._sample(logits, strength, temperature, guided)
                else:
                    bits = given_bits[:, frame, filled : filled + height * width]
                filled += height * width
                total, features = self._next(total, bits, scale)
                yield
            frames.append(total)
        return torch.stack(frames, dim=2)

    def _next(self, total: Tensor | float, bits: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """Add the codes of a scale to the frame; the frame and the next scale's features."""
        sizes = self.config.sizes
        codes = (2.0 * bits.float() - 1) / self.config.latent_dim**0.5
        codes = codes.transpose(1, 2).unflatten(2, sizes[scale])
        total = total + F.interpolate(codes, size=sizes[-1], mode="bilinear")
        following = sizes[(scale + 1) % len(sizes)]
        return total, F.interpolate(total, size=following, mode="bilinear")

    @torch.inference_mode()
    def generate(self, *arguments: object, **options: object) -> np.ndarray:
        """Clips uint8 `[B,T,H,W,3]`; arguments as in `latents`."""
        return self.decode(self.latents(*arguments, **options))

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Pixels of the latents of a whole clip."""
        weight = self.tokenizer.decoder.conv_in.conv.weight
        return to_pixels(self.tokenizer.decode(latents.to(weight.dtype)))

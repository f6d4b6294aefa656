"""The transformer: text or class prefix, then video tokens, chunk-causal (arXiv 2601.05966, 4).

Parameter names are those of the LLaMA family (per-head QK-norm as its later members have it), so
on text alone this is a standard decoder. `B` rows, `L` tokens, `C` width, `H` heads, `G` kv heads,
`D` head width, `d` bits.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videoar.kernels.cached_attention import cached_attention
from videoar.kernels.chunk_attention import chunk_attention
from videoar.kernels.qk_norm_rope import CacheWrite, qk_norm_rope
from videoar.kernels.rms_norm import rms_norm
from videoar.kernels.swiglu import swiglu
from videoar.runtime.cache import StaticCache
from videoar.runtime.config import TransformerConfig
from videoar.runtime.packed import linears
from videoar.runtime.positions import video_positions
from videoar.runtime.schedule import ChunkSchedule, Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlan:
    """How the tokens of one forward see each other.

    Attributes:
        schedule: video chunks of the sequence; one without chunks for text alone.
        text_len: padded text tokens in front of them.
        text_lengths: real text tokens of each row, int `[B]`; None: all `text_len`.
        frame_visible: bool `[B,F,F]` or `[F,F]`, earlier frames each frame sees; None: all.
        cache: where keys and values are written, from row `start` on; None while training.
        start: an int, or an int64 tensor `[B]`.
        segments: int32 `[B,S,2]`; given, the queries read the cache instead of each other.
        text_cached: the tokens are the video's alone; the keys of the text are the cache's first
            `text_len` rows and the video's follow them (`start` is `text_len`).
        unplaced: bool `[L]`, tokens without a place, whose queries and keys are 0, as LlamaGen
            (arXiv 2406.06525) and PAR have them; None: none.
    """

    schedule: ChunkSchedule
    text_len: int = 0
    text_lengths: Tensor | None = None
    frame_visible: Tensor | None = None
    cache: StaticCache | None = None
    start: int | Tensor = 0
    segments: Tensor | None = None
    text_cached: bool = False
    unplaced: Tensor | None = None


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        return rms_norm(x, self.weight, residual, eps=self.eps)


class Attention(nn.Module):
    SHARED_INPUT = ("q_proj", "k_proj", "v_proj")

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.config, self.index = config, index
        query, shared = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.width, query, bias=False)
        self.k_proj = nn.Linear(config.width, shared, bias=False)
        self.v_proj = nn.Linear(config.width, shared, bias=False)
        self.o_proj = nn.Linear(query, config.width, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x_BLC: Tensor, positions: Tensor, plan: AttentionPlan) -> Tensor:
        config = self.config
        q, k, v = (
            projected.view(*x_BLC.shape[:2], -1, config.head_dim).transpose(1, 2)
            for projected in linears(x_BLC, self.q_proj, self.k_proj, self.v_proj)
        )
        if plan.unplaced is not None:
            q, k = (x.masked_fill(plan.unplaced[:, None], 0) for x in (q, k))
        write = None
        if plan.cache is not None:
            keys, values = plan.cache.layer(self.index)
            write = CacheWrite(v_BGLD=v, k_cache=keys, v_cache=values, start=plan.start)
        q, k = qk_norm_rope(
            q,
            k,
            positions,
            sections=config.rope_sections,
            theta=config.rope_theta,
            q_weight=self.q_norm.weight if config.qk_norm else None,
            k_weight=self.k_norm.weight if config.qk_norm else None,
            eps=config.norm_eps,
            cache=write,
        )
        if plan.segments is not None:
            out = cached_attention(q, keys, values, plan.segments)
        elif plan.text_cached:
            # Nobody needs the text's own queries: zeros stand in for them.
            length = plan.text_len + q.shape[2]
            q = F.pad(q, (0, 0, plan.text_len, 0))
            out = _attend(q, keys[:, :, :length], values[:, :, :length], plan)
            out = out[:, :, plan.text_len :]
        else:
            out = _attend(q, k, v, plan)
        return self.o_proj(out.transpose(1, 2).flatten(2))


def _attend(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    return chunk_attention(
        q,
        k,
        v,
        plan.schedule,
        text_len=plan.text_len,
        text_lengths=plan.text_lengths,
        frame_visible=plan.frame_visible,
    )


class MLP(nn.Module):
    SHARED_INPUT = ("gate_proj", "up_proj")

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(*linears(x, self.gate_proj, self.up_proj)))


class Layer(nn.Module):
    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, index)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)

    def forward(
        self, x: Tensor, residual: Tensor | None, positions: Tensor, plan: AttentionPlan
    ) -> tuple[Tensor, Tensor]:
        """What comes in and goes out is a sum in two parts; the next norm adds them up."""
        normed, residual = (
            (self.input_layernorm(x), x) if residual is None else self.input_layernorm(x, residual)
        )
        attended = self.self_attn(normed, positions, plan)
        normed, residual = self.post_attention_layernorm(attended, residual)
        return self.mlp(normed), residual


def _embedding(rows: int, width: int) -> nn.Embedding:
    """Without values: drawing them on the meta device would import torch's symbolic stack."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


class Transformer(nn.Module):
    """The decoder. `forward` serves training, prefill and cached decoding alike."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = _embedding(config.embeddings, config.width)
        self.embed_bits = nn.Linear(config.latent_dim, config.width, bias=False)
        self.sos = nn.Parameter(torch.empty(config.width))
        self.embed_scale = _embedding(len(config.sizes), config.width)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, 2 * config.latent_dim, bias=False)
        self.gradient_checkpointing = False
        if self.sos.device.type != "meta":
            self.init_weights()

    @torch.no_grad()
    def init_weights(self, std: float = 0.02) -> None:
        """Normal weights; what adds to the residual is scaled down by sqrt(2 layers)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1 and name != "sos":
                parameter.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.normal_(std=std / (2 * self.config.layers) ** 0.5)
            elif name == "embed_bits.weight":
                parameter.normal_(std=self.config.latent_dim**-0.5)
            else:
                parameter.normal_(std=std)

    def forward(self, x_BLC: Tensor, positions: Tensor, plan: AttentionPlan) -> Tensor:
        """Hidden states behind the last norm, `[B,L,C]`.

        Args:
            x_BLC: embedded tokens.
            positions: int `[L,3]` or `[B,L,3]`, `(t, h, w)`.
            plan: who sees whom.
        """
        residual = None
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x_BLC, residual = checkpoint(
                    layer, x_BLC, residual, positions, plan, use_reentrant=False
                )
            else:
                x_BLC, residual = layer(x_BLC, residual, positions, plan)
        return self.norm(x_BLC, residual)[0]

    def embed_video(
        self, inputs_BLd: Tensor, scale_ids: Tensor | int, start: Tensor | None = None
    ) -> Tensor:
        """Next-scale inputs to tokens: linear layer plus scale embedding (Eq. 7).

        Args:
            inputs_BLd: accumulated features; those of the very first scale do not count.
            scale_ids: int64 `[L]`, or the scale of all of them.
            start: bool `[B]`, whose first tokens are scale 1 of frame 1, which take `<SOS>`
                instead; None: nobody's.
        """
        x = self.embed_bits(inputs_BLd.to(self.embed_bits.weight.dtype))
        if start is not None:
            count = self.config.sizes[0][0] * self.config.sizes[0][1]
            first = torch.where(start[:, None, None], self.sos.to(x.dtype), x[:, :count])
            x = first if count == x.shape[1] else torch.cat([first, x[:, count:]], dim=1)
        if isinstance(scale_ids, int):
            return x + self.embed_scale.weight[scale_ids].to(x.dtype)
        return x + self.embed_scale(scale_ids).to(x.dtype)

    def text_hidden(self, tokens: Tensor) -> Tensor:
        """Hidden states of text alone: a standard causal decoder of this family.

        Args:
            tokens: int64 `[B,L]`, no padding.

        Returns:
            `[B,L,C]`, behind the last norm.
        """
        length = tokens.shape[1]
        schedule = ChunkSchedule(chunks=())
        plan = teacher_forcing_plan(schedule, length)
        return self(self.embed_tokens(tokens), text_positions(length, tokens.device), plan)


def teacher_forcing_plan(
    schedule: ChunkSchedule,
    text_len: int,
    text_lengths: Tensor | None = None,
    *,
    frame_visible: Tensor | None = None,
    cache: StaticCache | None = None,
    text_cached: bool = False,
) -> AttentionPlan:
    """The plan of a whole sequence; fields as there."""
    return AttentionPlan(
        schedule=schedule,
        text_len=text_len,
        text_lengths=text_lengths,
        frame_visible=frame_visible,
        cache=cache,
        start=text_len if text_cached else 0,
        text_cached=text_cached,
    )


def text_positions(length: int, device: torch.device | str = "cpu") -> Tensor:
    """`(i, i, i)` for text token i, int64 `[length,3]`."""
    return torch.arange(length, device=device)[:, None].expand(-1, 3)


def teacher_forced_logits(
    model: Transformer,
    tokens: Tensor,
    text_lengths: Tensor,
    inputs: Tensor,
    *,
    frame_visible: Tensor | None = None,
    sizes: Sizes | None = None,
) -> Tensor:
    """Logits of every bit of every frame in one pass (arXiv 2601.05966, Eq. 5).

    Args:
        tokens: text or class ids int64 `[B,text]`, padded.
        text_lengths: int64 `[B]`, real tokens of each row.
        inputs: next-scale inputs `[B,t,N,d]` (`bsq_quantize(..., return_inputs=True)`).
        frame_visible: bool `[B,F,F]` or `[F,F]`, earlier frames each frame sees; None: all.
        sizes: grids of the scales, no more of them than the model has; None: the model's.

    Returns:
        `[B,t,N,2d]`.
    """
    batch, frames = inputs.shape[:2]
    config = model.config if sizes is None else replace(model.config, sizes=sizes)
    schedule = ChunkSchedule.video(frames, config.sizes)
    device, text_len = inputs.device, tokens.shape[1]
    scale_ids = schedule.scale_ids().to(device)
    start = torch.ones(batch, dtype=torch.bool, device=device)
    video = model.embed_video(inputs.flatten(1, 2), scale_ids, start)
    x = torch.cat([model.embed_tokens(tokens).to(video.dtype), video], dim=1)
    places = video_positions(config, frames).to(device) + text_lengths[:, None, None]
    text = text_positions(text_len, device).expand(batch, -1, -1)
    plan = teacher_forcing_plan(schedule, text_len, text_lengths, frame_visible=frame_visible)
    hidden = model(x, torch.cat([text, places], dim=1), plan)
    return model.head(hidden[:, text_len:]).unflatten(1, (frames, -1))

"""PAR decoding in plain eager PyTorch, the way the public LlamaGen and PAR code is written.

The same weights and the same computation as `videoar.benchmarks.par`, one PyTorch operation after
the other: the layers of `videoar.benchmarks.eager`, whose keys and values grow by `torch.cat`, rows
with their class in front of rows without, codes drawn by `torch.multinomial`. Like LlamaGen
(arXiv 2406.06525), what has no place has a rotary table of zeros.

Axes: R rows, L tokens, C width, D head width, V codes.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoar.benchmarks.eager import Layer, RMSNorm
from videoar.benchmarks.par_model import ParTransformer
from videoar.benchmarks.par_sampling import ParSampling
from videoar.benchmarks.par_state import Kind, kind_of
from videoar.kernels.qk_norm_rope import rope_angles

LogitsHook = Callable[[int, Tensor], None]
"""Called with (step, logits `[R,L,V]` before guidance) behind every step."""


class EagerPar(nn.Module):
    """A PAR's weights as eager code.

    Args:
        transformer: its weights are shared, but for q, k and v, which are copied into one; they
            must not be packed.

    Attributes:
        codes: int64 `[requests,num_tokens]`, in decoding order; of the clips under way.
        given: int64, as `codes`, taken instead of drawn ones; None: they are drawn.
    """

    def __init__(self, transformer: ParTransformer) -> None:
        super().__init__()
        self.config, shared = transformer.config, transformer.config.transformer
        weights = {name: weight.detach() for name, weight in transformer.named_parameters()}
        self.layers = nn.ModuleList(
            Layer(shared, weights, f"layers.{index}.") for index in range(shared.layers)
        )
        self.norm = RMSNorm(weights["norm.weight"], shared.norm_eps)
        for name in ("embed_tokens", "embed_class", "embed_bridge", "head"):
            self.register_buffer(name, weights[f"{name}.weight"])
        positions = self.config.input_positions().to(self.head.device)
        angles = rope_angles(positions, shared.rope_sections, shared.rope_theta)
        angles = torch.cat([angles, angles], dim=-1)
        placed = ~self.config.unplaced().to(angles.device)[:, None]
        self.register_buffer("cos", angles.cos() * placed)
        self.register_buffer("sin", angles.sin() * placed)
        self.given: Tensor | None = None

    def start(self, classes: Sequence[int], sampling: ParSampling) -> None:
        """Begin clips of these classes.

        Raises:
            ValueError: sampling from some of the codes only.
        """
        if sampling.filtered:
            raise ValueError("sampling: the eager baseline draws from all codes")
        self.sampling, requests = sampling, len(classes)
        rows = [*classes, *([self.config.classes] * requests if sampling.guided else [])]
        self.classes = torch.tensor(rows, device=self.head.device)
        self.codes = self.classes.new_zeros(requests, self.config.num_tokens)
        self._reset()

    def _reset(self) -> None:
        for layer in self.layers:
            layer.attention.reset()

    @torch.inference_mode()
    def place(self, step: int) -> None:
        """Be in front of `step`, with some keys and values of what is before it (for timing)."""
        length = self.config.schedule.chunks[step].offset
        for layer in self.layers:
            attention, config = layer.attention, layer.attention.config
            shape = (len(self.classes), config.kv_heads, length, config.head_dim)
            attention.reset()
            if length:
                # Written, since memory of zeros may be one page that every address shares.
                attention.cached_k = attention.wo.new_full(shape, 0.5)
                attention.cached_v = attention.wo.new_full(shape, 0.5)

    @torch.inference_mode()
    def step(self, step: int, on_logits: LogitsHook | None = None) -> None:
        """Predict and draw the tokens of step number `step`, which is the coming one."""
        chunk = self.config.schedule.chunks[step]
        begin, end = chunk.offset, chunk.offset + chunk.length
        logits = self._logits(self._read(kind_of(self.config, step), begin, end), begin, end)
        if on_logits is not None:
            on_logits(step, logits)
        codes = self._draw(logits) if self.given is None else self.given[:, begin:end]
        self.codes[:, begin:end] = codes

    def _read(self, kind: Kind, begin: int, end: int) -> Tensor:
        """Embedded inputs `[R,L,C]` of the step that predicts the tokens begin .. end."""
        if kind is Kind.CLASS:
            return F.embedding(self.classes[:, None], self.embed_class)
        first = begin - 1 if kind is Kind.BRIDGE else begin - (end - begin)
        x = F.embedding(self.codes[:, first:begin], self.embed_tokens)
        if kind is Kind.BRIDGE:
            x = torch.cat([x, self.embed_bridge.expand(len(x), -1, -1)], dim=1)
        return x.repeat(len(self.classes) // len(x), 1, 1)

    def _logits(self, x: Tensor, begin: int, end: int) -> Tensor:
        cos, sin = (table[None, None, begin:end] for table in (self.cos, self.sin))
        for layer in self.layers:
            x = layer(x, cos, sin, None)
        return F.linear(self.norm(x), self.head)

    def _draw(self, logits: Tensor) -> Tensor:
        """Codes `[requests,L]` of logits `[R,L,V]`."""
        logits = self._guide(logits)
        if self.sampling.temperature == 0:
            return logits.argmax(-1)
        probabilities = (logits / self.sampling.temperature).softmax(-1)
        return torch.multinomial(probabilities.flatten(0, 1), 1).view(logits.shape[:-1])

    def _guide(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        if not self.sampling.guided:
            return logits
        cond, uncond = logits.chunk(2)
        return uncond + self.sampling.guidance * (cond - uncond)

    def generate(self, classes: Sequence[int], sampling: ParSampling) -> Tensor:
        """Codes `[requests,frames,height,width]`, as `Par.generate` gives them."""
        self.start(classes, sampling)
        for step in range(self.config.num_steps):
            self.step(step)
        clips = torch.empty_like(self.codes)
        clips[:, self.config.order().to(clips.device)] = self.codes
        return clips.unflatten(1, (self.config.num_frames, *self.config.grid)).cpu()

"""PAR decoding by `torch.compile` and a static cache, the way gpt-fast is written.

The weights and the computation of `videoar.benchmarks.par_eager` with the changes that
`videoar.benchmarks.compiled` describes: as in gpt-fast every step reads the whole cache under a
mask, whatever is in it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoar.benchmarks.compiled import LayerStack, StaticLayer, compiler, compiling, drawn, kept
from videoar.benchmarks.par_eager import EagerPar
from videoar.benchmarks.par_sampling import ParSampling


class CompiledPar(EagerPar):
    """An eager PAR's weights, decoded by compiled code.

    Args:
        eager: its weights are shared.
        rows: sequences decoded together, two a request with guidance.
        backend: of `torch.compile`.
    """

    def __init__(self, eager: EagerPar, *, rows: int, backend: str = "inductor") -> None:
        nn.Module.__init__(self)
        self.config, self.norm, self.given = eager.config, eager.norm, None
        for name, buffer in eager.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        capacity = self.config.num_tokens
        self.layers = nn.ModuleList(StaticLayer(one, rows, capacity) for one in eager.layers)
        self._stack = LayerStack(self.layers, self._tail, backend)
        self._compiled_draw = compiler(backend)(self._sample)
        self._keys = torch.arange(capacity, device=self.head.device)

    def _reset(self) -> None:
        """Nothing: a step sees what was written before it only."""

    def start(self, classes: Sequence[int], sampling: ParSampling) -> None:
        super().start(classes, sampling)
        self._strength = torch.tensor(sampling.guidance, device=self.head.device)

    def place(self, step: int) -> None:
        """Nothing: what is in the cache is as good as anything else."""

    def _tail(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(x), self.head)

    def _logits(self, x: Tensor, begin: int, end: int) -> Tensor:
        cos, sin = (table[None, None, begin:end] for table in (self.cos, self.sin))
        mask = (self._keys < end)[None, None, None]
        return self._stack(x, cos, sin, mask, self._keys[begin:end])

    def _draw(self, logits: Tensor) -> Tensor:
        with compiling():
            codes = self._compiled_draw(
                logits, self._strength, self.sampling.temperature, self.sampling.guided
            )
        return kept(codes)

    def _sample(self, logits: Tensor, strength: Tensor, temperature: float, guided: bool) -> Tensor:
        logits = logits.float()
        if guided:
            cond, uncond = logits.chunk(2)
            logits = uncond + strength * (cond - uncond)
        if temperature == 0:
            return logits.argmax(-1)
        return drawn((logits / temperature).softmax(-1))

"""PAR on our decoder layers: its input and output head, and one pass over whole sequences.

Axes: B rows, L tokens, C width, V codes.
"""

import torch
from torch import Tensor, nn

from videoar.benchmarks.par_config import ParConfig
from videoar.runtime.memory import check_fits
from videoar.runtime.transformer import AttentionPlan, Layer, RMSNorm, Transformer


class ParTransformer(nn.Module):
    """One embedding a code, one a class and one for "no class", the learned tokens, V logits."""

    # Layers, then the last norm: nothing in it knows of bits or scales.
    forward = Transformer.forward

    def __init__(self, config: ParConfig) -> None:
        super().__init__()
        self.config, shared = config, config.transformer
        self.embed_tokens = _embedding(config.codebook, config.width)
        self.embed_class = _embedding(config.classes + 1, config.width)
        self.embed_bridge = _embedding(config.group - 1, config.width)
        self.layers = nn.ModuleList(Layer(shared, i) for i in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.codebook, bias=False)
        self.gradient_checkpointing = False

    @torch.no_grad()
    def init_weights(self, std: float = 0.02) -> None:
        """Normal weights; what adds to the residual is scaled down by sqrt(2 layers)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.normal_(std=std / (2 * self.config.layers) ** 0.5)
            else:
                parameter.normal_(std=std)

    @classmethod
    def empty(
        cls, config: ParConfig, dtype: torch.dtype, device: torch.device | str
    ) -> "ParTransformer":
        """With storage but without values.

        Raises:
            CapacityError: it does not fit into the device's memory.
        """
        with torch.device("meta"):
            model = cls(config).to(dtype)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        check_fits("the weights", size, device)
        return model.to_empty(device=device).requires_grad_(False)


def teacher_forced_logits(model: ParTransformer, classes: Tensor, codes: Tensor) -> Tensor:
    """Logits of every token in one pass, given those before it (arXiv 2412.15119, Eq. 2).

    Args:
        classes: int64 `[B]`.
        codes: int64 `[B,num_tokens]` in decoding order.

    Returns:
        `[B,num_tokens,V]`, in decoding order.
    """
    config, device = model.config, codes.device
    bridge = model.embed_bridge.weight.expand(len(codes), -1, -1)
    x = config.arrange(model.embed_class(classes[:, None]), model.embed_tokens(codes), bridge)
    plan = AttentionPlan(schedule=config.schedule, unplaced=config.unplaced().to(device))
    return model.head(model(x, config.input_positions().to(device), plan))


def _embedding(rows: int, width: int) -> nn.Embedding:
    """Without values, which are drawn or loaded later."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))

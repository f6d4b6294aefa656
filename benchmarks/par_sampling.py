"""One code a token from logits: guidance, temperature, top-k, top-p, and one uniform number.

    l = uncond + guidance (cond - uncond)        p = softmax(keep(l / temperature))
    code = the first c with p_0 + .. + p_c > u

`keep` drops what is below the k-th largest logit, then every code whose likelier ones have a share
of more than top_p. One uniform decides a token, so a result depends on no other row.

Axes: R requests, L tokens of a step, V codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ParSampling:
    """How codes are drawn.

    Attributes:
        guidance: strength; 1 needs no second row.
        temperature: of the softmax; 0 is greedy.
        top_k: so many of the likeliest codes, and those as likely as the last; 0: all.
        top_p: the likeliest codes that have this share together; 1: all.
    """

    guidance: float = 1.5
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        most = torch.finfo(torch.float32).max  # in which both are kept
        for name in ("guidance", "temperature"):
            if not 0 <= (value := getattr(self, name)) <= most:
                raise ValueError(f"{name}: expected 0 .. {most:.3g}, got {value}")
        if isinstance(self.top_k, bool | float) or self.top_k < 0:
            raise ValueError(f"top_k: expected an integer of 0 or more, got {self.top_k!r}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected above 0 and at most 1, got {self.top_p}")

    @property
    def guided(self) -> bool:
        """Whether a request has a row without its class, too."""
        return self.guidance != 1

    @property
    def filtered(self) -> bool:
        """Whether some codes are not to be drawn."""
        return self.top_k > 0 or self.top_p < 1


def guide(logits: Tensor, guidance: Tensor, requests: int) -> Tensor:
    """Mix the rows of every request: `[R or 2R,L,V]`, `[R]` -> float32 `[R,L,V]`.

    Conditional and unconditional row of a request are neighbours.
    """
    pairs = logits.float().unflatten(0, (requests, -1))
    if pairs.shape[1] == 1:
        return pairs[:, 0]
    return torch.lerp(pairs[:, 1], pairs[:, 0], guidance[:, None, None])


def sample_codes(
    logits: Tensor,
    uniform: Tensor,
    temperature: Tensor,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    *,
    greedy: bool = True,
) -> Tensor:
    """Draw one code a token.

    Args:
        logits: float32 `[R,L,V]`.
        uniform: float32 `[R,L]` in [0, 1).
        temperature: float32 `[R]`, 0 for the likeliest code.
        top_k: int64 `[R]`, 1 .. V; together with `top_p`, or both None: all codes.
        top_p: float32 `[R]`.
        greedy: whether a temperature may be 0.

    Returns:
        int64 `[R,L]`.
    """
    # Colder than this overflows, and is greedy but for ties.
    scaled = logits / temperature.clamp(min=1e-5)[:, None, None]
    if top_k is not None:
        scaled = _keep(scaled, top_k, top_p)
    # In float64 thousands of sums lose nothing next to the 24 bits of the uniform.
    sums = scaled.softmax(-1, dtype=torch.float64).cumsum(-1)
    target = uniform.double()[..., None] * sums[..., -1:]
    drawn = torch.searchsorted(sums, target, right=True)[..., 0].clamp_(max=logits.shape[-1] - 1)
    return drawn.where(temperature[:, None] > 0, logits.argmax(-1)) if greedy else drawn


def _keep(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Logits with -inf for what is dropped."""
    ordered = logits.sort(dim=-1, descending=True).values
    place = (top_k - 1)[:, None, None].expand(*ordered.shape[:2], 1)
    last_k = ordered.gather(-1, place)
    shares = ordered.masked_fill(ordered < last_k, float("-inf")).double().softmax(-1)
    in_front = shares.cumsum(-1) - shares
    # All shares together may be a rounding above 1.
    limit = top_p.where(top_p < 1, 2)[:, None, None]
    count = (in_front <= limit).sum(-1, keepdim=True)
    last_p = ordered.gather(-1, count.clamp_(min=1) - 1)
    return logits.masked_fill(logits < torch.maximum(last_k, last_p), float("-inf"))

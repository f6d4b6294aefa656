"""Sizes of PAR, and the order of its tokens (arXiv 2412.15119).

A step reads as many tokens as it predicts, so one `ChunkSchedule` describes both sides:

    predicted   t1        t2   ..  t4   5a 5b 5c 5d      6a 6b 6c 6d  ..
    read        class     t1   ..  t3   t4 M1 M2 M3      5a 5b 5c 5d  ..

t1 .. t4 are the first tokens of the regions, one after the other; then every region gets a token a
step. The learned tokens M fill the first group up, since t4 alone cannot predict four tokens.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from videoar.kernels.grids import is_grid
from videoar.runtime.config import TransformerConfig
from videoar.runtime.schedule import ChunkSchedule

_ROPE_BASE = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ParConfig:
    """Sizes of a class-conditional PAR; group 1 is plain next-token prediction (arXiv 2406.06525).

    The defaults are the video model for UCF-101 (17 x 128 x 128), published as 792 M parameters;
    with 16,384 codes these sizes have 773.5 M. Its rotary sections are not published: ours are
    those of the VideoAR presets.

    Attributes:
        layers: decoder layers.
        width: model width C.
        heads: query, key and value heads.
        mlp_width: SwiGLU width.
        codebook: codes, V.
        classes: without "no class".
        num_frames: latent frames.
        grid: cells of a latent frame.
        group: tokens of a step, a square number; so many regions has a frame.
        rope_theta: base of the rotary frequencies.
        rope_sections: rotary pairs of the time, height and width axis.
        position_scale: what the positions of the three axes are multiplied by; see `image`.
        norm_eps: of every RMSNorm.
    """

    layers: int = 36
    width: int = 1280
    heads: int = 20
    mlp_width: int = 3584
    codebook: int = 16_384
    classes: int = 101
    num_frames: int = 5
    grid: tuple[int, int] = (16, 16)
    group: int = 4
    rope_theta: float = 100.0
    rope_sections: tuple[int, int, int] = (8, 12, 12)
    position_scale: tuple[int, int, int] = (1, 1, 1)
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        counts = ("layers", "width", "heads", "mlp_width", "codebook", "classes")
        for name in (*counts, "num_frames", "group"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
        if not is_grid(self.grid):
            raise ValueError(f"grid: expected (h, w) of at least 1, got {self.grid!r}")
        scales = self.position_scale
        if len(scales) != 3 or not all(type(scale) is int and scale > 0 for scale in scales):
            raise ValueError(f"position_scale: expected three of at least 1, got {scales!r}")
        if not 0 < self.rope_theta < math.inf:
            raise ValueError(f"rope_theta: expected above 0, got {self.rope_theta!r}")
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} do not divide the width {self.width}")
        cells = self.num_frames * self.grid[0] * self.grid[1]
        if cells < 2 * self.group:
            raise ValueError(f"group: {self.group} of {cells} tokens; at least two groups needed")
        schedule_of(self.num_frames, self.grid, self.group)
        _ = self.transformer  # checks the head width and the sections

    @classmethod
    def image(
        cls,
        *,
        layers: int,
        width: int,
        heads: int,
        mlp_width: int,
        grid: tuple[int, int] = (16, 16),
        group: int = 4,
        classes: int = 1000,
        codebook: int = 16_384,
    ) -> "ParConfig":
        """The public image models: rows and columns each have the frequencies 10000^(-2i/P).

        Our axes share the list theta^(-i/P) of P pairs, height its first half, width the second.
        With theta 10000^2 height has what it needs and width is 10000 times too slow; so columns
        count 10000 each.
        """
        pairs = width // heads // 2
        if width % heads or width // heads % 4:
            raise ValueError(f"heads: expected heads of a multiple of 4, got {width} / {heads}")
        return cls(
            layers=layers,
            width=width,
            heads=heads,
            mlp_width=mlp_width,
            codebook=codebook,
            classes=classes,
            num_frames=1,
            grid=grid,
            group=group,
            rope_theta=float(_ROPE_BASE**2),
            rope_sections=(0, pairs // 2, pairs // 2),
            position_scale=(1, 1, _ROPE_BASE),
        )

    @property
    def schedule(self) -> ChunkSchedule:
        """Chunks of the predicted tokens, and by offset and length of those that are read."""
        return schedule_of(self.num_frames, self.grid, self.group)

    @property
    def num_tokens(self) -> int:
        """Of a clip."""
        return self.num_frames * self.grid[0] * self.grid[1]

    @property
    def num_steps(self) -> int:
        return self.schedule.num_steps

    @property
    def step_lengths(self) -> tuple[int, ...]:
        """Tokens of every step."""
        return tuple(chunk.length for chunk in self.schedule.chunks)

    @property
    def transformer(self) -> TransformerConfig:
        """What our layers and our cache read; a PAR has no scales and no bits."""
        return TransformerConfig(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=self.width // self.heads,
            mlp_width=self.mlp_width,
            latent_dim=1,
            sizes=(self.grid,),
            max_frames=self.num_frames,
            condition="class",
            vocab_size=self.classes,
            qk_norm=False,
            rope_theta=self.rope_theta,
            rope_sections=self.rope_sections,
            norm_eps=self.norm_eps,
        )

    def arrange(self, prefix: Tensor, codes: Tensor, bridge: Tensor) -> Tensor:
        """What the model reads: the class, the first tokens, the learned ones, the other tokens.

        Args:
            prefix: `[..., 1, n]`, of the class.
            codes: `[..., num_tokens, n]` in decoding order; the last group is never read.
            bridge: `[..., group - 1, n]`.

        Returns:
            `[..., num_tokens, n]`.
        """
        first, rest = codes[..., : self.group, :], codes[..., self.group : -self.group, :]
        return torch.cat([prefix, first, bridge, rest], dim=-2)

    def input_positions(self) -> Tensor:
        """`(t, h, w)` of every token that is read, int64 `[num_tokens,3]`; 0 where it has none."""
        cells = self.schedule.positions() * torch.tensor(self.position_scale)
        return self.arrange(cells.new_zeros(1, 3), cells, cells.new_zeros(self.group - 1, 3))

    def unplaced(self) -> Tensor:
        """Which of the tokens that are read have no place: class and learned; bool."""
        placed = torch.zeros(self.num_tokens, 1, dtype=torch.bool)
        return self.arrange(~placed[:1], placed, ~placed[: self.group - 1])[:, 0]

    def order(self) -> Tensor:
        """Index, in `[frame, row, column]` flattened, of every token in decoding order."""
        frame, row, column = self.schedule.positions().unbind(-1)
        return (frame * self.grid[0] + row) * self.grid[1] + column


@lru_cache(maxsize=16)
def schedule_of(num_frames: int, grid: tuple[int, int], group: int) -> ChunkSchedule:
    """`ChunkSchedule.grouped`, made once."""
    return ChunkSchedule.grouped(num_frames, grid, group)


PAR_PRESETS = {f"par-{group}x": replace(ParConfig(), group=group) for group in (1, 4, 16)}

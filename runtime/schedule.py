"""What is decoded in which order: chunks of tokens, one decoding step each.

Everything that differs between VideoAR (a chunk is a scale of a frame), an image model (one
frame) and PAR (a chunk is a group of 1 or 4 tokens, arXiv 2412.15119) is in the schedule.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

Sizes = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The tokens of one decoding step.

    Attributes:
        offset: of the first token in the sequence (behind the text).
        length: tokens.
        frame: latent frame index, from 0.
        scale: scale index, from 0.
        grid: `(h, w)` of the map the cells lie on.
        cells: `(row, column)` of every token; empty: all of `grid`, row-major.
    """

    offset: int
    length: int
    frame: int
    scale: int
    grid: tuple[int, int]
    cells: tuple[tuple[int, int], ...] = ()

    def positions(self) -> Tensor:
        """`(t, h, w)` of every token before the text's length is added, int64 `[length,3]`."""
        if self.cells:
            cells = torch.tensor(self.cells)
        else:
            cells = torch.cartesian_prod(*(torch.arange(side) for side in self.grid))
        return torch.nn.functional.pad(cells, (1, 0), value=self.frame)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSchedule:
    """The chunks of one sequence in decoding order. Offsets are consecutive from 0.

    Raises:
        ValueError: offsets with gaps, a length that does not fit, or a frame before an earlier one.
    """

    chunks: tuple[Chunk, ...]

    def __post_init__(self) -> None:
        end = frame = 0
        for index, chunk in enumerate(self.chunks):
            count = len(chunk.cells) or chunk.grid[0] * chunk.grid[1]
            if chunk.offset != end or chunk.length < 1 or chunk.length != count:
                raise ValueError(
                    f"chunks[{index}]: expected offset {end} and length {count}, "
                    f"got {chunk.offset} and {chunk.length}"
                )
            if chunk.frame < frame:
                raise ValueError(
                    f"chunks[{index}]: expected frame {frame} or later, got {chunk.frame}"
                )
            end, frame = end + chunk.length, chunk.frame

    @classmethod
    def video(cls, num_latent_frames: int, sizes: Sizes) -> "ChunkSchedule":
        """VideoAR (arXiv 2601.05966, Eq. 5): every scale of every frame, `F * K` chunks.

        Raises:
            ValueError: no frame, no scale, or a scale without cells.
        """
        if num_latent_frames < 1:
            raise ValueError(f"num_latent_frames: at least 1, got {num_latent_frames}")
        if not sizes or any(len(s) != 2 or min(s) < 1 for s in sizes):
            raise ValueError(f"sizes: expected (h, w) pairs of at least 1, got {sizes}")
        chunks, offset = [], 0
        for frame in range(num_latent_frames):
            for scale, (h, w) in enumerate(sizes):
                chunks.append(
                    Chunk(offset=offset, length=h * w, frame=frame, scale=scale, grid=(h, w))
                )
                offset += h * w
        return cls(chunks=tuple(chunks))

    @classmethod
    def image(cls, sizes: Sizes) -> "ChunkSchedule":
        """One frame: next-scale prediction of an image."""
        return cls.video(1, sizes)

    @classmethod
    def grouped(cls, num_frames: int, grid: tuple[int, int], group: int = 4) -> "ChunkSchedule":
        """PAR (arXiv 2412.15119): `group` square regions decoded side by side.

        The first token of each region comes alone, one after the other; then one token of every
        region a step: `group + (tokens - group) / group` chunks. `group` 1 is raster order.

        Raises:
            ValueError: `group` is no square number or does not split the grid.
        """
        edge = round(group**0.5)
        if group < 1 or edge * edge != group or grid[0] % edge or grid[1] % edge or num_frames < 1:
            raise ValueError(f"group: {group} does not split {num_frames} frames of {grid}")
        height, width = grid[0] // edge, grid[1] // edge
        corners = [(i * height, j * width) for i in range(edge) for j in range(edge)]
        steps: list[tuple[int, tuple[tuple[int, int], ...]]] = []
        for frame in range(num_frames):
            for cell in range(height * width):
                row, column = divmod(cell, width)
                cells = tuple((r + row, c + column) for r, c in corners)
                first = frame == 0 and cell == 0
                steps.extend((frame, (one,)) for one in cells) if first else steps.append(
                    (frame, cells)
                )
        chunks, offset = [], 0
        for frame, cells in steps:
            chunks.append(
                Chunk(
                    offset=offset,
                    length=len(cells),
                    frame=frame,
                    scale=0,
                    grid=grid,
                    cells=cells,
                )
            )
            offset += len(cells)
        return cls(chunks=tuple(chunks))

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole sequence, text not counted."""
        return self.chunks[-1].offset + self.chunks[-1].length if self.chunks else 0

    @property
    def num_steps(self) -> int:
        """Decoding steps: one a chunk."""
        return len(self.chunks)

    @property
    def num_frames(self) -> int:
        """Latent frames."""
        return self.chunks[-1].frame + 1 if self.chunks else 0

    def _repeat(self, values: list[int]) -> Tensor:
        lengths = torch.tensor([chunk.length for chunk in self.chunks], dtype=torch.long)
        return torch.tensor(values, dtype=torch.long).repeat_interleave(lengths)

    def chunk_ids(self) -> Tensor:
        """Index of the chunk of every token, int64 `[num_tokens]`."""
        return self._repeat(list(range(len(self.chunks))))

    def frame_ids(self) -> Tensor:
        """Latent frame of every token, int64 `[num_tokens]`."""
        return self._repeat([chunk.frame for chunk in self.chunks])

    def scale_ids(self) -> Tensor:
        """Scale of every token, int64 `[num_tokens]`."""
        return self._repeat([chunk.scale for chunk in self.chunks])

    def positions(self) -> Tensor:
        """`(t, h, w)` of every token before the text's length is added, int64 `[num_tokens,3]`.

        Cells are raw indices of the chunk's own grid (arXiv 2601.05966, Eq. 7).
        """
        empty = torch.empty(0, 3, dtype=torch.long)
        return torch.cat([empty, *(chunk.positions() for chunk in self.chunks)])


def default_sizes(height: int, width: int) -> Sizes:
    """The scale set of a latent grid where none is given.

    Rule: the longer side runs through 1, 2, 3, 4, 6, 8, 12, 16, 24, ... (powers of two and the
    numbers half-way between) below its full length, the shorter side keeps the aspect ratio
    (rounded, half up, at least 1), the full grid comes last. 8x8 gives 1, 2, 3, 4, 6, 8.

    Raises:
        ValueError: a side below 1.
    """
    if height < 1 or width < 1:
        raise ValueError(f"latent grid: sides of at least 1, got {height}x{width}")
    longest = max(height, width)
    edges = sorted({e for p in range(longest.bit_length()) for e in (2**p, 3 * 2**p)})
    sizes = []
    for edge in (e for e in edges if e < longest):
        size = tuple(max(1, (2 * edge * s + longest) // (2 * longest)) for s in (height, width))
        if size not in sizes:
            sizes.append(size)
    return (*sizes, (height, width))

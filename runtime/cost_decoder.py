"""What the tokenizer's decoder costs: its convolutions, as they are and with upsamples folded in.

A nearest x2 upsample hands every value to two neighbours, so a kernel of three taps behind it meets
two different values an axis: each phase of the output (4 in space, 2 in time) is a convolution of
the small map with a kernel of two taps. Space alone goes from 9 taps to 4, with time from 27 to 8.
In front of the first frame of a stream there are only zeros, so one tap over time is enough there.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from videoar.runtime.config import TokenizerConfig
from videoar.runtime.cost import Grid, Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv:
    """One convolution for one latent frame of a stream.

    Attributes:
        level: "mid" for all before the levels, "4" .. "0", "out".
        width_in, width_out: channels.
        taps: that an output reads, time x height x width.
        phases: different kernels: 1, or those of a folded upsample.
        inputs: cells of the frames it reads, those it carries over not counted.
        carried: cells of the earlier frames it carries over from the last latent frame.
        frames, grid: of the map it writes.
    """

    level: str
    width_in: int
    width_out: int
    taps: int
    phases: int
    inputs: int
    carried: int
    frames: int
    grid: Grid

    @property
    def outputs(self) -> int:
        """Cells of all frames it writes."""
        return self.frames * self.grid[0] * self.grid[1]

    @property
    def weights(self) -> int:
        """Elements of its kernels."""
        return self.width_in * self.width_out * self.taps * self.phases

    @property
    def flops(self) -> int:
        return 2 * self.width_in * self.width_out * self.taps * self.outputs

    @property
    def maps(self) -> int:
        """Elements of its input, carried frames included, and of its output."""
        return self.width_in * (self.inputs + self.carried) + self.width_out * self.outputs


@dataclass(slots=True, kw_only=True)
class _Map:
    """The map between two convolutions."""

    frames: int
    grid: Grid
    folded: bool
    skips_zeros: bool

    def conv(self, level: str, width_in: int, width_out: int, time: int, kernel: int = 3) -> Conv:
        """A convolution that keeps the map's size."""
        time = 1 if self.skips_zeros else time
        cells = self.grid[0] * self.grid[1]
        return Conv(
            level=level,
            width_in=width_in,
            width_out=width_out,
            taps=time * kernel**2,
            phases=1,
            inputs=self.frames * cells,
            carried=(time - 1) * cells,
            frames=self.frames,
            grid=self.grid,
        )

    def blocks(
        self, level: str, width_in: int, width: int, times: tuple[int, int], count: int
    ) -> Iterator[Conv]:
        """Residual blocks of which the first changes the width."""
        for wide in [width_in] + [width] * (count - 1):
            yield self.conv(level, wide, width, times[0])
            if wide != width:
                yield self.conv(level, wide, width, 1, kernel=1)
            yield self.conv(level, width, width, times[1])

    def upsample(self, level: str, width: int, time: int, frames: int, temporal: bool) -> Conv:
        """A convolution behind an upsample to `frames`; the map is then the large one."""
        read, cells = self.frames, self.grid[0] * self.grid[1]
        if not self.folded:
            read, cells = frames, 4 * cells
        fold_time = self.folded and temporal and not self.skips_zeros
        time = 1 if self.skips_zeros else time
        self.frames, self.grid = frames, (2 * self.grid[0], 2 * self.grid[1])
        return Conv(
            level=level,
            width_in=width,
            width_out=width,
            taps=(2 if fold_time else time) * (4 if self.folded else 9),
            phases=(4 if self.folded else 1) * (2 if fold_time else 1),
            inputs=read * cells,
            carried=(1 if fold_time else time - 1) * cells,
            frames=frames,
            grid=self.grid,
        )


def decoder_convs(
    config: TokenizerConfig, grid: Grid, *, first: bool, folded: bool
) -> Iterator[Conv]:
    """The decoder's convolutions for one latent frame, in order.

    Args:
        grid: of the latent frame.
        first: of the stream, which becomes 1 pixel frame; a later one becomes tau.
        folded: nearest upsamples are part of the convolutions behind them, and the first frame
            leaves out the zeros in front of it. Otherwise this is its share of `Decoder` on a whole
            clip.
    """
    widths = config.widths
    at = _Map(frames=1, grid=grid, folded=folded, skips_zeros=folded and first)
    yield at.conv("mid", config.latent_dim, widths[-1], config.io_kernel_time)
    yield from at.blocks("mid", widths[-1], widths[-1], config.mid_kernel_time, 2)
    for level in reversed(range(len(widths))):
        wide = widths[min(level + 1, len(widths) - 1)]
        times, count = config.block_kernel_time[level], config.decoder_blocks[level]
        yield from at.blocks(str(level), wide, widths[level], times, count)
        if level:
            temporal = level - 1 in config.temporal_levels
            # The first frame of a stream is not repeated (t -> 2t - 1).
            frames = at.frames * 2 if temporal and not first else at.frames
            time = config.resample_kernel_time[level - 1]
            yield at.upsample(str(level), widths[level], time, frames, temporal)
    yield at.conv("out", widths[0], 3 * config.patch_size**2, config.io_kernel_time)


def clip_convs(
    config: TokenizerConfig, grid: Grid, latent_frames: int, *, folded: bool
) -> list[Conv]:
    """The convolutions of a clip that is decoded a latent frame at a time."""
    return [
        conv
        for frame in range(latent_frames)
        for conv in decoder_convs(config, grid, first=frame == 0, folded=folded)
    ]


def conv_flops(convs: Iterable[Conv]) -> int:
    """FLOPs of all of them."""
    return sum(conv.flops for conv in convs)


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelCost:
    """The convolutions of one level over a clip, an upsample counted where it starts.

    Attributes:
        level: as in `Conv`.
        channels, grid: of the level's map.
        plain_flops, flops: of the plain form and of the folded one.
        num_bytes: kernels and maps, folded; kernels are read once a latent frame.
        seconds: least time, folded.
    """

    level: str
    channels: int
    grid: Grid
    plain_flops: int
    flops: int
    num_bytes: int
    seconds: float


def decoder_levels(
    config: TokenizerConfig,
    grid: Grid,
    latent_frames: int,
    limits: Limits,
    *,
    itemsize: int,
    requests: int = 1,
) -> list[LevelCost]:
    """The cost of clips decoded a latent frame at a time, `requests` together, level by level."""
    plain = clip_convs(config, grid, latent_frames, folded=False)
    folded = clip_convs(config, grid, latent_frames, folded=True)
    levels = []
    for level in dict.fromkeys(conv.level for conv in folded):
        convs = [conv for conv in folded if conv.level == level]
        sizes = [itemsize * (conv.weights + requests * conv.maps) for conv in convs]
        levels.append(
            LevelCost(
                level=level,
                channels=convs[0].width_out,
                grid=convs[0].grid,
                plain_flops=requests * conv_flops(c for c in plain if c.level == level),
                flops=requests * conv_flops(convs),
                num_bytes=sum(sizes),
                seconds=sum(
                    limits.seconds(size, requests * conv.flops)
                    for size, conv in zip(sizes, convs, strict=True)
                ),
            )
        )
    return levels

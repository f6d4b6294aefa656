"""What a training step of the video tokenizer costs; see `cost_training`.

Maps are those of a whole clip. A convolution keeps its input, with three taps over time stacked
into channels; a normalised one also the norm's and the activation's inputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from videoar.runtime.config import TokenizerConfig
from videoar.runtime.cost_training import (
    FULL,
    PartCost,
    TrainingMemory,
    TrainingWork,
    gathered_memory,
    state_memory,
    update_cost,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedConv:
    """One convolution over a clip.

    Attributes:
        width_in, width_out: channels.
        taps: time x height x width.
        inputs: elements of its input, as it is kept.
        maps: elements kept in front of it: by the norm and by the activation.
        outputs: cells that it writes.
    """

    width_in: int
    width_out: int
    taps: int
    inputs: int
    maps: int
    outputs: int

    @property
    def flops(self) -> int:
        """Forwards."""
        return 2 * self.width_in * self.width_out * self.taps * self.outputs

    @property
    def weights(self) -> int:
        return self.width_in * self.width_out * self.taps


@dataclass(slots=True, kw_only=True)
class _Map:
    """The map between two convolutions."""

    frames: int
    height: int
    width: int

    @property
    def cells(self) -> int:
        return self.frames * self.height * self.width

    def conv(self, inputs: int, outputs: int, time: int, *, normed: bool = False) -> TrainedConv:
        """A 3x3 convolution that keeps the map's size."""
        time = 1 if self.frames == 1 else time
        return TrainedConv(
            width_in=inputs,
            width_out=outputs,
            taps=9 * time,
            inputs=self.cells * inputs * time,
            maps=2 * self.cells * inputs if normed else 0,
            outputs=self.cells,
        )

    def blocks(
        self, inputs: int, width: int, times: tuple[int, int], count: int
    ) -> Iterator[TrainedConv]:
        """Residual blocks of which the first changes the width; its shortcut shares an input."""
        for wide in [inputs] + [width] * (count - 1):
            yield self.conv(wide, width, times[0], normed=True)
            if wide != width:
                yield TrainedConv(
                    width_in=wide, width_out=width, taps=1, inputs=0, maps=0, outputs=self.cells
                )
            yield self.conv(width, width, times[1], normed=True)

    def down(self, width: int, time: int, temporal: bool) -> TrainedConv:
        """Half the size; the map is then the small one."""
        time = 1 if self.frames == 1 else time
        padded = (self.height + 1) * (self.width + 1)
        self.frames = (self.frames + 1) // 2 if temporal else self.frames
        self.height, self.width = self.height // 2, self.width // 2
        return TrainedConv(
            width_in=width,
            width_out=width,
            taps=9 * time,
            inputs=self.frames * padded * width * time,
            maps=0,
            outputs=self.cells,
        )

    def up(self, width: int, time: int, temporal: bool) -> TrainedConv:
        """Twice the size; the map is then the large one."""
        time = 1 if self.frames == 1 else time
        self.frames = 2 * self.frames - 1 if temporal else self.frames
        self.height, self.width = 2 * self.height, 2 * self.width
        return TrainedConv(
            width_in=width,
            width_out=width,
            taps=9 * time,
            inputs=self.cells * width * time,
            maps=0,
            outputs=self.cells,
        )


def training_convs(
    config: TokenizerConfig, height: int, width: int, latent_frames: int
) -> Iterator[TrainedConv]:
    """The convolutions of encoder and decoder over one clip, in order."""
    frames = 1 + config.temporal_compression * (latent_frames - 1)
    widths, patch, io = config.widths, config.patch_size, config.io_kernel_time
    at = _Map(frames=frames, height=height // patch, width=width // patch)
    yield at.conv(3 * patch**2, widths[0], io)
    for level, count in enumerate(config.encoder_blocks):
        times = config.block_kernel_time[level]
        yield from at.blocks(widths[max(level - 1, 0)], widths[level], times, count)
        if level < len(widths) - 1:
            time = config.resample_kernel_time[level]
            yield at.down(widths[level], time, level in config.temporal_levels)
    yield from at.blocks(widths[-1], widths[-1], config.mid_kernel_time, 2)
    yield at.conv(widths[-1], config.latent_dim, io, normed=True)
    yield at.conv(config.latent_dim, widths[-1], io)
    yield from at.blocks(widths[-1], widths[-1], config.mid_kernel_time, 2)
    for level in reversed(range(len(widths))):
        wide = widths[min(level + 1, len(widths) - 1)]
        times, count = config.block_kernel_time[level], config.decoder_blocks[level]
        yield from at.blocks(wide, widths[level], times, count)
        if level:
            time = config.resample_kernel_time[level - 1]
            yield at.up(widths[level], time, level - 1 in config.temporal_levels)
    yield at.conv(widths[0], 3 * patch**2, io, normed=True)


def tokenizer_memory(
    config: TokenizerConfig, height: int, width: int, parameters: int, work: TrainingWork
) -> TrainingMemory:
    """A step of reconstruction, quantised; layers are not checkpointed."""
    convs = list(training_convs(config, height, width, work.latent_frames))
    size = work.itemsize
    frames = 1 + config.temporal_compression * (work.latent_frames - 1)
    pixels = 3 * work.batch * frames * height * width
    passing = max(2 * conv.inputs + 2 * conv.width_out * conv.outputs for conv in convs)
    return TrainingMemory(
        **state_memory(parameters, work.processes),
        gathered=gathered_memory(parameters, parameters, 1, work.processes),
        copies=sum(conv.weights for conv in convs) * size if size < FULL else 0,
        batch=pixels * FULL,
        activations=work.batch * sum(conv.inputs + conv.maps for conv in convs) * size,
        attention=0,
        head=pixels * FULL,
        recomputed=0,
        working=work.batch * passing * size,
    )


def tokenizer_step(
    config: TokenizerConfig, height: int, width: int, parameters: int, work: TrainingWork
) -> list[PartCost]:
    """Convolutions and update of a step: what must be computed and moved at least."""
    memory = tokenizer_memory(config, height, width, parameters, work)
    convs = list(training_convs(config, height, width, work.latent_frames))
    kept = 2 * (memory.activations + memory.head) + 3 * memory.copies
    # The input of the whole has no gradient.
    flops = work.batch * (3 * sum(conv.flops for conv in convs) - convs[0].flops)
    return [
        PartCost(name="convolutions", flops=flops, num_bytes=kept),
        update_cost(parameters, work),
    ]

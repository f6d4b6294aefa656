"""What PAR decoding costs, counted as in `videoar.runtime.cost`."""

from videoar.benchmarks.par_config import ParConfig
from videoar.runtime.cost import Gemm, StepCost, layer_gemms


def step_gemms(config: ParConfig, rows: int) -> tuple[Gemm, ...]:
    """The products of one step: the layers, then logits of all codes. A code's row is looked up."""
    head = Gemm(name="head", rows=rows, width_in=config.width, width_out=config.codebook)
    return (*layer_gemms(config.transformer, rows), head)


def clip_steps(config: ParConfig, *, sequences: int = 2, itemsize: int = 2) -> list[StepCost]:
    """All decoding steps of a clip.

    Args:
        sequences: rows that are decoded together: requests, times 2 with guidance.
        itemsize: bytes of one weight, key or activation.
    """
    pair = 2 * config.layers * config.width * itemsize
    steps = []
    for chunk in config.schedule.chunks:
        rows, keys = sequences * chunk.length, chunk.offset + chunk.length
        gemms = step_gemms(config, rows)
        steps.append(
            StepCost(
                frame=chunk.frame,
                scale=0,
                grid=chunk.grid,
                rows=rows,
                keys=keys,
                gemm_flops=sum(gemm.flops for gemm in gemms),
                attention_flops=4 * config.layers * config.width * rows * keys,
                weight_bytes=sum(gemm.weights for gemm in gemms) * itemsize,
                cache_read_bytes=pair * sequences * keys,
                cache_write_bytes=pair * rows,
            )
        )
    return steps

"""What decoding costs: FLOPs and bytes of every step, and the least time a device needs for them.

Counted is what must be: every weight is read once a step, and so is every cached key and value that
a sequence sees; a multiplication with its addition is two FLOPs. Activations stay in the caches;
norms, activation functions and sampling are taken to be free. The products of a step take the
longer of their bytes and their FLOPs, its attention likewise, and the two follow each other.
"""

from dataclasses import dataclass

from videoar.runtime.config import TransformerConfig

Grid = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The two ceilings of a device.

    Attributes:
        name: of the device.
        bandwidth: bytes a second to and from memory.
        rate: FLOPs a second of matrix products.
        source: where the two are from, for the reader.
        memory: bytes of the device's memory.
    """

    name: str
    bandwidth: float
    rate: float
    source: str
    memory: int

    def seconds(self, num_bytes: float, flops: float) -> float:
        """The longer of moving the bytes and computing the FLOPs."""
        return max(num_bytes / self.bandwidth, flops / self.rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm:
    """`count` products of `rows` x `width_in` with as many different weights.

    Attributes:
        name: of the layer, or of the layers that read one input and can be one product.
        rows: tokens of all sequences.
        width_in, width_out: of the weight.
        count: how many of these the model has.
    """

    name: str
    rows: int
    width_in: int
    width_out: int
    count: int = 1

    @property
    def weights(self) -> int:
        """Elements of all weights."""
        return self.width_in * self.width_out * self.count

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.weights


def layer_gemms(config: TransformerConfig, rows: int) -> tuple[Gemm, ...]:
    """The products of the decoder layers, in the order of one of them."""
    query, shared = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes = (
        ("qkv", config.width, query + 2 * shared),
        ("o", query, config.width),
        ("gate_up", config.width, 2 * config.mlp_width),
        ("down", config.mlp_width, config.width),
    )
    return tuple(
        Gemm(name=name, rows=rows, width_in=inputs, width_out=outputs, count=config.layers)
        for name, inputs, outputs in shapes
    )


def step_gemms(config: TransformerConfig, rows: int) -> tuple[Gemm, ...]:
    """The products of one decoding step: tokens in, the layers, logits out."""
    bits, width = config.latent_dim, config.width
    return (
        Gemm(name="embed_bits", rows=rows, width_in=bits, width_out=width),
        *layer_gemms(config, rows),
        Gemm(name="head", rows=rows, width_in=width, width_out=2 * bits),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """One pass of the transformer: a decoding step, or (frame -1) the text in front of them.

    Attributes:
        frame, scale: latent frame and scale, from 0.
        grid: of the scale.
        rows: tokens of all sequences.
        keys: that each of them attends to, itself and its chunk included.
        gemm_flops, attention_flops: FLOPs.
        weight_bytes, cache_read_bytes, cache_write_bytes: bytes.
    """

    frame: int
    scale: int
    grid: Grid
    rows: int
    keys: int
    gemm_flops: int
    attention_flops: int
    weight_bytes: int
    cache_read_bytes: int
    cache_write_bytes: int

    @property
    def flops(self) -> int:
        return self.gemm_flops + self.attention_flops

    @property
    def num_bytes(self) -> int:
        return self.weight_bytes + self.cache_read_bytes + self.cache_write_bytes

    def seconds(self, limits: Limits) -> float:
        """Least time on a device."""
        cache_bytes = self.cache_read_bytes + self.cache_write_bytes
        products = limits.seconds(self.weight_bytes, self.gemm_flops)
        return products + limits.seconds(cache_bytes, self.attention_flops)

    def bound(self, limits: Limits) -> str:
        """What most of the time goes to: "weights", "cache" or "compute"."""
        parts = {
            "weights": self.weight_bytes / limits.bandwidth,
            "cache": (self.cache_read_bytes + self.cache_write_bytes) / limits.bandwidth,
            "compute": self.flops / limits.rate,
        }
        return max(parts, key=parts.__getitem__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How much is decoded at once.

    Attributes:
        requests: decoded together in one batch.
        sequences: rows of one request, 2 with guidance.
        text: tokens in front of the frames.
        window: earlier latent frames seen.
        itemsize: bytes of one weight, key or activation.
    """

    requests: int
    sequences: int
    text: int
    window: int
    itemsize: int


def _pass_cost(
    config: TransformerConfig, work: Work, frame: int, scale: int, grid: Grid, keys: int
) -> StepCost:
    sequences = work.requests * work.sequences
    rows = sequences * grid[0] * grid[1]
    gemms = layer_gemms(config, rows) if frame < 0 else step_gemms(config, rows)
    pair = 2 * config.layers * config.kv_heads * config.head_dim * work.itemsize
    # A causal text token sees half of the text on average, everything else sees all keys.
    seen = (keys + 1) / 2 if frame < 0 else keys
    return StepCost(
        frame=frame,
        scale=scale,
        grid=grid,
        rows=rows,
        keys=keys,
        gemm_flops=sum(gemm.flops for gemm in gemms),
        attention_flops=round(4 * config.layers * config.heads * config.head_dim * rows * seen),
        weight_bytes=sum(gemm.weights for gemm in gemms) * work.itemsize,
        cache_read_bytes=pair * sequences * keys,
        cache_write_bytes=pair * rows,
    )


def prefill_cost(config: TransformerConfig, work: Work) -> StepCost:
    """The pass over the text, which only fills the cache."""
    return _pass_cost(config, work, -1, 0, (1, work.text), work.text)


def frame_steps(config: TransformerConfig, work: Work, frame: int) -> list[StepCost]:
    """The steps of latent frame `frame`, one a scale."""
    keys = work.text + min(frame, work.window) * config.tokens_per_frame
    steps = []
    for scale, grid in enumerate(config.sizes):
        keys += grid[0] * grid[1]
        steps.append(_pass_cost(config, work, frame, scale, grid, keys))
    return steps


def clip_steps(config: TransformerConfig, work: Work, latent_frames: int) -> list[StepCost]:
    """All decoding steps of a clip, without the text's pass."""
    return [step for frame in range(latent_frames) for step in frame_steps(config, work, frame)]

"""What a training step costs: memory, FLOPs, bytes, least time (arXiv 2601.05966, section 4).

Weights are float32 masters (with gradients, both Adam moments and averaged weights), networks run
under autocast, as `videoar train` does it. Counted is what the operations keep between forward and
backward with the kernels of this package. They save the same tensors in C++ and in Triton (inputs,
and of attention the result and the softmax denominators), so one formula serves CPU and GPU; it has
been compared with measured peaks on CPUs only. The references save more. Not counted: the process,
its libraries and their scratch memory, data that waits, the perceptual and adversarial networks.
"""

from dataclasses import dataclass

from videoar.runtime.config import TransformerConfig
from videoar.runtime.cost import Limits, step_gemms

FULL = 4  # bytes of a float32


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingWork:
    """One step of one process.

    Attributes:
        batch: clips of this process.
        latent_frames: of a clip.
        text: text slots in front of the frames, padding included.
        checkpointing: layers keep their inputs only and are computed again.
        processes: that share weights, gradients, moments and averages (FSDP).
        itemsize: bytes of an activation: 2 under autocast to 16 bits, else 4.
    """

    batch: int
    latent_frames: int
    text: int = 1
    checkpointing: bool = False
    processes: int = 1
    itemsize: int = 2

    def __post_init__(self) -> None:
        for name in ("batch", "latent_frames", "text", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMemory:
    """Bytes by purpose, of one process.

    Attributes:
        weights, gradients, moments, average: float32; shares of them with several processes.
        gathered: whole float32 weights of the layers at work, with several processes.
        copies: weights in the dtype of autocast, kept from the forward to the backward.
        batch: inputs and targets.
        activations: what the layers keep, attention and head left out.
        attention: queries, keys, values, results and softmax denominators.
        head: logits, hidden states in front of them, and their gradients.
        recomputed: with checkpointing, what one layer keeps while it is computed again.
        working: gradients of activations and other passing tensors, at most.
    """

    weights: int
    gradients: int
    moments: int
    average: int
    gathered: int
    copies: int
    batch: int
    activations: int
    attention: int
    head: int
    recomputed: int
    working: int

    @property
    def state(self) -> int:
        """What is there between two steps."""
        return self.weights + self.moments + self.average

    @property
    def peak(self) -> int:
        """The most at once: where the backward begins, or where it ends with all gradients."""
        kept = self.copies + self.activations + self.attention + self.head
        passing = self.gathered + self.recomputed + self.working
        return self.state + self.batch + passing + max(kept, self.gradients)

    def parts(self) -> dict[str, int]:
        """Bytes by name, in the order of the attributes."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCost:
    """FLOPs and bytes of a part of a step."""

    name: str
    flops: int
    num_bytes: int

    def seconds(self, limits: Limits) -> float:
        """Least time on a device."""
        return limits.seconds(self.num_bytes, self.flops)


def state_memory(parameters: int, processes: int) -> dict[str, int]:
    """Weights, gradients, two moments and averages of one process, by field."""
    share = -(-parameters // processes) * FULL
    return {"weights": share, "gradients": share, "moments": 2 * share, "average": share}


def transformer_memory(
    config: TransformerConfig, parameters: int, work: TrainingWork
) -> TrainingMemory:
    """A step of the transformer by teacher forcing."""
    video = work.batch * work.latent_frames * config.tokens_per_frame
    tokens = video + work.batch * work.text
    size, bits = work.itemsize, config.latent_dim
    layer, attention = _kept_by_layer(config, tokens, size)
    weights = sum(gemm.weights for gemm in step_gemms(config, 1))
    of_layer = sum(gemm.weights // gemm.count for gemm in step_gemms(config, 1)[1:-1])
    # Between forward and backward a layer keeps all this, or its input in two parts.
    kept, recomputed = config.layers * layer, 0
    if work.checkpointing:
        kept, recomputed = 2 * config.layers * tokens * config.width * size, layer + attention
    largest = max(config.width * config.mlp_width, config.width * config.heads * config.head_dim)
    # Of the last layer: gradients of gate and up, of both parts of its output, of one weight.
    working = size * (tokens * 2 * (config.mlp_width + config.width) + largest)
    return TrainingMemory(
        **state_memory(parameters, work.processes),
        gathered=gathered_memory(parameters, of_layer, config.layers, work.processes),
        copies=weights * size if size < FULL else 0,
        batch=video * bits * (FULL + size + 1),
        activations=kept,
        attention=0 if work.checkpointing else config.layers * attention,
        # The last norm's input and its result behind the text, logits and their gradient.
        head=size * (tokens * config.width + video * (config.width + 4 * bits)),
        recomputed=recomputed,
        working=working,
    )


def _kept_by_layer(config: TransformerConfig, tokens: int, size: int) -> tuple[int, int]:
    """Bytes that a layer keeps, without and of attention."""
    query, shared = config.heads * config.head_dim, config.kv_heads * config.head_dim
    # Both norms keep their input and give the input of linear layers; gate, up and their product.
    layer = 4 * config.width + 3 * config.mlp_width
    # q and k before and behind their norm and rotation, v, the result.
    attention = 3 * query + 3 * shared
    return tokens * layer * size, tokens * (attention * size + config.heads * FULL)


def gathered_memory(parameters: int, of_layer: int, layers: int, processes: int) -> int:
    """The layer at work and the next one, and what is in no layer: weights and gradients."""
    if processes == 1:
        return 0
    outside = max(0, parameters - layers * of_layer)
    return FULL * 2 * (outside + min(2, layers) * of_layer)


def visible_pairs(config: TransformerConfig, work: TrainingWork) -> int:
    """Pairs of query and key of one clip, every earlier frame being visible."""
    pairs, text = work.text * (work.text + 1) // 2, work.text
    for frame in range(work.latent_frames):
        keys = text + frame * config.tokens_per_frame
        for height, width in config.sizes:
            keys += height * width
            pairs += height * width * keys
    return pairs


def transformer_step(
    config: TransformerConfig, parameters: int, work: TrainingWork
) -> list[PartCost]:
    """Products, attention and update of a step: what must be computed and moved at least.

    A product's backward is two products. Attention: 4 D FLOPs a pair and head forwards, 10 D
    backwards, as the kernels compute the scores again. What is kept is written once and read once;
    the logits' loss is taken to be free.
    """
    memory = transformer_memory(config, parameters, work)
    video = work.batch * work.latent_frames * config.tokens_per_frame
    tokens = video + work.batch * work.text
    embed, *layers, head = step_gemms(config, 1)
    layer_bytes, attention_bytes = _kept_by_layer(config, tokens, work.itemsize)
    again = work.checkpointing
    # The input of the whole has no gradient.
    flops = video * (2 * embed.flops + 3 * head.flops)
    flops += tokens * 3 * sum(gemm.flops for gemm in layers)
    if again:
        # But for the last product, whose result nobody keeps.
        flops += tokens * sum(gemm.flops for gemm in layers if gemm.name != "down")
    kept = 2 * (config.layers * layer_bytes + memory.head)
    kept += 3 * sum(gemm.weights for gemm in (embed, *layers, head)) * work.itemsize
    pairs = work.batch * visible_pairs(config, work) * config.layers * config.heads
    attention = PartCost(
        name="attention",
        flops=(18 if again else 14) * config.head_dim * pairs,
        num_bytes=2 * config.layers * attention_bytes,
    )
    products = PartCost(name="products", flops=flops, num_bytes=kept)
    return [products, attention, update_cost(parameters, work)]


def update_cost(parameters: int, work: TrainingWork) -> PartCost:
    """Casts, clipping, AdamW and averaging of one process's share, per parameter.

    Read weights and write copies (4 + 2); read gradients for their norm (4); read gradients,
    moments and weights, write moments and weights (16 + 12); read and write averages (8).
    """
    share = -(-parameters // work.processes)
    copies = 6 if work.itemsize < FULL else 0
    return PartCost(name="update", flops=0, num_bytes=share * (copies + 4 + 28 + 8))

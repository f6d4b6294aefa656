"""Configuration of the two networks and of a whole model. What is here goes into checkpoints."""

from dataclasses import dataclass, replace
from math import inf

from videoar.runtime.guidance import GuidanceSchedule
from videoar.runtime.values import moderate

# Beyond what any container of videos carries sensibly.
_MOST_FPS = 1000


def _require(condition: bool, field: str, message: str) -> None:
    if not condition:
        raise ValueError(f"{field}: {message}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """The causal 3D video tokenizer (arXiv 2601.05966, section 3; 2D form: arXiv 2412.04431).

    Level 0 works at full (patched) resolution, each further level at half of it.

    Attributes:
        latent_dim: d, bits of one token.
        channels: width of level 0.
        multipliers: width of each level in units of `channels`.
        encoder_blocks: residual blocks of each level in the encoder.
        decoder_blocks: residual blocks of each level in the decoder.
        norm_groups: groups of every GroupNorm, eps 1e-6, statistics of one frame.
        temporal_levels: levels whose downsample also halves the frame rate (and whose mirror in
            the decoder doubles it); `len` of them give the temporal compression `2**len`.
        block_kernel_time: temporal kernel length of (conv1, conv2) of the blocks of each level;
            1 is a 2D convolution.
        mid_kernel_time: the same for the two middle blocks.
        resample_kernel_time: temporal kernel length of each level's down/upsample convolution.
        io_kernel_time: the same for conv_in and conv_out of both networks.
        patch_size: pixels an edge folded into channels before level 0 (1: none).
        latent_scale: 0 leaves the encoder's output as it is; above 0 each latent vector is
            normalised to the length `latent_scale`.
    """

    latent_dim: int = 48
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    encoder_blocks: tuple[int, ...] = (2, 2, 2, 2, 2)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 3, 3)
    norm_groups: int = 32
    temporal_levels: tuple[int, ...] = (2, 3)
    block_kernel_time: tuple[tuple[int, int], ...] = ((3, 3),) * 5
    mid_kernel_time: tuple[int, int] = (3, 3)
    resample_kernel_time: tuple[int, ...] = (3, 3, 3, 3)
    io_kernel_time: int = 3
    patch_size: int = 1
    latent_scale: float = 0.0

    def __post_init__(self) -> None:
        levels = len(self.multipliers)
        _require(self.latent_dim >= 1, "latent_dim", f"at least 1, got {self.latent_dim}")
        _require(levels >= 1 and min(self.multipliers) >= 1, "multipliers", "one a level, from 1")
        for name in ("encoder_blocks", "decoder_blocks", "block_kernel_time"):
            got = len(getattr(self, name))
            _require(got == levels, name, f"one entry a level ({levels}), got {got}")
        _require(min(self.encoder_blocks) >= 1, "encoder_blocks", "at least 1 a level")
        _require(min(self.decoder_blocks) >= 1, "decoder_blocks", "at least 1 a level")
        got = len(self.resample_kernel_time)
        _require(got == levels - 1, "resample_kernel_time", f"needs {levels - 1}, got {got}")
        for level in self.temporal_levels:
            _require(0 <= level < levels - 1, "temporal_levels", f"no resampling at level {level}")
            length = self.resample_kernel_time[level]
            _require(length == 3, "resample_kernel_time", f"level {level} needs 3, got {length}")
        unique = len(set(self.temporal_levels)) == len(self.temporal_levels)
        _require(unique, "temporal_levels", "each level at most once")
        _require(self.patch_size >= 1, "patch_size", f"at least 1, got {self.patch_size}")
        _require(self.latent_scale >= 0, "latent_scale", f"at least 0, got {self.latent_scale}")
        self._check_kernels_and_groups()

    def _check_kernels_and_groups(self) -> None:
        pairs = (*self.block_kernel_time, self.mid_kernel_time)
        for name, lengths in (
            ("block_kernel_time", [length for pair in pairs for length in pair]),
            ("resample_kernel_time", self.resample_kernel_time),
            ("io_kernel_time", (self.io_kernel_time,)),
        ):
            _require(all(n in (1, 3) for n in lengths), name, f"1 or 3 each, got {lengths}")
        for width in self.widths:
            fits = self.norm_groups >= 1 and width % self.norm_groups == 0
            _require(fits, "norm_groups", f"{self.norm_groups} does not divide the width {width}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * m for m in self.multipliers)

    @property
    def spatial_compression(self) -> int:
        """Pixels an edge behind one latent cell."""
        return self.patch_size * 2 ** (len(self.multipliers) - 1)

    @property
    def temporal_compression(self) -> int:
        """tau: pixel frames behind every latent frame but the first."""
        return 2 ** len(self.temporal_levels)

    def latent_frames(self, num_frames: int) -> int:
        """F = 1 + T/tau for `num_frames` = 1 + T pixel frames.

        Raises:
            ValueError: not of the form 1 + tau n; names the nearest counts that are.
        """
        tau = self.temporal_compression
        if num_frames < 1 or (num_frames - 1) % tau:
            low = max(0, (num_frames - 1) // tau)
            near = f"{1 + tau * low} or {1 + tau * (low + 1)}" if num_frames > 1 else "1"
            raise ValueError(f"num_frames: must be 1 + {tau}n, got {num_frames}; nearest: {near}")
        return 1 + (num_frames - 1) // tau

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Latent grid of a `height` x `width` frame.

        Raises:
            ValueError: a side is no multiple of the spatial compression; names the nearest.
        """
        factor = self.spatial_compression
        for name, side in (("height", height), ("width", width)):
            if side < factor or side % factor:
                nearest = max(1, round(side / factor)) * factor
                raise ValueError(
                    f"{name}: must be a multiple of {factor}, got {side}; nearest: {nearest}"
                )
        return height // factor, width // factor

    def as_2d(self) -> "TokenizerConfig":
        """The same network with every temporal kernel of length 1 and no temporal resampling."""
        return replace(
            self,
            temporal_levels=(),
            block_kernel_time=((1, 1),) * len(self.multipliers),
            mid_kernel_time=(1, 1),
            resample_kernel_time=(1,) * (len(self.multipliers) - 1),
            io_kernel_time=1,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """The autoregressive transformer (arXiv 2601.05966, section 4), LLaMA conventions.

    Attributes:
        layers: decoder layers.
        width: model width C.
        heads: query heads.
        kv_heads: key and value heads; `heads` of them is no grouping.
        head_dim: width of one head.
        mlp_width: SwiGLU width.
        latent_dim: d, bits of one token.
        sizes: grids of the scales, coarse to fine.
        max_frames: latent frames it is trained for; earlier ones seen are at most one less.
        condition: "text" or "class".
        vocab_size: entries of the text vocabulary, or the number of classes.
        max_text: most text tokens, start token included (1 for classes).
        qk_norm: RMSNorm on every query and key head.
        rope_theta: base of the rotary frequencies. The width axis takes the slowest ones, so on
            small grids the LLaMA value of 10000 leaves columns almost indistinguishable.
        rope_sections: rotary pairs of the time, height and width axis.
        norm_eps: of every RMSNorm.
        positions: "grid", time, row and column of every token (arXiv 2601.05966, Eq. 7), or
            "sequence", its index alone, as ordinary RoPE.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    latent_dim: int
    sizes: tuple[tuple[int, int], ...]
    max_frames: int
    condition: str
    vocab_size: int
    max_text: int = 1
    qk_norm: bool = True
    rope_theta: float = 10000.0
    rope_sections: tuple[int, int, int] = (16, 24, 24)
    norm_eps: float = 1e-6
    positions: str = "grid"

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "kv_heads", "head_dim", "mlp_width"):
            _require(getattr(self, name) >= 1, name, f"at least 1, got {getattr(self, name)}")
        for name in ("latent_dim", "max_frames", "vocab_size", "max_text"):
            _require(getattr(self, name) >= 1, name, f"at least 1, got {getattr(self, name)}")
        grouped = self.heads % self.kv_heads == 0
        _require(grouped, "kv_heads", f"{self.kv_heads} does not divide {self.heads} heads")
        kinds = ("text", "class")
        _require(self.condition in kinds, "condition", f"one of {kinds}, got {self.condition!r}")
        single = self.condition == "text" or self.max_text == 1
        _require(single, "max_text", f"1 for classes, got {self.max_text}")
        _require(bool(self.sizes), "sizes", "at least one scale")
        for size in self.sizes:
            valid = len(size) == 2 and min(size) >= 1
            _require(valid, "sizes", f"(h, w) of at least 1, got {size}")
        last = tuple(max(side) for side in zip(*self.sizes, strict=True))
        text = f"none larger than the last, got {self.sizes}"
        _require(last == tuple(self.sizes[-1]), "sizes", text)
        got, pairs = sum(self.rope_sections), self.head_dim // 2
        fits = got == pairs and self.head_dim % 2 == 0 and len(self.rope_sections) == 3
        _require(fits, "rope_sections", f"three that sum to {pairs} pairs, got {got}")
        least = min(self.rope_sections)
        _require(least >= 0, "rope_sections", f"none below 0, got {self.rope_sections}")
        for name in ("norm_eps", "rope_theta"):
            value = getattr(self, name)
            _require(0 < value < inf, name, f"above 0 and finite, got {value}")
        kinds = ("grid", "sequence")
        _require(self.positions in kinds, "positions", f"one of {kinds}, got {self.positions!r}")

    @property
    def tokens_per_frame(self) -> int:
        """N: tokens of all scales of one frame."""
        return sum(h * w for h, w in self.sizes)

    @property
    def embeddings(self) -> int:
        """Rows of the condition's table: the vocabulary, or the classes and "no class"."""
        return self.vocab_size + (self.condition == "class")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A whole model: what `VideoAR.preset` builds and `model_index.json` describes.

    Attributes:
        tokenizer: the video tokenizer.
        transformer: the transformer.
        height, width: pixels of a frame.
        fps: frames a second of the training clips.
        guidance: default guidance, as `GuidanceSchedule.parse` reads it.
        temperature: default sampling temperature.
    """

    tokenizer: TokenizerConfig
    transformer: TransformerConfig
    height: int
    width: int
    fps: int = 8
    guidance: str = "constant:3"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        grid = self.tokenizer.latent_size(self.height, self.width)
        finest = self.transformer.sizes[-1]
        _require(finest == grid, "transformer.sizes", f"must end with {grid}, got {finest}")
        ours, theirs = self.transformer.latent_dim, self.tokenizer.latent_dim
        _require(ours == theirs, "transformer.latent_dim", f"tokenizer has {theirs}, got {ours}")
        _require(1 <= self.fps <= _MOST_FPS, "fps", f"1 to {_MOST_FPS}, got {self.fps}")
        GuidanceSchedule.parse(self.guidance)
        moderate("temperature", self.temperature)

    @property
    def num_frames(self) -> int:
        """Pixel frames of a clip of the trained length."""
        return 1 + (self.transformer.max_frames - 1) * self.tokenizer.temporal_compression

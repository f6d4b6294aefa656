"""The named presets: the shipped demo model and the published sizes; files in their place."""

from dataclasses import replace
from difflib import get_close_matches
from os import PathLike, fspath

from videoar.runtime.config import ModelConfig, TokenizerConfig, TransformerConfig
from videoar.runtime.schedule import default_sizes

# Small enough to train on two cores: patches of 2, time only where maps are 8x8 and below.
DIGITS_TOKENIZER = TokenizerConfig(
    latent_dim=32,
    channels=32,
    multipliers=(1, 2, 4, 4),
    encoder_blocks=(1, 1, 2, 1),
    decoder_blocks=(1, 2, 2, 1),
    norm_groups=16,
    temporal_levels=(1, 2),
    block_kernel_time=((1, 1), (1, 1), (3, 1), (3, 1)),
    mid_kernel_time=(3, 1),
    resample_kernel_time=(1, 3, 3),
    io_kernel_time=1,
    patch_size=2,
    latent_scale=1.5,
)

# Real footage of the same size takes four times the tokens and half as many bits again.
FOOTAGE_TOKENIZER = TokenizerConfig(
    latent_dim=48,
    channels=32,
    multipliers=(1, 2, 4),
    encoder_blocks=(1, 2, 2),
    decoder_blocks=(2, 2, 2),
    norm_groups=16,
    temporal_levels=(0, 1),
    block_kernel_time=((1, 1), (3, 1), (3, 3)),
    mid_kernel_time=(3, 1),
    resample_kernel_time=(3, 3),
    io_kernel_time=1,
    patch_size=2,
    latent_scale=3.0,
)

DIGITS_TRANSFORMER = TransformerConfig(
    layers=8,
    width=256,
    heads=4,
    kv_heads=4,
    head_dim=64,
    mlp_width=704,
    latent_dim=32,
    sizes=default_sizes(4, 4),
    max_frames=5,
    condition="text",
    vocab_size=48,
    max_text=12,
    rope_theta=10.0,
    rope_sections=(8, 12, 12),
)


def axis_sections(head_dim: int) -> tuple[int, int, int]:
    """Rotary pairs of time, height and width: about a quarter and three eighths each."""
    pairs = head_dim // 2
    side = 3 * pairs // 8
    return pairs - 2 * side, side, side


def _published(
    layers: int, width: int, heads: int, mlp_width: int, grid: tuple[int, int], **changes: object
) -> TransformerConfig:
    """Sizes of arXiv 2601.05966; what is not published is this project's choice (d = 48)."""
    head_dim = width // heads
    defaults = {
        "kv_heads": heads,
        "latent_dim": 48,
        "max_frames": 5,
        "condition": "class",
        "vocab_size": 101,
        "sizes": default_sizes(*grid),
        "rope_sections": axis_sections(head_dim),
        "rope_theta": 100.0,
    }
    return TransformerConfig(
        layers=layers,
        width=width,
        heads=heads,
        head_dim=head_dim,
        mlp_width=mlp_width,
        **(defaults | changes),
    )


UCF101_GUIDANCE = "ucf101:1:5:10"
TEXT_TO_VIDEO_GUIDANCE = "falling:5:3"

PRESETS = {
    "digits": ModelConfig(
        tokenizer=DIGITS_TOKENIZER,
        transformer=DIGITS_TRANSFORMER,
        height=64,
        width=64,
        guidance="constant:4",
        temperature=0.5,
    ),
    "footage": ModelConfig(
        tokenizer=FOOTAGE_TOKENIZER,
        transformer=replace(
            DIGITS_TRANSFORMER,
            latent_dim=48,
            sizes=default_sizes(8, 8),
            condition="class",
            vocab_size=16,
            max_text=1,
        ),
        height=64,
        width=64,
        fps=12,
        guidance="constant:4",
    ),
    "videoar-l": ModelConfig(
        tokenizer=TokenizerConfig(),
        transformer=_published(24, 1536, 12, 6272, (8, 8)),
        height=128,
        width=128,
        guidance=UCF101_GUIDANCE,
    ),
    "videoar-xl": ModelConfig(
        tokenizer=TokenizerConfig(),
        transformer=_published(32, 2048, 16, 7424, (8, 8)),
        height=128,
        width=128,
        guidance=UCF101_GUIDANCE,
    ),
    "videoar-4b": ModelConfig(
        tokenizer=TokenizerConfig(),
        transformer=_published(
            36,
            2560,
            32,
            11008,
            (24, 42),
            condition="text",
            vocab_size=32000,
            max_text=256,
            max_frames=17,
        ),
        height=384,
        width=672,
        fps=16,
        guidance=TEXT_TO_VIDEO_GUIDANCE,
    ),
}


def preset(name: str | PathLike[str]) -> ModelConfig:
    """The preset of that name, or the model that a file describes (`model_file.py`).

    Args:
        name: of a preset, or a path that ends with ".toml".

    Raises:
        ValueError: there is none; names those there are and the closest one. Or the file is
            missing, broken or of no model.
        CheckpointError: the text tokenizer that the file names cannot be read.
    """
    if is_model_file(name):
        from videoar.runtime.model_file import read_model_file

        return read_model_file(fspath(name)).config
    return plain_preset(name)


def is_model_file(name: str | PathLike[str]) -> bool:
    """Whether `preset` takes this for the path of a file."""
    return fspath(name).endswith(".toml")


def plain_preset(name: str, field: str = "preset") -> ModelConfig:
    """The preset of that name; ValueError, beginning with `field`, if there is none."""
    if name not in PRESETS:
        close = get_close_matches(str(name), PRESETS, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{field}: no {name!r}, there are {', '.join(PRESETS)}{hint}")
    return PRESETS[name]

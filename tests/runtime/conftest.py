"""A whole model that is small enough to run in every test."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from videoar.runtime.config import ModelConfig, TokenizerConfig, TransformerConfig
from videoar.runtime.model_folder import save_model
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.schedule import default_sizes
from videoar.runtime.transformer import Transformer
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training.train_transformer import digits_text_tokenizer

TINY_TOKENIZER = TokenizerConfig(
    latent_dim=8,
    channels=8,
    multipliers=(1, 1, 1),
    encoder_blocks=(1, 1, 1),
    decoder_blocks=(1, 1, 1),
    norm_groups=4,
    temporal_levels=(0, 1),
    block_kernel_time=((1, 1), (1, 1), (3, 1)),
    mid_kernel_time=(3, 1),
    resample_kernel_time=(3, 3),
    io_kernel_time=1,
    patch_size=2,
    latent_scale=1.5,
)

TINY_TRANSFORMER = TransformerConfig(
    layers=2,
    width=32,
    heads=2,
    kv_heads=1,
    head_dim=16,
    mlp_width=48,
    latent_dim=8,
    sizes=default_sizes(2, 2),
    max_frames=5,
    condition="text",
    vocab_size=48,
    max_text=12,
    rope_sections=(2, 3, 3),
)

# 17 frames of 16x16 pixels in 10 steps.
TINY = ModelConfig(tokenizer=TINY_TOKENIZER, transformer=TINY_TRANSFORMER, height=16, width=16)


def tiny_model(config: ModelConfig = TINY) -> VideoAR:
    """Random weights, the same in every call, with pixels far from grey."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        transformer = Transformer(config.transformer)
        transformer.init_weights(std=0.3)
        tokenizer = VideoTokenizer(config.tokenizer)
        tokenizer.decoder.conv_out.conv.weight.mul_(4)
    text = digits_text_tokenizer() if config.transformer.condition == "text" else None
    return VideoAR(config, transformer, tokenizer, text)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny text-conditional model as a checkpoint folder; not to be changed."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, tiny_model())
    return folder


@pytest.fixture(scope="session")
def tiny_class_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for 5 classes."""
    changes = {"condition": "class", "vocab_size": 5, "max_text": 1}
    config = replace(TINY, transformer=replace(TINY_TRANSFORMER, **changes))
    folder = tmp_path_factory.mktemp("models") / "tiny-class"
    save_model(folder, tiny_model(config))
    return folder

"""The two networks of a configuration, without a checkpoint: random weights, or sizes only."""

import torch

from videoar.runtime.config import ModelConfig, TransformerConfig
from videoar.runtime.memory import check_fits
from videoar.runtime.transformer import Transformer
from videoar.runtime.video_tokenizer import VideoTokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def checked_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """One that networks can have, by its name or as torch's own.

    Raises:
        ValueError: another one.
    """
    if dtype in DTYPES.values():
        return dtype
    if dtype not in tuple(DTYPES):
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES[dtype]


def checked_device(device: str | torch.device) -> torch.device:
    """One that networks can run on: the CPU, or a GPU by its number, without one the current.

    Raises:
        ValueError: another kind of device, or one that is not there.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: expected cpu or cuda, got {device!r}") from error
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type != "cuda":
        raise ValueError(f"device: expected cpu or cuda, got {device!r}")
    if not torch.cuda.is_available():
        raise ValueError(f"device: {found}, but torch {torch.__version__} sees no GPU here")
    if found.index is not None and found.index >= torch.cuda.device_count():
        raise ValueError(f"device: {found}, but there are {torch.cuda.device_count()}")
    return found if found.index is not None else torch.device("cuda", torch.cuda.current_device())


def random_modules(
    config: ModelConfig, dtype: torch.dtype, device: torch.device | str, seed: int
) -> tuple[Transformer, VideoTokenizer]:
    """Both networks with random weights, the same for the same seed on one kind of device.

    Raises:
        CapacityError: they do not fit into the device's memory.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer, tokenizer = _empty_modules(config, dtype, device)
        transformer.init_weights()
        _fill_tokenizer(tokenizer)
    return transformer, tokenizer


def _empty_modules(
    config: ModelConfig, dtype: torch.dtype, device: torch.device | str
) -> tuple[Transformer, VideoTokenizer]:
    """Both networks on `device` with storage but without values."""
    with torch.device("meta"):
        transformer = Transformer(config.transformer).to(dtype)
        tokenizer = VideoTokenizer(config.tokenizer).to(dtype)
    check_fits("the weights", _num_bytes(transformer) + _num_bytes(tokenizer), device)
    return transformer.to_empty(device=device), tokenizer.to_empty(device=device)


def _num_bytes(module: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


@torch.no_grad()
def _fill_tokenizer(tokenizer: VideoTokenizer) -> None:
    """Random weights that keep activations of the order of one."""
    for name, parameter in tokenizer.named_parameters():
        if parameter.dim() > 1:
            fan_in = parameter[0].numel()
            parameter.normal_(std=fan_in**-0.5)
        else:
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)


def describe(config: TransformerConfig) -> dict[str, int]:
    """Sizes of a transformer that need no weights: parameters, steps and tokens of a clip."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Transformer(config).parameters())
    return {
        "parameters": parameters,
        "steps": config.max_frames * len(config.sizes),
        "video_tokens": config.max_frames * config.tokens_per_frame,
    }

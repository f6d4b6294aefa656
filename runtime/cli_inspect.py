"""`videoar inspect`: what a model is and what a video costs, known without its weights."""

from argparse import Namespace
from typing import Any

import torch

from videoar.runtime.cache import CacheLayout
from videoar.runtime.cli_cost import cost_facts, cost_lines, device_limits
from videoar.runtime.cli_cost_training import training_dtype, training_facts, training_lines
from videoar.runtime.cli_models import check_device, model_config, print_json
from videoar.runtime.config import ModelConfig
from videoar.runtime.guidance import GuidanceSchedule
from videoar.runtime.limits import KNOWN
from videoar.runtime.memory import total_bytes
from videoar.runtime.modules import DTYPES, describe
from videoar.runtime.plan import parameter_counts


def run(args: Namespace) -> None:
    """Print the facts of one model, or with `--cost` its cost card, `--train` that of training.

    Raises:
        ValueError: a bad argument.
        CheckpointError: the model's configuration cannot be read.
    """
    if args.device not in KNOWN:
        check_device(args.device)
    if args.train and not args.cost:
        raise ValueError("--train: needs --cost")
    config = model_config(args)
    name = args.model if args.preset is None else args.preset
    dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    lines = _lines
    if args.train:
        kind = DTYPES[args.dtype] if args.dtype else training_dtype(args.device)
        facts = {"model": name, **training_facts(args, config, device_limits(args, kind))}
        lines = training_lines
    elif args.cost:
        lines = cost_lines
        facts = {"model": name, **cost_facts(args, config, DTYPES[dtype])}
    else:
        facts = _model_facts(args, config, name, dtype)
    if args.json:
        print_json(facts)
    else:
        print("\n".join(lines(facts)))


def _model_facts(args: Namespace, config: ModelConfig, name: str, dtype: str) -> dict[str, Any]:
    num_frames = config.num_frames if args.num_frames is None else args.num_frames
    known = KNOWN.get(args.device)
    return {
        "model": name,
        "transformer": _transformer_facts(config),
        "tokenizer": _tokenizer_facts(config),
        "clip": clip_facts(config, num_frames),
        "memory": {
            **memory_facts(config, args.slots, DTYPES[dtype]),
            "dtype": dtype,
            "device": args.device,
            "device_bytes": total_bytes(args.device) if known is None else known.memory,
        },
    }


def clip_facts(config: ModelConfig, num_frames: int) -> dict[str, Any]:
    """Sizes of one video and the work of making it.

    Raises:
        ValueError: `num_frames` is not 1 + tau n.
    """
    latent_frames = config.tokenizer.latent_frames(num_frames)
    transformer = config.transformer
    tokens = latent_frames * transformer.tokens_per_frame
    pixels = num_frames * config.height * config.width
    return {
        "num_frames": num_frames,
        "height": config.height,
        "width": config.width,
        "fps": config.fps,
        "latent_frames": latent_frames,
        "scales": [list(size) for size in transformer.sizes],
        "steps": latent_frames * len(transformer.sizes),
        "tokens": tokens,
        "bits_per_pixel": tokens * transformer.latent_dim / pixels,
        "guidance": config.guidance,
        "temperature": config.temperature,
    }


def memory_facts(config: ModelConfig, slots: int, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of weights and cache for `slots` videos at once.

    With guidance every slot has two rows in the cache, with the prompt and without.
    """
    rows = slots if GuidanceSchedule.parse(config.guidance).is_one() else 2 * slots
    layout = CacheLayout.of(config.transformer)
    parameters = sum(parameter_counts(config).values())
    return {
        "slots": slots,
        "rows": rows,
        "weight_bytes": parameters * dtype.itemsize,
        "cache_bytes": layout.num_bytes(config.transformer, rows, dtype),
    }


def _transformer_facts(config: ModelConfig) -> dict[str, Any]:
    transformer = config.transformer
    names = ("layers", "width", "heads", "kv_heads", "head_dim", "condition", "vocab_size")
    sizes = {name: getattr(transformer, name) for name in names}
    return {"parameters": describe(transformer)["parameters"], **sizes}


def _tokenizer_facts(config: ModelConfig) -> dict[str, int]:
    tokenizer = config.tokenizer
    return {
        "parameters": parameter_counts(config)["tokenizer"],
        "latent_dim": tokenizer.latent_dim,
        "spatial_compression": tokenizer.spatial_compression,
        "temporal_compression": tokenizer.temporal_compression,
    }


def _lines(facts: dict[str, Any]) -> list[str]:
    transformer, tokenizer = facts["transformer"], facts["tokenizer"]
    clip, memory = facts["clip"], facts["memory"]
    space, tau = tokenizer["spatial_compression"], tokenizer["temporal_compression"]
    scales = " ".join(f"{height}x{width}" for height, width in clip["scales"])
    rows = [
        ("model", facts["model"]),
        (
            "transformer",
            f"{_millions(transformer['parameters'])} parameters, {transformer['layers']} layers, "
            f"width {transformer['width']}, {transformer['heads']} heads "
            f"({transformer['kv_heads']} for keys and values)",
        ),
        (
            "tokenizer",
            f"{_millions(tokenizer['parameters'])} parameters, {space}x{space} pixels of "
            f"{tau} frames a cell, {tokenizer['latent_dim']} bits a token",
        ),
        (
            "clip",
            f"{clip['num_frames']} frames of {clip['width']}x{clip['height']}, {clip['fps']} "
            f"a second, {clip['bits_per_pixel']:.4f} bits a pixel",
        ),
        (
            "decoding",
            f"{clip['steps']} steps ({clip['latent_frames']} latent frames, "
            f"{len(clip['scales'])} scales), {clip['tokens']:,} tokens",
        ),
        ("scales", f"{scales} (height x width)"),
        ("sampling", f"guidance {clip['guidance']}, temperature {clip['temperature']:g}"),
        ("weights", f"{_mebibytes(memory['weight_bytes'])} as {memory['dtype']}"),
        (
            "cache",
            f"{_mebibytes(memory['cache_bytes'])} for {memory['slots']} at once "
            f"({memory['rows']} rows)",
        ),
        (memory["device"], f"{_mebibytes(memory['device_bytes'])} in all"),
    ]
    return [f"{name:<12} {text}" for name, text in rows]


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"

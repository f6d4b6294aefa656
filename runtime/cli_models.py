"""What several commands share: the model that the arguments name, and output as JSON."""

import json
from argparse import Namespace
from typing import Any

import torch
from tokenizers import Tokenizer

from videoar.runtime.config import ModelConfig
from videoar.runtime.model_folder import (
    preset_text_tokenizer,
    read_model_config,
    read_text_tokenizer,
    resolve_folder,
)
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.presets import preset


def model_config(args: Namespace) -> ModelConfig:
    """The configuration that `--preset` or `--model` names; no weights are read.

    Raises:
        ValueError: no such preset.
        CheckpointError: no such folder, or one with a broken configuration.
    """
    if getattr(args, "preset", None) is not None:
        return preset(args.preset)
    return read_model_config(resolve_folder(args.model))


def load_model(args: Namespace) -> VideoAR:
    """The model that `--preset` or `--model` names, as `--dtype` on `--device`.

    Raises:
        ValueError: no such preset.
        CheckpointError: a folder that cannot be loaded.
    """
    if getattr(args, "preset", None) is not None:
        return VideoAR.preset(args.preset, dtype=args.dtype, device=args.device)
    return VideoAR.from_pretrained(args.model, dtype=args.dtype, device=args.device)


def text_tokenizer(args: Namespace, config: ModelConfig) -> Tokenizer | None:
    """The text tokenizer that `load_model` will give the model; no weights are read.

    Raises:
        CheckpointError: the folder's is missing or broken.
    """
    if getattr(args, "preset", None) is not None:
        return preset_text_tokenizer(args.preset, config)
    if config.transformer.condition != "text":
        return None
    return read_text_tokenizer(resolve_folder(args.model), config.transformer)


def use_compute(args: Namespace) -> None:
    """Check `--device` and set `--threads`.

    Raises:
        ValueError: the device is not there.
    """
    check_device(args.device)
    if args.threads is not None:
        torch.set_num_threads(args.threads)


def check_device(device: str) -> None:
    """ValueError for "cuda" where there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: torch sees no CUDA device; nearest: cpu")


def print_json(document: dict[str, Any]) -> None:
    """One JSON object on stdout, strict: no NaN or Infinity."""
    print(json.dumps(document, indent=2, allow_nan=False))

"""The cost card of `videoar inspect --cost --train`: memory and least time of a training step."""

from argparse import Namespace
from dataclasses import asdict
from typing import Any

import torch

from videoar.runtime.cli_cost import digits
from videoar.runtime.config import ModelConfig
from videoar.runtime.cost import Limits
from videoar.runtime.cost_tokenizer import tokenizer_memory, tokenizer_step
from videoar.runtime.cost_training import (
    PartCost,
    TrainingMemory,
    TrainingWork,
    transformer_memory,
    transformer_step,
)
from videoar.runtime.modules import DTYPES
from videoar.runtime.plan import parameter_counts

PARTS = ("transformer", "tokenizer")


def training_memory(config: ModelConfig, part: str, work: TrainingWork) -> TrainingMemory:
    """Memory of a step of one of `PARTS`."""
    parameters = parameter_counts(config)[part]
    if part == "transformer":
        return transformer_memory(config.transformer, parameters, work)
    return tokenizer_memory(config.tokenizer, config.height, config.width, parameters, work)


def training_step(config: ModelConfig, part: str, work: TrainingWork) -> list[PartCost]:
    """What a step of one of `PARTS` computes and moves."""
    parameters = parameter_counts(config)[part]
    if part == "transformer":
        return transformer_step(config.transformer, parameters, work)
    return tokenizer_step(config.tokenizer, config.height, config.width, parameters, work)


def training_dtype(device: str) -> torch.dtype:
    """What `videoar train` multiplies in: bfloat16 where the processor has it, else float32."""
    fast = device != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def training_facts(args: Namespace, config: ModelConfig, limits: Limits) -> dict[str, Any]:
    """Everything on the card, of both networks by themselves.

    Raises:
        ValueError: a setting out of range.
    """
    transformer = config.transformer
    num_frames = config.num_frames if args.num_frames is None else args.num_frames
    text = transformer.max_text if args.max_text is None else args.max_text
    if text > transformer.max_text:
        raise ValueError(f"max_text: expected 1 .. {transformer.max_text}, got {text}")
    itemsize = DTYPES[args.dtype].itemsize if args.dtype else training_dtype(args.device).itemsize
    works = {
        part: TrainingWork(
            batch=args.batch,
            latent_frames=config.tokenizer.latent_frames(num_frames),
            text=text,
            checkpointing=args.checkpointing and part == "transformer",
            processes=args.processes,
            itemsize=itemsize,
        )
        for part in PARTS
    }
    return {
        "limits": asdict(limits),
        "settings": {
            "batch": args.batch,
            "processes": args.processes,
            "checkpointing": args.checkpointing,
            "num_frames": num_frames,
            "max_text": text,
            "dtype": "bfloat16" if itemsize == 2 else "float32",
        },
        **{part: _part_facts(config, part, work, limits) for part, work in works.items()},
    }


def _part_facts(
    config: ModelConfig, part: str, work: TrainingWork, limits: Limits
) -> dict[str, Any]:
    memory = training_memory(config, part, work)
    costs = training_step(config, part, work)
    return {
        "parameters": parameter_counts(config)[part],
        "memory": {**memory.parts(), "state": memory.state, "peak": memory.peak},
        "fits": memory.peak <= limits.memory,
        "step": {cost.name: _cost_facts(cost, limits) for cost in costs},
        "seconds": sum(cost.seconds(limits) for cost in costs),
        "flops": sum(cost.flops for cost in costs),
        "num_bytes": sum(cost.num_bytes for cost in costs),
    }


def _cost_facts(cost: PartCost, limits: Limits) -> dict[str, float]:
    return {"flops": cost.flops, "num_bytes": cost.num_bytes, "seconds": cost.seconds(limits)}


def training_lines(facts: dict[str, Any]) -> list[str]:
    """The card as text."""
    limits, settings = facts["limits"], facts["settings"]
    count, batch = settings["processes"], settings["batch"]
    shared = f", state shared by {count} processes" if count > 1 else ""
    checkpointed = ", layers of the transformer checkpointed" if settings["checkpointing"] else ""
    text = settings["max_text"]
    lines = [
        f"training {facts['model']} on {limits['name']}, float32 weights, {settings['dtype']} "
        "products",
        f"  limits     {limits['bandwidth'] / 1e9:,.1f} GB/s, {limits['rate'] / 1e12:,.3f} TFLOP/s "
        f"({limits['source']})",
        f"  work       {batch} clip{'s' * (batch > 1)} of {settings['num_frames']} frames a step "
        f"and process, {text} text token{'s' * (text > 1)}{checkpointed}{shared}",
    ]
    for part in PARTS:
        lines += ["", *_part_lines(part, facts[part], limits["memory"])]
    return lines


def _part_lines(part: str, facts: dict[str, Any], memory: int) -> list[str]:
    rows = [
        f"  {name:<18}{digits(size / 2**20):>12}" for name, size in facts["memory"].items() if size
    ]
    share = 100 * facts["memory"]["peak"] / memory
    rows[-1] += f"   {share:.1f} % of {memory / 2**20:,.0f}: "
    rows[-1] += "fits" if facts["fits"] else "does not fit"
    total = {name: facts[name] for name in ("flops", "num_bytes", "seconds")}
    steps = [
        f"  {name:<18}{digits(cost['flops'] / 1e9):>12}{digits(cost['num_bytes'] / 1e6):>12}"
        f"{digits(1e3 * cost['seconds']):>12}"
        for name, cost in {**facts["step"], "total": total}.items()
    ]
    return [
        f"{part + ', memory':<20}{'MiB':>12}",
        *rows,
        f"{part + ', a step':<20}{'GFLOP':>12}{'MB':>12}{'limit ms':>12}",
        *steps,
    ]

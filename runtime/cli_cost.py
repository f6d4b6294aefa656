"""The cost card of `videoar inspect --cost`: memory plan, FLOPs, bytes and least times."""

import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import groupby
from operator import attrgetter
from typing import Any

import torch

from videoar.runtime.config import ModelConfig
from videoar.runtime.cost import Limits, StepCost, Work, clip_steps, prefill_cost
from videoar.runtime.cost_decoder import decoder_levels
from videoar.runtime.guidance import GuidanceSchedule
from videoar.runtime.limits import KNOWN, known_limits, measure_limits
from videoar.runtime.memory import total_bytes
from videoar.runtime.plan import EngineSettings, MemoryPlan, largest_fit

_MOST_FRAMES = 100_001


def cost_facts(args: Namespace, config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Everything on the card.

    Raises:
        ValueError: a setting out of range, or a device without known limits of this dtype.
    """
    settings = EngineSettings(
        config=config,
        slots=args.slots,
        window=args.window,
        max_text=args.max_text,
        dtype=dtype,
        device="cpu" if args.device == "cpu" else "cuda",
    )
    num_frames = config.num_frames if args.num_frames is None else args.num_frames
    latent_frames = config.tokenizer.latent_frames(num_frames)
    if num_frames > _MOST_FRAMES:
        raise ValueError(
            f"num_frames: the card lists every step of at most {_MOST_FRAMES:,}, got {num_frames:,}"
        )
    limits = device_limits(args, dtype)
    work = Work(
        requests=settings.together,
        sequences=1 if GuidanceSchedule.parse(config.guidance).is_one() else 2,
        text=settings.layout.max_text,
        window=settings.layout.ring_frames - 1,
        itemsize=dtype.itemsize,
    )
    return {
        "limits": asdict(limits),
        "settings": {
            "slots": settings.slots,
            "together": settings.together,
            "sequences": work.sequences,
            "window": work.window,
            "max_text": work.text,
            "num_frames": num_frames,
            "dtype": str(dtype)[6:],
        },
        "plan": _plan_facts(settings, limits.memory),
        **_clip_facts(settings, work, latent_frames, limits),
    }


def device_limits(args: Namespace, dtype: torch.dtype) -> Limits:
    """Those given on the command line; what is not given is known or measured."""
    given = {}
    if args.bandwidth is not None:
        given["bandwidth"] = args.bandwidth * 1e9
    if args.flops is not None:
        given["rate"] = args.flops * 1e12
    if len(given) == 2:
        known = KNOWN.get(args.device)
        name = args.device if known is None else known.name
        memory = total_bytes(args.device) if known is None else known.memory
        return Limits(name=name, source="as given", memory=memory, **given)
    if args.device in KNOWN:
        limits = known_limits(args.device, dtype)
    else:
        limits = measure_limits(args.device, dtype)
    names = {"bandwidth": "bandwidth", "rate": "FLOPs"}
    source = "".join(f", {names[name]} as given" for name in given)
    return replace(limits, source=limits.source + source, **given)


def _plan_facts(settings: EngineSettings, memory: int) -> dict[str, Any]:
    plan = MemoryPlan.of(settings)
    fits = plan.total <= memory
    hint = "fits" if fits else largest_fit(settings, memory, loaded=False)
    return {**plan.parts(), "total": plan.total, "fits": fits, "hint": hint}


def _clip_facts(
    settings: EngineSettings, work: Work, latent_frames: int, limits: Limits
) -> dict[str, Any]:
    config = settings.config
    text = prefill_cost(config.transformer, work)
    steps = clip_steps(config.transformer, work, latent_frames)
    levels = decoder_levels(
        config.tokenizer,
        config.transformer.sizes[-1],
        latent_frames,
        limits,
        itemsize=work.itemsize,
        requests=work.requests,
    )
    # What comes with a last batch of fewer slots is left out, so this stays the least time.
    batches = settings.slots / settings.together
    frames = [list(group) for _, group in groupby(steps, key=attrgetter("frame"))]
    decoder = {name: sum(getattr(x, name) for x in levels) for name in _TOTALS}
    clip = {
        "text": _total([text], limits),
        "transformer": _total(steps, limits),
        "decoder": decoder,
    }
    seconds = sum(part["seconds"] for part in clip.values())
    return {
        "steps": [_step_facts(step, limits) for step in steps],
        "frames": [_total(frame, limits) for frame in frames],
        "decoder_levels": [asdict(level) for level in levels],
        "clip": clip,
        "seconds": batches * seconds,
        "clips_per_second": settings.together / seconds,
    }


_TOTALS = ("flops", "num_bytes", "seconds", "plain_flops")


def _step_facts(step: StepCost, limits: Limits) -> dict[str, Any]:
    return {**asdict(step), "seconds": step.seconds(limits), "bound": step.bound(limits)}


def _total(steps: Sequence[StepCost], limits: Limits) -> dict[str, float]:
    return {
        "flops": sum(step.flops for step in steps),
        "num_bytes": sum(step.num_bytes for step in steps),
        "seconds": sum(step.seconds(limits) for step in steps),
    }


def cost_lines(facts: dict[str, Any]) -> list[str]:
    """The card as text."""
    limits, settings = facts["limits"], facts["settings"]
    one = settings["slots"] == 1
    sequences = "with and without its condition" if settings["sequences"] == 2 else "unguided"
    together = settings["together"]
    turns = "" if settings["slots"] == together else f", {together} at a time"
    return [
        f"{facts['model']} on {limits['name']}, {settings['dtype']}",
        f"  limits     {limits['bandwidth'] / 1e9:,.1f} GB/s, {limits['rate'] / 1e12:,.3f} TFLOP/s "
        f"({limits['source']})",
        f"  work       {settings['num_frames']} frames, {settings['slots']} "
        f"slot{'s' * (not one)}{turns}, each {sequences}, "
        f"window of {settings['window']} latent frames",
        "",
        *_memory_lines(facts["plan"], limits["memory"]),
        "",
        *_frame_lines(facts),
        "",
        *_decoder_lines(facts["decoder_levels"]),
        "",
        *_clip_lines(facts),
    ]


def _memory_lines(plan: dict[str, Any], memory: int) -> list[str]:
    names = [name for name in plan if name not in ("fits", "hint")]
    lines = [f"  {name.replace('_', ' '):<18}{digits(plan[name] / 2**20):>12}" for name in names]
    share = 100 * plan["total"] / memory
    lines[-1] += f"   {share:.1f} % of {memory / 2**20:,.0f}: {plan['hint']}"
    return [f"{'memory':<20}{'MiB':>12}", *lines]


_LINE = "  {:<12}{:>9}{:>9}{:>13}{:>13}{:>13}{:>11}{}"


def _frame_lines(facts: dict[str, Any]) -> list[str]:
    last = facts["steps"][-1]["frame"]
    heads = ("scale", "rows", "keys", "GFLOP", "weights MB", "cache MB", "limit ms", "  bound by")
    rows = [
        _LINE.format(
            "x".join(map(str, step["grid"])),
            f"{step['rows']:,}",
            f"{step['keys']:,}",
            digits((step["gemm_flops"] + step["attention_flops"]) / 1e9),
            digits(step["weight_bytes"] / 1e6),
            digits((step["cache_read_bytes"] + step["cache_write_bytes"]) / 1e6),
            digits(1e3 * step["seconds"]),
            f"  {step['bound']}",
        )
        for step in facts["steps"]
        if step["frame"] == last
    ]
    return [f"transformer, latent frame {last + 1}", _LINE.format(*heads), *rows]


def _decoder_lines(levels: Sequence[dict[str, Any]]) -> list[str]:
    heads = ("level", "channels", "map", "plain GFLOP", "GFLOP", "MB", "limit ms", "")
    rows = [
        _LINE.format(
            level["level"],
            f"{level['channels']:,}",
            "x".join(map(str, level["grid"])),
            *(digits(level[name] / 1e9) for name in ("plain_flops", "flops")),
            digits(level["num_bytes"] / 1e6),
            digits(1e3 * level["seconds"]),
            "",
        )
        for level in levels
    ]
    title = "decoder, whole clip, upsamples folded into their convolutions"
    return [title, _LINE.format(*heads), *rows]


def _clip_lines(facts: dict[str, Any]) -> list[str]:
    clip, together = facts["clip"], facts["settings"]["together"]
    passes = {"text": 1, "transformer": len(facts["steps"]), "decoder": len(facts["frames"])}
    names = ("flops", "num_bytes", "seconds")
    parts = {**clip, "total": {name: sum(part[name] for part in clip.values()) for name in names}}
    rows = [
        _LINE.format(
            name,
            passes.get(name, ""),
            "",
            "",
            digits(part["flops"] / 1e9),
            digits(part["num_bytes"] / 1e6),
            digits(1e3 * part["seconds"]),
            "",
        )
        for name, part in parts.items()
    ]
    rate = facts["clips_per_second"]
    frames = facts["settings"]["num_frames"] * rate
    rows[-1] += f"  at most {digits(rate)} clips/s, {digits(frames)} frames/s"
    title = "clip" if together == 1 else f"{together} clips"
    return [title, _LINE.format("", "passes", "", "", "GFLOP", "MB", "limit ms", ""), *rows]


def digits(value: float) -> str:
    """A number with three digits that count, and all of those in front of the point."""
    if value <= 0:
        return "0"
    return f"{value:,.{min(4, max(0, 2 - math.floor(math.log10(value))))}f}"

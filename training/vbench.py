"""Clips for VBench (arXiv 2311.17982): one flat folder of `<prompt>-<index>.mp4`.

VBench looks its standard prompts' clips up by these exact names, index 0 to 4, and takes every
file in the folder for a clip; so nothing else is put there, and a prompt is used as it is. In its
custom mode it reads a prompt out of the name again, up to the last `-<digits>`. A prompt that no
file name can hold (a slash, or more than 255 bytes) gets a name made from it, and VBench must be
told the prompt: `<folder>-prompts.json`, beside the folder, maps every clip's path to its prompt,
as `--mode custom_input --prompt_file` wants it.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from tqdm import tqdm

from videoar.runtime.aside import written_aside
from videoar.runtime.errors import MediaError
from videoar.runtime.media import write_video
from videoar.runtime.pipeline import VideoAR
from videoar.training.eval_clips import check_prompts
from videoar.training.labels import numbered_lines

SAMPLES = 5
_LONGEST_NAME = 255
_SUFFIX = ".mp4"


def read_prompts(path: str | Path) -> list[str]:
    """The different prompts of a text file, one a line, without white space around them.

    Raises:
        ValueError: no such file, no text, or no prompt in it.
    """
    try:
        prompts = [line for _, line in numbered_lines(Path(path))]
    except ValueError as error:
        raise ValueError(f"prompts: {error}") from error
    if not prompts:
        raise ValueError(f"prompts: {path}: holds none")
    return list(dict.fromkeys(prompts))


def clip_name(prompt: str, index: int) -> str:
    """The file name of a prompt's clip: exactly `<prompt>-<index>.mp4` where that can be one."""
    ending = f"-{index}{_SUFFIX}"
    plain = prompt + ending
    usable = not re.search(r"[/\x00-\x1f]", prompt) and not prompt.startswith(".")
    if usable and len(plain.encode()) <= _LONGEST_NAME:
        return plain
    # Two prompts that are cut to the same beginning differ in this.
    ending = f" {crc32(prompt.encode()):08x}{ending}"
    kept = re.sub(r"[/\x00-\x1f]", "_", prompt).lstrip(".").encode()
    return kept[: _LONGEST_NAME - len(ending)].decode(errors="ignore") + ending


def clip_seed(seed: int, prompt: str, index: int) -> int:
    """The seed of one clip: a function of the prompt's text, not of its place in the file."""
    (word,) = np.random.SeedSequence([seed, crc32(prompt.encode()), index]).generate_state(1)
    return int(word)


def export_vbench(
    model: VideoAR,
    prompts: Sequence[str],
    folder: str | Path,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    batch: int = 8,
    **options: Any,
) -> dict[str, Any]:
    """Generate `samples` clips of each prompt; files that are there already are kept.

    Args:
        folder: of the clips, made where it is missing.
        batch: clips of one call of `generate`.
        options: `num_frames`, `guidance`, `temperature` and so on for `generate`.

    Returns:
        `folder`, `prompt_file`, `made`, `kept`, and `renamed`: prompts whose clips' names are not
        the prompt, which VBench finds with the prompt file alone.

    Raises:
        ValueError: a text of another model, unknown words, or what `generate` refuses.
        MediaError: a folder that holds other files, or cannot be written.
    """
    check_prompts(model, prompts)
    if samples < 1:
        raise ValueError(f"samples: at least 1, got {samples}")
    folder = Path(folder)
    named = {
        clip_name(prompt, i): (prompt, i)
        for prompt in dict.fromkeys(prompts)
        for i in range(samples)
    }
    _prepare(folder)
    missing = [(n, *named[n]) for n in named if not (folder / n).exists()]
    for start in tqdm(range(0, len(missing), batch), desc="vbench", unit="batch", disable=None):
        part = missing[start : start + batch]
        seeds = [clip_seed(seed, prompt, index) for _, prompt, index in part]
        result = model.generate([prompt for _, prompt, _ in part], seed=seeds, **options)
        for (name, *_), frames in zip(part, result.frames, strict=True):
            write_video(folder / name, frames, result.fps)
    prompt_file = folder.with_name(f"{folder.name}-prompts.json")
    _write_json(prompt_file, {str(folder / name): prompt for name, (prompt, _) in named.items()})
    renamed = [p for p in prompts if clip_name(p, 0) != f"{p}-0{_SUFFIX}"]
    counts = {"made": len(missing), "kept": len(named) - len(missing)}
    return {"folder": str(folder), "prompt_file": str(prompt_file)} | counts | {"renamed": renamed}


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(f"{folder}: cannot be made ({error})") from error
    others = [path.name for path in folder.iterdir() if path.suffix != _SUFFIX]
    if others:
        raise MediaError(f"{folder}: VBench takes every file in it for a clip, found {others[0]}")


def _write_json(path: Path, document: dict[str, str]) -> None:
    with written_aside(path) as unfinished:
        unfinished.write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")

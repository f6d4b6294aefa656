"""The moving digits as batches: frames made when they are asked for, or latents encoded once."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from videoar.runtime.aside import written_aside
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training import digits
from videoar.training.sources import Source, encode
from videoar.training.token_cache import tokenizer_hash
from videoar.training.world import ALONE, World


class DigitFrames(Source):
    """An endless stream of clips, `digits.clip("train", seed, 0, 1, 2, ...)`.

    Args:
        frames: of a clip.
        batch: clips of a batch, all ranks together.
        seed: of the clips.
        world: the processes that share a batch.
    """

    def __init__(self, frames: int, batch: int, seed: int, world: World = ALONE) -> None:
        self.frames, self.size, self.seed = frames, batch, seed
        self.rows = world.rows(batch)

    def batch(self, step: int) -> dict[str, Any]:
        index = [step * self.size + row for row in self.rows]
        clips = [digits.clip("train", self.seed, i, self.frames) for i in index]
        frames = torch.from_numpy(np.stack([clip for clip, _, _ in clips]))
        return {"frames": frames, "captions": [caption for _, caption, _ in clips]}


class DigitLatents(Source):
    """Latents of `count` clips that are encoded once, drawn with replacement.

    Args:
        folder: where they are kept; see `cached_latents`.
        tokenizer: that encodes them.
        count: clips to draw from.
        frames, batch, seed, world: as in `DigitFrames`.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: VideoTokenizer,
        count: int,
        frames: int,
        batch: int,
        seed: int,
        world: World = ALONE,
    ) -> None:
        self.folder, self.tokenizer, self.count = folder, tokenizer, count
        self.frames, self.size, self.seed = frames, batch, seed
        self.world, self.rows = world, world.rows(batch)

    def prepare(self) -> None:
        with self.world.turns():
            self.latents = cached_latents(
                self.folder, self.tokenizer, self.seed, self.count, self.frames
            )

    def batch(self, step: int) -> dict[str, Any]:
        index = np.random.default_rng([self.seed, step]).integers(self.count, size=self.size)
        index = index[list(self.rows)]
        captions = [digits.clip("train", self.seed, int(i), self.frames)[1] for i in index]
        return {"latents": self.latents[torch.from_numpy(index)], "captions": captions}


def cached_latents(
    folder: Path, tokenizer: VideoTokenizer, seed: int, count: int, num_frames: int
) -> Tensor:
    """Encode `count` training clips once, float16 `[count,d,t,h,w]`; kept in `folder`.

    Clip i is `digits.clip("train", seed, i, num_frames)`, whose caption is made again when it is
    needed. The file's name tells the tokenizer, so one folder serves several.
    """
    name = f"latents-{tokenizer_hash(tokenizer)[:12]}-{seed}-{count}-{num_frames}.safetensors"
    path = Path(folder) / name
    if path.exists():
        return load_file(path)["latents"]
    path.parent.mkdir(parents=True, exist_ok=True)
    parts, size = [], max(1, 16 * digits.NUM_FRAMES // num_frames)
    for start in tqdm(range(0, count, size), desc="encode", unit="batch", disable=None):
        stop = min(start + size, count)
        clips = [digits.clip("train", seed, i, num_frames)[0] for i in range(start, stop)]
        parts.append(encode(tokenizer, torch.from_numpy(np.stack(clips))).cpu())
    latents = torch.cat(parts)
    with written_aside(path) as unfinished:
        save_file({"latents": latents}, unfinished)
    return latents

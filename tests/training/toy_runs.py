"""Small training runs in processes of their own, forked from one that has imported torch.

A script, for tests whose processes die or talk to each other: `toy_runs.py scale FOLDER` and
`toy_runs.py kills FOLDER` leave what the tests look at in the folder. `toy_runs.py command WORDS`
is for torchrun.
"""

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint
import torch.distributed.device_mesh
import torch.distributed.fsdp
from safetensors.torch import save_file
from torch import Tensor, nn

from videoar.kernels.bitwise_cross_entropy import bitwise_cross_entropy
from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.kernels.dispatch import use_backend
from videoar.runtime.cli import main
from videoar.runtime.config import TransformerConfig
from videoar.runtime.presets import DIGITS_TOKENIZER, DIGITS_TRANSFORMER, preset
from videoar.runtime.transformer import Transformer, teacher_forced_logits
from videoar.training import digits
from videoar.training.adversarial import GanConfig
from videoar.training.corruption import FlipConfig, draw_flips, flip_probabilities
from videoar.training.learner import Learner
from videoar.training.recipes import TokenizerStage, TokenizerTraining
from videoar.training.run import OptimConfig, Run, row_generators, train
from videoar.training.sources import Shape
from videoar.training.train_tokenizer import train_tokenizer
from videoar.training.world import World, start_world

ARCHITECTURE = TransformerConfig(
    layers=2,
    width=24,
    heads=3,
    kv_heads=3,
    head_dim=8,
    mlp_width=40,
    latent_dim=5,
    sizes=((1, 1), (2, 2)),
    max_frames=2,
    condition="class",
    vocab_size=3,
    rope_sections=(1, 1, 2),
)
BATCH, STEPS = 4, 6
FLIPS = FlipConfig(p_max=0.3)
MODEL = replace(
    preset("digits"),
    tokenizer=replace(
        DIGITS_TOKENIZER, channels=8, norm_groups=4, latent_dim=8, decoder_blocks=(1,) * 4
    ),
    transformer=replace(DIGITS_TRANSFORMER, latent_dim=8, max_frames=2),
)


def forked(function: Callable[..., None], *args: Any, **variables: object) -> int:
    """Run a function in a child process; its number. It ends with 1 where the function raises."""
    child = os.fork()
    if child:
        return child
    try:
        os.environ.update({name: str(value) for name, value in variables.items()})
        function(*args)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def ended(child: int) -> int:
    """Wait for a child; how it ended, minus the signal where one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def started(size: int, function: Callable[..., None], *args: Any) -> list[int]:
    """Children that run `function(world, *args)` on ranks of a world, as torchrun starts them."""

    def one() -> None:
        with start_world("cpu") as world:
            function(world, *args)

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size}
    return [forked(one, RANK=r, LOCAL_RANK=r, **shared) for r in range(size)]


def ranks(size: int, function: Callable[..., None], *args: Any) -> None:
    """Run `function(world, *args)` on ranks of a world to its end."""
    assert [ended(child) for child in started(size, function, *args)] == [0] * size, function


def transformer_loss(model: Transformer, world: World, draw: int) -> tuple[Tensor, dict[str, Any]]:
    """Teacher forcing of this rank's rows, with flips, and the bits' accuracy as a list."""
    generators = row_generators(7, draw, world.rows(BATCH))
    grid = (ARCHITECTURE.latent_dim, ARCHITECTURE.max_frames, *ARCHITECTURE.sizes[-1])
    latents = torch.stack([torch.randn(*grid, generator=g) for g in generators])
    flips = [
        draw_flips(flip_probabilities(FLIPS, 1, 2, 2, g), ARCHITECTURE.sizes, grid[0], g)
        for g in generators
    ]
    batch = bsq_quantize(latents, ARCHITECTURE.sizes, flips=torch.cat(flips), return_inputs=True)
    classes = torch.stack([torch.randint(3, (1,), generator=g) for g in generators])
    lengths = torch.ones(len(generators), dtype=torch.long)
    logits = teacher_forced_logits(model, classes, lengths, batch.inputs)
    right = (logits[..., 1::2] > logits[..., ::2]) == batch.targets
    values = {"right": right.float().mean((0, 2, 3)).tolist()}
    return bitwise_cross_entropy(logits, batch.targets), values


def fit(world: World, folder: Path, *, stop: int | None = None, bad: int | None = None) -> None:
    """A whole run with a second network beside; `stop` ends it before that step, without a word.

    Leaves the averaged weights of each rank in `folder/finished-{rank}.safetensors`.

    Args:
        bad: step at which the last rank's loss is not a number.
    """
    torch.manual_seed(0)
    model, other = Transformer(ARCHITECTURE), nn.Linear(3, 1)
    model.gradient_checkpointing = True
    optim = OptimConfig(steps=STEPS, warmup=0, learning_rate=1e-2, accumulate=2)
    others = {"other": Learner(other, optim, average=False)}
    run = Run(folder, model, optim, "toy", save_every=2, others=others, world=world)

    def loss_of(draw: int) -> tuple[Tensor, dict[str, Any]]:
        if stop is not None and draw == 2 * stop:
            os._exit(0)
        loss, values = transformer_loss(model, world, draw)
        generators = row_generators(8, draw, world.rows(BATCH))
        x = torch.stack([torch.randn(3, generator=g) for g in generators])
        broken = bad is not None and draw == 2 * bad and world.rank == world.size - 1
        loss = loss + (other(x) - x[:, :1]).square().mean() * (float("nan") if broken else 1)
        return loss, values

    train(run, loss_of, log_every=1)
    save_file(run.finish().state_dict(), folder / f"finished-{world.rank}.safetensors")


def refused(world: World, folder: Path) -> None:
    """A run whose loss is bad on one rank must stop all of them."""
    try:
        fit(world, folder, bad=4)
    except FloatingPointError as error:
        (folder / f"error-{world.rank}.txt").write_text(str(error))


def fit_tokenizer(world: World, folder: Path) -> None:
    """Both forms of a tokenizer with all that has a state of its own; leaves it in the folder."""
    gan = GanConfig(weight=0.1, adaptive=True, channels=16, layers=1)
    stages = (
        TokenizerStage(
            name="image", form="2d", steps=2, learning_rate=1e-3, shapes=(Shape(frames=1, batch=4),)
        ),
        TokenizerStage(name="clip", steps=2, learning_rate=1e-3, shapes=(Shape(batch=2),)),
    )
    config = TokenizerTraining(stages=stages, gan=gan)
    trained = train_tokenizer(folder, MODEL, config, world=world)
    if world.main:
        save_file(trained.state_dict(), folder / "finished-0.safetensors")


def one_rank_killed(folder: Path, victim: int, at: int) -> None:
    """Two ranks of which one is killed within a save; then the same run again, to its end.

    Leaves the names of the states behind the kill in `folder/left.json`.

    Args:
        at: where it is killed; see `killed_within_a_save`.
    """

    def killed(world: World) -> None:
        if world.rank == victim:
            killed_within_a_save(at)
        fit(world, folder)

    children = started(2, killed)
    assert ended(children[victim]) == -signal.SIGKILL
    # torchrun ends the others when one is gone.
    os.kill(children[1 - victim], signal.SIGKILL)
    ended(children[1 - victim])
    left = sorted(path.name for path in folder.glob("state-*"))
    (folder / "left.json").write_text(json.dumps(left))
    ranks(2, fit, folder)


# Rank and fsync of the second save at which it is killed, by what is left of the save.
RANK_KILLS = {"shard": (1, 2), "aside": (0, 5), "renamed": (0, 6)}


def scale(folder: Path) -> None:
    """Runs on one, two and four ranks, some of which begin from the others' states."""
    for size, name in ((1, "one"), (2, "two")):
        ranks(size, fit, folder / name)
        ranks(size, fit_tokenizer, folder / f"tokenizer-{name}")
    for size, name in ((1, "one"), (2, "two")):

        def stopped(world: World, name: str = name) -> None:
            fit(world, folder / f"{name}-stopped", stop=5)

        ranks(size, stopped)
    for name, size in (("one", 2), ("two", 1), ("two", 2), ("two", 4)):
        again = folder / f"{name}-then-{size}"
        shutil.copytree(folder / f"{name}-stopped", again)
        ranks(size, fit, again)
    for name, (victim, at) in RANK_KILLS.items():
        one_rank_killed(folder / f"killed-{name}", victim, at)
    ranks(2, refused, folder / "bad")


def killed_within_a_save(at: int) -> None:
    """End this process by SIGKILL instead of its `at`-th `fsync`; a save has three of them.

    They come when the shard is written aside, before the folder is renamed, and behind that.
    """
    synchronise, calls = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        synchronise(handle)

    os.fsync = fsync


def line(folder: Path, steps: int, at: int = 0) -> None:
    """A run that saves all the time; leaves `folder/finished.safetensors`.

    Args:
        at: where it is killed; see `killed_within_a_save`.
    """
    killed_within_a_save(at)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    optim = OptimConfig(steps=steps, warmup=3, learning_rate=1e-2)
    run = Run(folder, model, optim, "line", save_every=3)

    def loss_of(draw: int) -> tuple[Tensor, dict[str, float]]:
        (generator,) = row_generators(1, draw, [0])
        x = torch.randn(8, 6, generator=generator)
        return (model(x) - x[:, :2]).square().mean(), {}

    train(run, loss_of, log_every=1)
    save_file(run.finish().state_dict(), folder / "finished.safetensors")


def kills(folder: Path, count: int = 20, steps: int = 60) -> None:
    """Uninterrupted, then again and again killed and resumed until it is done.

    Half of the kills come at random moments, half at random places of a save.

    Leaves `folder/whole`, a folder for every run that was killed, and `kills.json`.
    """
    started = time.monotonic()
    assert ended(forked(line, folder / "whole", steps)) == 0
    seconds = time.monotonic() - started
    chance, runs, killed = random.Random(0), 0, []
    while len(killed) < count:
        name, finished = f"killed-{runs}", False
        while not finished:
            at = chance.randint(1, 12) if len(killed) % 2 and len(killed) < count else 0
            child = forked(line, folder / name, steps, at)
            if not at and len(killed) < count:
                time.sleep(chance.uniform(0.02, 0.4) * seconds)
                os.kill(child, signal.SIGKILL)
            status = ended(child)
            assert status in (0, -signal.SIGKILL), status
            finished = status == 0
            if not finished:
                left = sorted(path.name for path in (folder / name).glob("state-*"))
                killed.append({"run": name, "left": left})
        runs += 1
    (folder / "kills.json").write_text(json.dumps(killed))


def command(*words: str) -> None:
    """`videoar WORDS`, with every step in the log."""
    train.__defaults__ = (1,)
    sys.exit(main(words))


if __name__ == "__main__":
    torch.set_num_threads(1)
    # In float32 one process and several differ by little more than the order of their sums.
    torch.cpu._is_avx512_bf16_supported = lambda: False
    if sys.argv[1] == "command":
        command(*sys.argv[2:])
    # What takes long to load the children then have: the data, and the first optimiser's imports.
    digits.mnist()
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    with use_backend("reference"):
        {"scale": scale, "kills": kills}[sys.argv[1]](Path(sys.argv[2]))

"""Training the video tokenizer: 2D on single frames, inflated, then 3D on clips.

What happens in a step is in `tokenizer_loss.py`. The 2D form can learn continuous latents first and
quantised ones after; the inflated 3D form starts from it and is fine-tuned on whole clips, mixed
with frames.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor

from videoar.runtime.config import ModelConfig, TokenizerConfig
from videoar.runtime.errors import CheckpointError
from videoar.runtime.model_folder import load_tokenizer
from videoar.runtime.pixels import from_pixels
from videoar.runtime.schedule import Sizes
from videoar.runtime.video_tokenizer import VideoTokenizer, inflate
from videoar.training.adversarial import Adversary
from videoar.training.config_file import within
from videoar.training.perceptual import load_perceptual
from videoar.training.recipes import TokenizerStage, TokenizerTraining
from videoar.training.run import Run, train
from videoar.training.sources import Source
from videoar.training.stage_data import StageData
from videoar.training.stages import check_resumed, note_config, shape_grids, sizes_of
from videoar.training.tokenizer_loss import tokenizer_loss
from videoar.training.video_folder import VideoFolder
from videoar.training.world import ALONE, World

__all__ = ["TokenizerStage", "TokenizerTraining", "train_tokenizer"]


def check_stages(stages: Sequence[TokenizerStage], model: ModelConfig, start_3d: bool) -> None:
    """Check the stages of a run against the model, before anything is trained.

    Args:
        start_3d: whether the run starts from a 3D tokenizer.

    Raises:
        ValueError: frames or a size that it cannot compress, or a 2d stage behind a 3D start.
    """
    for number, stage in enumerate(stages):
        for _ in shape_grids(stage, number, model):
            pass
        if start_3d and stage.form == "2d":
            raise ValueError(f"stages[{number}].form: 3d is needed, start holds a 3D tokenizer")


def start_model(config: TokenizerTraining, architecture: TokenizerConfig) -> VideoTokenizer:
    """The network of a run's first step: 2D, 3D, or 2D to be inflated.

    Raises:
        CheckpointError: start holds another architecture, naming folder and field, or what
            `load_tokenizer` refuses.
    """
    torch.manual_seed(config.seed)
    flat = architecture.as_2d()
    if config.start is None:
        return VideoTokenizer(flat if config.stages[0].form == "2d" else architecture)
    with within("start"):
        model = load_tokenizer(config.start)
    if model.config not in (flat, architecture):
        names = [field.name for field in fields(TokenizerConfig)]
        other = [n for n in names if getattr(model.config, n) != getattr(architecture, n)]
        # What a 2D form has otherwise is the last thing to name.
        name = min(other, key=lambda n: getattr(model.config, n) == getattr(flat, n))
        text = f"{getattr(model.config, name)}, this run's has {getattr(architecture, name)}"
        raise CheckpointError(f"start: {config.start}: {name}: {text}")
    return model.requires_grad_(True)


def train_tokenizer(
    folder: Path,
    model_config: ModelConfig,
    config: TokenizerTraining,
    *,
    report: Callable[[VideoFolder], None] = lambda folder: None,
    world: World = ALONE,
) -> VideoTokenizer:
    """All stages, each resumable in its own folder below `folder`; returns the EMA model.

    Args:
        model_config: the whole model's, of which the tokenizer is trained; its scales, frame size,
            length and rate count where a stage leaves them open.
        report: called with each folder that was scanned.
        world: the processes that train together.

    Raises:
        ValueError, MediaError, CheckpointError: the config, the data or the model to start from
            cannot be used, or the folder's run began otherwise; before the first step.
    """
    architecture, sizes = model_config.tokenizer, model_config.transformer.sizes
    names = ("height", "width", "num_frames", "fps")
    trained = {name: getattr(model_config, name) for name in names}
    trained |= {"tokenizer": asdict(architecture), "sizes": sizes}
    check_resumed(folder, config, trained)
    data = StageData(model=model_config, folder=folder, report=report, world=world)
    model = start_model(config, architecture)
    begun = config.start is not None and model.config == architecture
    check_stages(config.stages, model_config, begun)
    sources = [data.open(config, stage, number) for number, stage in enumerate(config.stages)]
    if world.main:
        note_config(folder, config, trained)
    adversary = first_adversary(config, world)
    for number, source in enumerate(sources):
        if config.stages[number].form == "3d" and model.config != architecture:
            model = inflate(model, architecture)
        with closing(source):
            model = _train_stage(folder, model, adversary, config, number, source, sizes, world)
    return (model if model.config == architecture else inflate(model, architecture)).eval()


def first_adversary(config: TokenizerTraining, world: World) -> Adversary | None:
    """The discriminator of a run's first step, which learns on from stage to stage."""
    if not config.gan.weight:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Adversary(config.gan, world)


def _train_stage(
    folder: Path,
    model: VideoTokenizer,
    adversary: Adversary | None,
    config: TokenizerTraining,
    number: int,
    source: Source,
    sizes: Sizes,
    world: World,
) -> VideoTokenizer:
    """Train one stage, resumed where its folder holds a state; returns the averaged model."""
    stage, architecture = config.stages[number], model.config
    optim = stage.optim(config.optim)
    perceptual = None
    if config.perceptual.enabled:
        perceptual = load_perceptual(config.perceptual.path, config.perceptual.heads)
        perceptual.to(world.device)
    others = {} if adversary is None else {"adversary": adversary.learner(optim)}
    source.prepare()
    run = Run(
        folder / stage.name,
        model,
        optim,
        f"tokenizer {stage.name}",
        save_every=config.save_every,
        others=others,
        world=world,
    )
    if perceptual is None and run.step < optim.steps:
        why = "its weight is 0" if config.perceptual.path else "no feature network given"
        run.note(f"perceptual term off: {why}")

    def loss_of(draw: int) -> tuple[Tensor, dict[str, float]]:
        step = draw // optim.accumulate - stage.continuous_steps
        judging = adversary if step >= config.gan.start else None
        video = from_pixels(source.batch(draw)["frames"].numpy()).to(world.device)
        grid = architecture.latent_size(*video.shape[-2:])
        quantised = sizes_of(grid, sizes) if step >= 0 else None
        return tokenizer_loss(run.model, video, quantised, config, perceptual, judging)

    train(run, loss_of)
    return run.finish()

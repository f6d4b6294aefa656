"""The settings of both models' runs, and the recipes of the digits.

What a run is trained with is data: `config_file.py` reads these classes from TOML.
"""

from dataclasses import dataclass, field, replace

from videoar.training.adversarial import GanConfig
from videoar.training.corruption import FlipConfig
from videoar.training.folder_config import DataConfig
from videoar.training.frame_mask import FrameMaskConfig
from videoar.training.learner import OptimSettings
from videoar.training.perceptual import PerceptualConfig
from videoar.training.sources import Shape
from videoar.training.stages import Stage, Training, check_names

FORMS = ("2d", "3d")
RECONSTRUCTIONS = ("l1", "l2", "charbonnier")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerStage(Stage):
    """One stage of a transformer's run.

    Attributes:
        dropout: share of captions or classes replaced by none, for guidance.
        flip: history corruption.
        mask: which earlier frames are seen.
    """

    dropout: float = 0.1
    flip: FlipConfig = field(default_factory=FlipConfig)
    mask: FrameMaskConfig = field(default_factory=FrameMaskConfig)

    def __post_init__(self) -> None:
        Stage.__post_init__(self)
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout: 0 to 1, got {self.dropout}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerTraining(Training):
    """A transformer's run.

    Attributes:
        stages: one after the other.
        checkpointing: recompute each layer in the backward pass instead of keeping what it saw.
    """

    stages: tuple[TransformerStage, ...]
    checkpointing: bool = False

    def __post_init__(self) -> None:
        Training.__post_init__(self)
        check_names(self.stages)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerStage(Stage):
    """One stage of a tokenizer's run.

    Attributes:
        form: "2d" trains the network without time on single frames; the first "3d" stage behind
            it starts from it, inflated.
        continuous_steps: first steps, which pass the latents on without quantising them.
    """

    form: str = "3d"
    continuous_steps: int = 0

    def __post_init__(self) -> None:
        Stage.__post_init__(self)
        if self.form not in FORMS:
            raise ValueError(f"form: one of {', '.join(FORMS)}, got {self.form!r}")
        if not 0 <= self.continuous_steps <= self.steps:
            text = f"0 to {self.steps} steps, got {self.continuous_steps}"
            raise ValueError(f"continuous_steps: {text}")
        for index, shape in enumerate(self.shapes if self.form == "2d" else ()):
            if shape.frames != 1:
                raise ValueError(f"shapes[{index}].frames: 1 for the 2d form, got {shape.frames}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerTraining(Training):
    """A tokenizer's run; the loss is Eq. 4 of arXiv 2601.05966.

    Attributes:
        stages: those of the 2D form first.
        reconstruction: error of a pixel: "l1", "l2" or "charbonnier".
        reconstruction_weight: of its mean, in [0,1] units.
        commitment, entropy: weights of the quantiser's terms.
        perceptual: distance in the features of a given network.
        gan: the adversarial term.
    """

    stages: tuple[TokenizerStage, ...]
    reconstruction: str = "l2"
    reconstruction_weight: float = 10.0
    commitment: float = 0.02
    entropy: float = 0.0
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    gan: GanConfig = field(default_factory=GanConfig)

    def __post_init__(self) -> None:
        Training.__post_init__(self)
        check_names(self.stages)
        forms = [stage.form for stage in self.stages]
        if forms != sorted(forms):
            raise ValueError(f"stages[{forms.index('3d') + 1}].form: 2d stages come first")
        if self.reconstruction not in RECONSTRUCTIONS:
            text = f"one of {', '.join(RECONSTRUCTIONS)}, got {self.reconstruction!r}"
            raise ValueError(f"reconstruction: {text}")
        for name in ("reconstruction_weight", "commitment", "entropy"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: at least 0, got {getattr(self, name)}")


# As files, the digits' recipes are configs/digits-tokenizer.toml and configs/digits.toml.
DIGITS_TOKENIZER_RECIPE = TokenizerTraining(
    optim=OptimSettings(ema=0.999),
    stages=(
        TokenizerStage(
            name="image",
            form="2d",
            steps=2000,
            learning_rate=1e-3,
            continuous_steps=500,
            shapes=(Shape(frames=1, batch=64),),
        ),
        TokenizerStage(
            name="clip", steps=4500, learning_rate=6e-4, warmup=100, shapes=(Shape(batch=4),)
        ),
    ),
)

# What a run has that is given no file: lengths and sizes are the preset's.
TRANSFORMER_RECIPE = TransformerTraining(
    stages=(
        TransformerStage(
            name="image",
            steps=1500,
            learning_rate=1.5e-3,
            shapes=(Shape(frames=1, batch=128),),
            data=(DataConfig(count=60000),),
            flip=FlipConfig(p_max=0.15),
        ),
        TransformerStage(
            name="clip",
            steps=2000,
            learning_rate=1e-3,
            shapes=(Shape(batch=64),),
            data=(DataConfig(count=12000),),
            flip=FlipConfig(p_max=0.15),
            mask=FrameMaskConfig(p_mask=0.1),
        ),
    ),
)

_LONG_CLIPS = TransformerStage(
    name="long",
    steps=900,
    learning_rate=4e-4,
    warmup=50,
    shapes=(Shape(frames=65, batch=16, share=0.6), Shape(batch=64, share=0.4)),
    data=(DataConfig(count=4000),),
    flip=FlipConfig(p_max=0.15),
    mask=FrameMaskConfig(p_mask=0.1, window=4),
)
DIGITS_TRANSFORMER_RECIPE = replace(
    TRANSFORMER_RECIPE, stages=(*TRANSFORMER_RECIPE.stages, _LONG_CLIPS)
)

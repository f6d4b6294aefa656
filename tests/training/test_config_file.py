"""Training configs: the shipped files, values set on top, and every kind of mistake by its path."""

from dataclasses import replace
from pathlib import Path

import pytest

from videoar.runtime.errors import CheckpointError, MediaError
from videoar.runtime.presets import preset
from videoar.training.config_file import load_config, plain_values, read_toml, set_value, within
from videoar.training.corruption import FlipConfig
from videoar.training.folder_config import DataConfig
from videoar.training.frame_mask import FrameMaskConfig
from videoar.training.recipes import (
    DIGITS_TOKENIZER_RECIPE,
    DIGITS_TRANSFORMER_RECIPE,
    TokenizerTraining,
    TransformerTraining,
)
from videoar.training.train_tokenizer import check_stages as check_tokenizer_stages
from videoar.training.train_transformer import check_stages

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPE = DIGITS_TRANSFORMER_RECIPE
SHORT_CLIPS = replace(RECIPE, stages=RECIPE.stages[:2])
Config = TokenizerTraining | TransformerTraining


@pytest.mark.parametrize(
    ("name", "recipe"),
    [("digits-tokenizer", DIGITS_TOKENIZER_RECIPE), ("digits", DIGITS_TRANSFORMER_RECIPE)],
)
def test_the_shipped_files_are_the_built_in_recipes(name: str, recipe: Config) -> None:
    assert load_config(recipe, CONFIGS / f"{name}.toml") == recipe


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_file_fits_its_preset(path: Path) -> None:
    of_tokenizer = "tokenizer" in path.stem
    config = load_config(DIGITS_TOKENIZER_RECIPE if of_tokenizer else RECIPE, path)
    if of_tokenizer:
        check_tokenizer_stages(config.stages, preset(config.preset), False)
    else:
        check_stages(config.stages, preset(config.preset), lambda stage, number: None)


@pytest.mark.parametrize("recipe", [DIGITS_TOKENIZER_RECIPE, DIGITS_TRANSFORMER_RECIPE])
def test_plain_values_come_back(recipe: Config) -> None:
    assert load_config(recipe) == recipe
    full = replace(recipe, start="x", data=(DataConfig(source="folder", path="y", share=2.0),))
    assert load_config(recipe, given=plain_values(full) | {"seed": 3}).seed == 3


def test_values_set_on_top() -> None:
    settings = ["seed=7", "stages[1].flip.p_max=0.2", "stages[1].mask.window=2"]
    settings += ["optim.ema = 0.5", "start=runs/first", "stages[0].shapes[0].batch=3"]
    config = load_config(RECIPE, settings=settings)
    assert (config.seed, config.optim.ema, config.start) == (7, 0.5, "runs/first")
    assert config.stages[0].shapes[0].batch == 3
    assert config.stages[1].flip == FlipConfig(p_max=0.2)
    assert config.stages[1].mask == FrameMaskConfig(p_mask=0.1, window=2)
    # The last one counts, and arrays grow at their end.
    more = ["seed=8", 'stages[2]={name="more", steps=1, learning_rate=1, shapes=[{batch=2}]}']
    config = load_config(RECIPE, settings=[*settings, *more])
    assert (config.seed, config.stages[2].name) == (8, "more")


def test_tables_that_a_file_leaves_out_can_be_set(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[[stages]]\nname="a"\nsteps=1\nlearning_rate=1e-3\nshapes=[{batch=1}]\n')
    config = load_config(RECIPE, path, settings=["optim.clip=0", "stages[0].mask.p_mask=0.5"])
    assert config.optim.clip == 0
    assert config.stages[0].mask.p_mask == 0.5
    assert config.stages[0].flip == FlipConfig()


def test_data_that_is_given_is_that_of_all_stages() -> None:
    data = [{"source": "folder", "path": "clips"}]
    config = load_config(RECIPE, given={"data": data}, settings=["data[0].fps=12.5"])
    assert config.data == (DataConfig(source="folder", path="clips", fps=12.5),)
    assert [stage.data for stage in config.stages] == [None, None, None]


STAGE = 'name = "a"\nsteps = 1\nlearning_rate = 1e-3\nshapes = [{ batch = 1 }]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "stages: missing field"),
        ("stages = []", "stages: at least one"),
        ("stages = 3", "stages: a list is needed, got int 3"),
        ("[[stages]]\nname = 3", r"stages\[0\]\.steps: missing field"),
        ("sed = 1", "sed: unknown field; did you mean 'seed'"),
        (f"[[stages]]\n{STAGE}step = 2", r"stages\[0\]\.step: unknown field; did you mean 'steps'"),
        (f"[[stages]]\n{STAGE}warmup = 1.5", r"stages\[0\]\.warmup: int is needed, got float 1\.5"),
        (f"[[stages]]\n{STAGE}dropout = 2", r"stages\[0\]\.dropout: 0 to 1, got 2\.0"),
        (f"[[stages]]\n{STAGE}accumulate = 0", r"stages\[0\]\.accumulate: must be above 0, got 0"),
        (f"[[stages]]\n{STAGE}data = []", r"stages\[0\]\.data: at least one"),
        (f"[[stages]]\n{STAGE}[[stages]]\n{STAGE}", r"stages\[1\]\.name: 'a' is taken"),
        (f"[[stages]]\n{STAGE}flip = {{ p_max = 2 }}", r"stages\[0\]\.flip\.p_max: from p_min"),
        (f"[[stages]]\n{STAGE}mask = {{ window = 0 }}", r"stages\[0\]\.mask\.window: at least 1"),
        (f"[[stages]]\n{STAGE}mask = {{ p_mask = nan }}", r"mask\.p_mask: float is needed"),
        ("seed = 1\nstages = =", "no readable TOML .*line 2"),
    ],
)
def test_mistakes_by_their_path(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"run\.toml: .*{message}"):
        load_config(RECIPE, path)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stages[0].shapes[0].batch=0", r"^stages\[0\]\.shapes\[0\]\.batch: at least 1, got 0"),
        ("stages[0].shapes[0].share=0", r"^stages\[0\]\.shapes\[0\]\.share: above 0"),
        ("stages[0].shapes=[]", r"^stages\[0\]\.shapes: at least one"),
        ("stages[0].name=a/b", r"^stages\[0\]\.name: letters"),
        ("stages[0].data[0].source=tape", r"^stages\[0\]\.data\[0\]\.source: one of digits, "),
        ("stages[0].data[0].fps=8", r"^stages\[0\]\.data\[0\]\.fps: for folders alone"),
        ("data[0].source=folder", r"^data\[0\]\.path: missing, a folder needs one"),
        ("data[0]={source='cache', path='x', count=3}", r"^data\[0\]\.count: "),
        ("data[0]={source='folder', path='x', crop='left'}", r"^data\[0\]\.crop: one of random"),
        ("data[0]={source='folder', path='x', mirror=3}", r"^data\[0\]\.mirror: "),
        ("data[0].share=-1", r"^data\[0\]\.share: above 0"),
        ("optim.ema=1.0", r"^optim\.ema: at least 0 and below 1"),
        ("seed=-1", "^seed: expected 0 "),
        ("save_every=0", "^save_every: at least 1"),
        ("workers=-1", "^workers: at least 0"),
        ("checkpointing=yes", "^checkpointing: bool is needed, got str 'yes'"),
        ("stages[4].steps=1", r"^--set stages\[4\]\.steps=1: stages\[4\]: no such place"),
        ("seed.x=1", r"^--set seed\.x=1: seed\.x: no such place"),
        ("seed", "^--set seed: expected PATH=VALUE"),
        ("stages[].steps=1", "expected PATH=VALUE"),
    ],
)
def test_mistakes_on_the_command_line(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(RECIPE, settings=[setting])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["stages[0].form=4d"], r"^stages\[0\]\.form: one of 2d, 3d, got '4d'"),
        (["stages[0].continuous_steps=9000"], r"^stages\[0\]\.continuous_steps: 0 to 2000"),
        (["stages[0].shapes[0].frames=5"], r"^stages\[0\]\.shapes\[0\]\.frames: 1 for the 2d"),
        (
            ["stages[0].form=3d", "stages[1].form=2d", "stages[1].shapes[0].frames=1"],
            r"\[1\]\.form",
        ),
        (["reconstruction=l3"], "^reconstruction: one of l1, l2, charbonnier, got 'l3'"),
        (["gan.rate=-1"], r"^gan\.rate: "),
        (["perceptual.heads=x"], r"^perceptual\.heads: given without path"),
        (["entropy=-1"], "^entropy: at least 0"),
        (["checkpointing=true"], "^checkpointing: unknown field"),
    ],
)
def test_mistakes_of_a_tokenizer(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(DIGITS_TOKENIZER_RECIPE, settings=settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["shapes[0].frames=16"],
            r"shapes\[0\]\.frames: must be 1 \+ 4n, got 16; nearest: 13 or 17",
        ),
        (["shapes[0].height=63"], r"shapes\[0\]\.height: must be a multiple of 16, got 63"),
        (["shapes[0].width=8"], r"shapes\[0\]\.width: must be a multiple of 16, got 8"),
        (
            ["shapes[0].height=128"],
            r"shapes\[0\]\.height, width: .*\(8, 4\) has 6 scales, the model 4",
        ),
        (["shapes[0].height=32", "shapes[0].width=32"], r"shapes: the last stage needs .* 64x64"),
        (["shapes[0].frames=33"], r"mask\.window: at most 4 .* 9 latent frames, got None"),
        (["shapes[0].frames=65", "mask.window=5"], r"mask\.window: at most 4 .*, got 5"),
        (["shapes[1].batch=2"], r"shapes\[1\]: of the frames and size of another one"),
    ],
)
def test_impossible_stages(settings: list[str], message: str) -> None:
    config = load_config(SHORT_CLIPS, settings=[f"stages[1].{setting}" for setting in settings])
    with pytest.raises(ValueError, match=rf"^stages\[1\]\.{message}"):
        check_stages(config.stages, preset("digits"), lambda stage, number: None)


def test_what_stages_may_be() -> None:
    settings = ["shapes[0].frames=65", "mask.window=4", "shapes[1]={frames=1, batch=2}"]
    settings += ["shapes[2]={frames=1, batch=2, height=32, width=48}"]
    config = load_config(RECIPE, settings=[f"stages[1].{setting}" for setting in settings])
    check_stages(config.stages, preset("digits"), lambda stage, number: None)
    with pytest.raises(ValueError, match=r"^stages\[0\]\.flip\.p_max, delta: must be 0 for tok"):
        check_stages(config.stages, preset("digits"), lambda stage, number: "tokens")
    with pytest.raises(ValueError, match=r"^stages\[0\]\.form: 3d is needed"):
        check_tokenizer_stages(DIGITS_TOKENIZER_RECIPE.stages, preset("digits"), True)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.toml: does not exist"):
        read_toml(tmp_path / "nowhere.toml")
    with pytest.raises(ValueError, match="no readable TOML"):
        read_toml(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(ValueError, match=r"latin\.toml: no readable TOML"):
        read_toml(tmp_path / "latin.toml")


def test_values_by_path() -> None:
    values: dict = {"a": [1, 2]}
    for setting in ("a[1]=5", "a[2]=x y", "b.c[0].d=[1, 2]", "b.e=true"):
        set_value(values, setting)
    assert values == {"a": [1, 5, "x y"], "b": {"c": [{"d": [1, 2]}], "e": True}}


def test_errors_keep_their_kind() -> None:
    for kind in (CheckpointError, MediaError, ValueError):
        with pytest.raises(kind, match=r"^a: b$"), within("a"):
            raise kind("b")
        with pytest.raises(kind, match=r"^b$"), within(None):
            raise kind("b")
    with pytest.raises(KeyError), within("a"):
        raise KeyError("b")

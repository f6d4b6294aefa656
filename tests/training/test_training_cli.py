"""`videoar train` and `videoar eval`: flags, their help, errors, and what the commands write."""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from videoar.runtime.checkpoint import write_component
from videoar.runtime.cli_arguments import Parser
from videoar.runtime.errors import CheckpointError
from videoar.runtime.media import write_video
from videoar.runtime.model_folder import save_tokenizer
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.presets import DIGITS_TOKENIZER, DIGITS_TRANSFORMER, preset
from videoar.runtime.transformer import Transformer
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training import train_judge, train_tokenizer, train_transformer
from videoar.training.adversarial import GanConfig
from videoar.training.cli import add_eval, add_train
from videoar.training.cli_flags import LazyParser, described, field_help
from videoar.training.corruption import FlipConfig
from videoar.training.folder_config import DataConfig
from videoar.training.frame_mask import FrameMaskConfig
from videoar.training.learner import OptimConfig
from videoar.training.perceptual import PerceptualConfig
from videoar.training.recipes import (
    DIGITS_TOKENIZER_RECIPE,
    TRANSFORMER_RECIPE,
    TokenizerStage,
    TokenizerTraining,
    TransformerStage,
    TransformerTraining,
)
from videoar.training.sources import Shape
from videoar.training.train_judge import JudgeTraining

CONFIGS = (TokenizerTraining, TokenizerStage, TransformerTraining, TransformerStage, Shape)
CONFIGS += (DataConfig, FlipConfig, FrameMaskConfig, GanConfig, PerceptualConfig, OptimConfig)
SMALL_TRANSFORMER = replace(DIGITS_TRANSFORMER, layers=1, width=64, heads=1, kv_heads=1)


def make_parser() -> Parser:
    parser = Parser(prog="videoar")
    subparsers = parser.add_subparsers(required=True)
    add_train(subparsers)
    add_eval(subparsers)
    return parser


def parse(*words: object) -> argparse.Namespace:
    return make_parser().parse_args([str(word) for word in words])


def run(*words: object) -> None:
    args = parse(*words)
    assert not args.run(args)


def leaves(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Every parser that has no commands below it, by what one types to reach it."""
    if isinstance(parser, LazyParser):
        parser.populate()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parts = [leaves(child) for child in action.choices.values()]
            return {name: leaf for part in parts for name, leaf in part.items()}
    return {parser.prog: parser}


def leaf(name: str) -> argparse.ArgumentParser:
    return leaves(make_parser())[f"videoar {name}"]


def test_commands():
    parts = ("tokenizer", "cache", "transformer", "judge", "footage", "text-tokenizer", "export")
    kinds = {"train": parts}
    measures = ("prompts", "continuation", "tokenizer", "bits", "fvd", "vbench")
    kinds |= {"eval": (*measures, "curves", "samples", "heatmap")}
    expected = {f"videoar {name} {kind}" for name in kinds for kind in kinds[name]}
    assert set(leaves(make_parser())) == expected


def test_every_flag_has_a_help_text():
    for name, parser in leaves(make_parser()).items():
        for action in parser._actions:
            assert action.help, f"{name} {action.option_strings}"
            assert action.help is not argparse.SUPPRESS
        text = " ".join(parser.format_help().split())
        assert "--" in text
        assert not re.search(r"\(default: [^()]*\) \(default", text), name


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_field_of_a_config_is_described(cls):
    names = {field.name for field in fields(cls)}
    assert names == {name for base in cls.__mro__ for name in described(base)}


def test_every_field_is_a_flag():
    flags = {flag for action in leaf("train judge")._actions for flag in action.option_strings}
    names = {field.name for field in fields(JudgeTraining)}
    assert {"--" + name.replace("_", "-") for name in names} <= flags
    for name in names:
        assert field_help(JudgeTraining, name) != name


def test_descriptions_come_from_the_docstring():
    class Example:
        """An example.

        Attributes:
            first: of two lines, the second
                of which is indented.
            second, third: share one line, 5 % of it.

        Something: else.
        """

    shared = "share one line, 5 % of it"
    expected = {"first": "of two lines, the second of which is indented"}
    assert described(Example) == expected | {"second": shared, "third": shared}
    assert described(int) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("eval prompts --num 0", "--num.*at|--num.*1 or more"),
        ("eval tokenizer --num -1", "--num"),
        ("eval prompts --num many", "--num"),
        ("eval prompts --threads 0", "--threads"),
        ("eval", "WHAT"),
        ("train judge", "--out"),
        ("train judge --out x --steps few", "--steps"),
        ("train tokenizer --out x --seed few", "--seed"),
        ("train tokenizer --out x --seed -1", r"--seed: expected 0 \.\. 2\^63 - 1, got -1"),
        ("eval prompts --seed 9223372036854775808", "--seed: expected 0"),
        ("train tokenizer --out x --learning 3", "--learning"),
        ("train export --tokenizer a --transformer b --out c --dtype int8", "--dtype"),
    ],
)
def test_bad_values(words, message):
    with pytest.raises(ValueError, match=message):
        parse(*words.split())


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: replace(TRANSFORMER_RECIPE, seed=2**63), "seed"),
        (lambda: JudgeTraining(seed=-1), "seed"),
        (lambda: JudgeTraining(batch=0), "batch"),
    ],
)
def test_bad_settings(make, field):
    with pytest.raises(ValueError, match=f"^{field}: "):
        make()


def test_registering_imports_nothing_heavy():
    code = (
        "import sys; from argparse import ArgumentParser; "
        "from videoar.training.cli import add_eval, add_train; "
        "commands = ArgumentParser().add_subparsers(); add_eval(commands); add_train(commands); "
        "print(*sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert {"torch", "numpy", "av"}.isdisjoint(process.stdout.split())


def test_train_tokenizer_writes_a_component(tmp_path, monkeypatch, capsys):
    asked = []

    def train(folder, model, config, **options):
        asked.append((folder, model, config))
        return VideoTokenizer(model.tokenizer)

    monkeypatch.setattr(train_tokenizer, "train_tokenizer", train)
    words = ["--set", "entropy=0.5", "--set", "stages[1].steps=7", "--seed", 3, "--start", "x"]
    run("train", "tokenizer", "--out", tmp_path, *words)
    image, clip = DIGITS_TOKENIZER_RECIPE.stages
    stages = (image, replace(clip, steps=7))
    config = replace(DIGITS_TOKENIZER_RECIPE, entropy=0.5, stages=stages, seed=3, start="x")
    assert asked == [(tmp_path, preset("digits"), config)]
    assert capsys.readouterr().out.strip() == str(tmp_path / "video_tokenizer")
    assert (tmp_path / "video_tokenizer" / "config.json").exists()


def test_train_transformer_writes_a_component(tmp_path, monkeypatch):
    save_tokenizer(tmp_path / "tok" / "video_tokenizer", VideoTokenizer(DIGITS_TOKENIZER))

    def train(folder, tokenizer, architecture, config, *, text_tokenizer, fps, **options):
        assert isinstance(tokenizer, VideoTokenizer)
        assert (architecture, fps) == (DIGITS_TRANSFORMER, 8)
        data = (DataConfig(source="cache", path="a"), DataConfig(source="cache", path="b"))
        stages = tuple(replace(stage, data=None) for stage in TRANSFORMER_RECIPE.stages)
        assert config == replace(TRANSFORMER_RECIPE, data=data, stages=stages)
        assert text_tokenizer.token_to_id("red") is not None
        return Transformer(SMALL_TRANSFORMER)

    monkeypatch.setattr(train_transformer, "train_transformer", train)
    out = tmp_path / "out"
    words = ["--tokenizer", tmp_path / "tok", "--out", out, "--cache", "a", "b"]
    run("train", "transformer", *words)
    assert (out / "transformer" / "model.safetensors").exists()


def test_train_judge(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_judge, "HELD_OUT_CLIPS", 5)
    run("train", "judge", "--out", tmp_path, "--steps", 1, "--batch", 2)
    assert "of 5" in capsys.readouterr().out
    assert (tmp_path / "judge" / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["transformer", "export"])
def test_unknown_folders(tmp_path, kind):
    words = ["train", kind, "--tokenizer", tmp_path / "nowhere", "--out", tmp_path / "out"]
    words += ["--transformer", tmp_path / "nowhere"] if kind == "export" else []
    with pytest.raises(CheckpointError, match="nowhere"):
        run(*words)


CONFIG_FOLDER = Path(__file__).parents[2] / "configs"
SHORT_TOKENIZER = "stages[0].steps=3 stages[0].continuous_steps=1 stages[0].shapes[0].batch=4"
SHORT_TOKENIZER += " stages[1].steps=2 stages[1].shapes[0].batch=1"
SHORT_TRANSFORMER = "stages[0].steps=3 stages[0].shapes[0].batch=4 stages[0].data[0].count=8"
SHORT_TRANSFORMER += " stages[1].steps=2 stages[1].shapes[0].batch=2 stages[1].data[0].count=3"
SHORT_TRANSFORMER += " stages[2].steps=1 stages[2].shapes[0].batch=1 stages[2].data[0].count=1"


def test_the_shipped_recipes_end_in_a_model_that_generates(tmp_path):
    def train(kind, config, settings, *words):
        words = ["--config", CONFIG_FOLDER / f"{config}.toml", "--out", tmp_path / kind, *words]
        run("train", kind, *words, *(w for s in settings.split() for w in ("--set", s)))

    train("tokenizer", "digits-tokenizer", SHORT_TOKENIZER)
    source = ["--tokenizer", tmp_path / "tokenizer"]
    train("transformer", "digits", SHORT_TRANSFORMER, *source)
    words = [*source, "--transformer", tmp_path / "transformer", "--out", tmp_path / "model"]
    run("train", "export", *words)
    model = VideoAR.from_pretrained(tmp_path / "model")
    assert model.config.transformer == DIGITS_TRANSFORMER
    video = model.generate("a red 3 moving left", seed=1)
    assert video.frames.shape == (1, 17, 64, 64, 3)
    assert video.frames.std() > 0
    # The same command again finds everything done and writes the same.
    weights = (tmp_path / "transformer" / "transformer" / "model.safetensors").read_bytes()
    train("transformer", "digits", SHORT_TRANSFORMER, *source)
    again = (tmp_path / "transformer" / "transformer" / "model.safetensors").read_bytes()
    assert again == weights


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A checkpoint folder of random weights, assembled by `train export`."""
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    transformer = Transformer(SMALL_TRANSFORMER)
    transformer.init_weights()
    save_tokenizer(folder / "tok" / "video_tokenizer", VideoTokenizer(DIGITS_TOKENIZER))
    state = transformer.state_dict()
    write_component(folder / "ar" / "transformer", "transformer", SMALL_TRANSFORMER, state)
    sources = ["--tokenizer", folder / "tok", "--transformer", folder / "ar"]
    sampling = ["--guidance", "falling:3:1", "--temperature", 0.9]
    run("train", "export", *sources, "--out", folder / "model", *sampling)
    return folder / "model"


def test_export(exported):
    model = VideoAR.from_pretrained(exported)
    assert model.config.transformer == SMALL_TRANSFORMER
    assert (model.config.guidance, model.config.temperature) == ("falling:3:1", 0.9)
    assert model.generate("a red three standing still", num_frames=1).frames.shape[1] == 1


def test_export_refuses_a_guidance_that_is_none(tmp_path, exported):
    words = ["--tokenizer", exported, "--transformer", exported, "--out", tmp_path / "out"]
    with pytest.raises(ValueError, match="guidance"):
        run("train", "export", *words, "--guidance", "strong")
    assert not (tmp_path / "out").exists()


def test_eval_prompts(exported, capsys):
    run("eval", "prompts", "--model", exported, "--num", 2, "--guidance", 1, "--json")
    result = json.loads(capsys.readouterr().out)
    keys = {"digit", "colour", "direction", "speed", "judge_accuracy", "num"}
    assert keys <= result.keys()
    assert result["num"] == 2


def test_eval_prompts_table(exported, capsys):
    run("eval", "prompts", "--model", exported, "--num", 1, "--guidance", 1)
    lines = capsys.readouterr().out.splitlines()
    names = ["digit", "colour", "direction", "speed", "all", "judge", "clips"]
    assert [line.split()[0] for line in lines] == names
    words = ("--num", 1, "--guidance", 1, "--num-frames", 25)
    run("eval", "prompts", "--model", exported, *words)
    parts = [line for line in capsys.readouterr().out.splitlines() if line.startswith("frames")]
    assert [part.split(":")[0] for part in parts] == ["frames 0 to 16", "frames 17 to 24"]


def test_eval_continuation(exported, capsys):
    words = ("eval", "continuation", "--model", exported, "--guidance", 1, "--context", 13)
    run(*words, "--num", 2, "--json")
    result = json.loads(capsys.readouterr().out)
    assert {"digit", "colour", "direction", "speed", "unprompted", "real"} <= result.keys()
    assert (result["num"], result["given_frames"], result["made_frames"]) == (2, 13, 4)
    run(*words, "--num", 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["prompted", "unprompted", "real"]
    assert lines[1].split()[0] == "digit"
    assert lines[-1] == "1 clips: 13 frames given, 4 made and judged"


def test_eval_tokenizer(exported, capsys):
    run("eval", "tokenizer", "--model", exported, "--num", 1, "--json")
    result = json.loads(capsys.readouterr().out)
    assert result.keys() == {"psnr", "ssim", "bits_per_pixel", "num", "unreadable"}
    assert result["bits_per_pixel"] == pytest.approx(30 * 32 * 5 / (17 * 64**2), rel=1e-3)
    # A tokenizer's own folder gives the same: its scales are the default ones.
    run("eval", "tokenizer", "--model", exported / "video_tokenizer", "--num", 1, "--json")
    assert json.loads(capsys.readouterr().out) == result


def test_eval_tokenizer_on_a_folder(exported, tmp_path, capsys):
    write_video(tmp_path / "a.mp4", np.full((17, 64, 64, 3), 90, np.uint8))
    (tmp_path / "b.mp4").write_bytes(b"broken")
    run("eval", "tokenizer", "--model", exported, "--data", tmp_path)
    output = capsys.readouterr()
    assert "1 files left out" in output.out
    assert "b.mp4" in output.err


def test_missing_model(tmp_path):
    for kind in ("prompts", "continuation", "tokenizer", "bits", "fvd"):
        with pytest.raises(CheckpointError, match="nowhere"):
            run("eval", kind, "--model", tmp_path / "nowhere")

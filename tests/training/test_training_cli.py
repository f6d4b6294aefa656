"""`videoar train` and `videoar eval`: flags, their help, errors, and what the commands write."""

import argparse
import json
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from videoar.runtime.checkpoint import write_component
from videoar.runtime.cli_arguments import Parser
from videoar.runtime.errors import CheckpointError
from videoar.runtime.media import write_video
from videoar.runtime.model_folder import save_tokenizer
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.presets import DIGITS_TOKENIZER, DIGITS_TRANSFORMER
from videoar.runtime.transformer import Transformer
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training import train_judge, train_tokenizer, train_transformer
from videoar.training.adversarial import GanConfig
from videoar.training.cli import add_eval, add_train
from videoar.training.cli_flags import LazyParser, described, field_help
from videoar.training.cli_train import _run_config
from videoar.training.corruption import FlipConfig
from videoar.training.perceptual import PerceptualConfig
from videoar.training.run import OptimConfig
from videoar.training.train_judge import JudgeTraining
from videoar.training.train_tokenizer import TokenizerTraining
from videoar.training.train_transformer import TransformerTraining

TRAININGS = {
    "tokenizer": TokenizerTraining,
    "transformer": TransformerTraining,
    "judge": JudgeTraining,
}
NESTED = {"flip": FlipConfig, "gan": GanConfig, "perceptual": PerceptualConfig}
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
    kinds = {"train": ("tokenizer", "cache", "transformer", "judge", "export")}
    kinds |= {"eval": ("prompts", "continuation", "tokenizer")}
    expected = {f"videoar {name} {kind}" for name in kinds for kind in kinds[name]}
    assert set(leaves(make_parser())) == expected


def test_every_flag_has_a_help_text():
    for name, parser in leaves(make_parser()).items():
        for action in parser._actions:
            assert action.help, f"{name} {action.option_strings}"
            assert action.help is not argparse.SUPPRESS
        assert "--" in parser.format_help()


@pytest.mark.parametrize("cls", [*TRAININGS.values(), *NESTED.values(), OptimConfig])
def test_every_field_is_described(cls):
    nested = ("optim", *NESTED, "steps", "learning_rate", "warmup")
    for field in fields(cls):
        if field.name not in nested:
            assert field_help(cls, field.name) != field.name.replace("_", " "), field.name


@pytest.mark.parametrize("kind", TRAININGS)
def test_every_field_is_a_flag(kind):
    flags = {flag for action in leaf(f"train {kind}")._actions for flag in action.option_strings}
    names = {field.name for field in fields(TRAININGS[kind])}
    if "optim" in names:
        names -= {"optim"}
        stage = {"steps", "learning_rate", "warmup"}
        names |= {f"optim-{field.name}" for field in fields(OptimConfig) if field.name not in stage}
    for name in NESTED.keys() & names:
        names = names - {name} | {f"{name}-{field.name}" for field in fields(NESTED[name])}
    assert {"--" + name.replace("_", "-") for name in names} <= flags


def test_help_shows_the_default_of_the_run():
    help_text = {a.dest: a.help for a in leaf("train transformer")._actions}
    outer = TransformerTraining().flip
    assert f"(default: {outer.p_max})" in help_text["flip_p_max"]
    assert f"(default: {TransformerTraining().seed})" in help_text["seed"]


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


def test_flags_become_the_config():
    words = "--image-steps 5 --entropy 0.1 --optim-weight-decay 0.2 --optim-betas 0.8 0.9"
    words += " --gan-weight 0.1 --gan-adaptive --perceptual-path vgg.safetensors"
    args = parse("train", "tokenizer", "--out", "x", *words.split())
    optim = {"weight_decay": 0.2, "betas": (0.8, 0.9)}
    expected = TokenizerTraining(
        image_steps=5,
        entropy=0.1,
        gan=GanConfig(weight=0.1, adaptive=True),
        perceptual=PerceptualConfig(path="vgg.safetensors"),
        optim=optim,
    )
    assert _run_config(args, TokenizerTraining) == expected


def test_flags_that_are_not_given_keep_the_defaults():
    base = ["train", "transformer", "--out", "x", "--tokenizer", "y"]
    default = TransformerTraining()
    assert _run_config(parse(*base), TransformerTraining) == default
    args = parse(*base, "--flip-p-min", "0.01", "--seed", "3")
    expected = replace(default, flip=replace(default.flip, p_min=0.01), seed=3)
    assert _run_config(args, TransformerTraining) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("eval prompts --num 0", "--num.*at|--num.*1 or more"),
        ("eval tokenizer --num -1", "--num"),
        ("eval prompts --num many", "--num"),
        ("eval prompts --threads 0", "--threads"),
        ("eval", "WHAT"),
        ("train judge", "--out"),
        ("train tokenizer --out x --image-steps few", "--image-steps"),
        ("train tokenizer --out x --learning 3", "--learning"),
        ("train export --tokenizer a --transformer b --out c --dtype int8", "--dtype"),
    ],
)
def test_bad_values(words, message):
    with pytest.raises(ValueError, match=message):
        parse(*words.split())


def test_bad_value_of_a_nested_field():
    args = parse("train", "transformer", "--out", "x", "--tokenizer", "y", "--flip-p-max", "2")
    with pytest.raises(ValueError, match="p_max"):
        args.run(args)


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

    def train(folder, architecture, sizes, config):
        asked.append((folder, sizes, config))
        return VideoTokenizer(architecture)

    monkeypatch.setattr(train_tokenizer, "train_tokenizer", train)
    run("train", "tokenizer", "--out", tmp_path, "--clip-steps", 7)
    assert asked == [(tmp_path, DIGITS_TRANSFORMER.sizes, TokenizerTraining(clip_steps=7))]
    assert capsys.readouterr().out.strip() == str(tmp_path / "video_tokenizer")
    assert (tmp_path / "video_tokenizer" / "config.json").exists()


def test_train_transformer_writes_a_component(tmp_path, monkeypatch):
    save_tokenizer(tmp_path / "tok" / "video_tokenizer", VideoTokenizer(DIGITS_TOKENIZER))

    def train(folder, tokenizer, architecture, config):
        assert isinstance(tokenizer, VideoTokenizer)
        assert config == TransformerTraining(clips=9)
        return Transformer(SMALL_TRANSFORMER)

    monkeypatch.setattr(train_transformer, "train_transformer", train)
    out = tmp_path / "out"
    run("train", "transformer", "--tokenizer", tmp_path / "tok", "--out", out, "--clips", 9)
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
    for kind in ("prompts", "continuation", "tokenizer"):
        with pytest.raises(CheckpointError, match="nowhere"):
            run("eval", kind, "--model", tmp_path / "nowhere")

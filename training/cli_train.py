"""`videoar train`: the training loops as commands; torch is imported when one of them runs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from videoar.runtime.cli_arguments import DTYPES, positive, seed
from videoar.training.cli_data import add_cache, add_data, print_scan
from videoar.training.cli_flags import LazyParser, Subparsers, add_fields, add_kind, values_of
from videoar.training.cli_footage import add_footage
from videoar.training.cli_text import add_text_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from videoar.runtime.build_config import Config

RESUME = "A run stopped half-way goes on by itself where --out holds its state."


def add_train(subparsers: Subparsers) -> None:
    """Register `videoar train` and what it trains."""
    text = "train the models and assemble a checkpoint"
    parser = subparsers.add_parser("train", help=text, description=text.capitalize() + ".")
    kinds = parser.add_subparsers(
        title="what to train", metavar="WHAT", required=True, parser_class=LazyParser
    )
    _add_tokenizer(kinds)
    add_cache(kinds)
    _add_transformer(kinds)
    _add_judge(kinds)
    add_footage(kinds)
    add_text_tokenizer(kinds)
    _add_export(kinds)


def _add_run(parser: argparse.ArgumentParser, out: str, *, cache: bool) -> None:
    """The flags of both models' runs; what else there is to set is in the config."""
    text = "TOML file of the run (default: a recipe for any preset, docs/training.md)"
    parser.add_argument("--config", metavar="FILE", help=text)
    text = "set one value of the config, as in stages[0].steps=50; can be repeated"
    parser.add_argument("--set", action="append", dest="settings", metavar="PATH=VALUE", help=text)
    add_data(parser, cache=cache)
    text = "a model to start from (default: the config's, else random weights)"
    parser.add_argument("--start", metavar="DIR", help=text)
    text = "of the data, the initial weights and every draw (default: the config's)"
    parser.add_argument("--seed", type=seed, metavar="N", help=text)
    parser.add_argument("--out", required=True, metavar="DIR", help=out)
    text = "where to train (default: cuda where there is a GPU)"
    parser.add_argument("--device", choices=("cuda", "cpu"), help=text)
    _add_threads(parser)


def _run_config(args: argparse.Namespace, recipe: "Config") -> "Config":
    """The config that the flags describe; `recipe` is what is trained without `--config`."""
    from videoar.training.config_file import load_config

    names = ("preset", "start", "seed")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    kinds = {"folder": args.data or [], "cache": getattr(args, "cache", None) or []}
    if data := [{"source": kind, "path": path} for kind in kinds for path in kinds[kind]]:
        given["data"] = data
    return load_config(recipe, args.config, given, args.settings or ())


def _add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads (default: torch's choice)"
    )


def _set_threads(args: argparse.Namespace) -> None:
    import torch

    if args.threads is not None:
        torch.set_num_threads(args.threads)


def _add_tokenizer(kinds: Subparsers) -> None:
    text = "train the video tokenizer: on frames, then on clips"
    parser = add_kind(kinds, "tokenizer", text, _train_tokenizer, RESUME)
    _add_run(parser, "states, logs and DIR/video_tokenizer", cache=False)


def _train_tokenizer(args: argparse.Namespace) -> None:
    from videoar.runtime.model_folder import save_tokenizer
    from videoar.runtime.presets import preset
    from videoar.training.config_file import within
    from videoar.training.recipes import DIGITS_TOKENIZER_RECIPE
    from videoar.training.train_tokenizer import train_tokenizer
    from videoar.training.world import start_world

    _set_threads(args)
    config, out = _run_config(args, DIGITS_TOKENIZER_RECIPE), Path(args.out)
    with start_world(args.device) as world:
        with within(args.config):
            model = preset(config.preset)
            trained = train_tokenizer(out, model, config, report=print_scan, world=world)
        if world.main:
            save_tokenizer(out / "video_tokenizer", trained)
            print(out / "video_tokenizer")


def _add_transformer(kinds: Subparsers) -> None:
    text = "train the transformer on the latents of a trained tokenizer"
    parser = add_kind(kinds, "transformer", text, _train_transformer, RESUME)
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help=_where("tokenizer"))
    _add_run(parser, "states, logs and DIR/transformer", cache=True)


def _where(kind: str) -> str:
    return f"the {kind}: the --out of its training, a component's or a model's folder"


def _text_tokenizer(name: str) -> "Tokenizer | None":
    """The text tokenizer that a preset is trained with; None for classes."""
    from videoar.runtime.model_folder import preset_text_tokenizer
    from videoar.runtime.presets import preset
    from videoar.training.digits import text_tokenizer

    if name == "digits":
        # The shipped checkpoint, where the runtime finds that of the digits, is made from this one.
        return text_tokenizer()
    return preset_text_tokenizer(name, preset(name))


def _train_transformer(args: argparse.Namespace) -> None:
    from videoar.runtime.checkpoint import write_component
    from videoar.runtime.model_folder import load_tokenizer
    from videoar.runtime.presets import preset
    from videoar.training.config_file import within
    from videoar.training.recipes import TRANSFORMER_RECIPE
    from videoar.training.train_transformer import train_transformer
    from videoar.training.world import start_world

    _set_threads(args)
    config, out = _run_config(args, TRANSFORMER_RECIPE), Path(args.out)
    tokenizer = load_tokenizer(args.tokenizer)
    with start_world(args.device) as world:
        with within(args.config):
            model = preset(config.preset)
            trained = train_transformer(
                out,
                tokenizer,
                model.transformer,
                config,
                text_tokenizer=_text_tokenizer(config.preset),
                fps=model.fps,
                report=print_scan,
                world=world,
            )
        if world.main:
            weights = trained.state_dict()
            write_component(out / "transformer", "transformer", trained.config, weights)
            print(out / "transformer")


def _add_judge(kinds: Subparsers) -> None:
    def populate(parser: LazyParser) -> None:
        from videoar.training.train_judge import JudgeTraining

        add_fields(parser, JudgeTraining)

    text = "train the digit classifier that `videoar eval prompts` judges with"
    parser = add_kind(kinds, "judge", text, _train_judge, RESUME, populate=populate)
    parser.add_argument("--out", required=True, metavar="DIR", help="state, log and DIR/judge")
    _add_threads(parser)


def _train_judge(args: argparse.Namespace) -> None:
    from videoar.training.train_judge import JudgeTraining, train_judge

    _set_threads(args)
    judge = train_judge(Path(args.out), JudgeTraining(**values_of(args, JudgeTraining)))
    print(f"held-out clips  {judge.config.accuracy:.1%} of {judge.config.num_held_out}")
    print(f"held-out images {judge.config.image_accuracy:.1%}")
    print(Path(args.out) / "judge")


def _add_export(kinds: Subparsers) -> None:
    text = "assemble a checkpoint folder from a trained tokenizer and transformer"
    parser = add_kind(kinds, "export", text, _export)
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help=_where("tokenizer"))
    parser.add_argument("--transformer", required=True, metavar="DIR", help=_where("transformer"))
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the checkpoint's folder")
    text = "what they were trained as (or a model file, .toml); gives frame size, rate and texts"
    parser.add_argument("--preset", default="digits", metavar="NAME", help=text)
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float16", help="type of the stored weights"
    )
    parser.add_argument(
        "--guidance", metavar="G", help="the model's own guidance (default: the preset's)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="the model's own temperature (default: the preset's)",
    )


def _export(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from videoar.runtime.model_folder import load_tokenizer, load_transformer, save_model
    from videoar.runtime.modules import DTYPES
    from videoar.runtime.pipeline import VideoAR
    from videoar.runtime.presets import preset

    tokenizer, transformer = load_tokenizer(args.tokenizer), load_transformer(args.transformer)
    base = preset(args.preset)
    config = replace(
        base,
        tokenizer=tokenizer.config,
        transformer=transformer.config,
        guidance=base.guidance if args.guidance is None else args.guidance,
        temperature=base.temperature if args.temperature is None else args.temperature,
    )
    model = VideoAR(config, transformer, tokenizer, _text_tokenizer(args.preset))
    save_model(args.out, model, DTYPES[args.dtype])
    print(args.out)

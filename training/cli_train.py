"""`videoar train`: the training loops as commands; torch is imported when one of them runs."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videoar.runtime.cli_arguments import DTYPES, positive
from videoar.training.cli_data import add_cache, add_data, training_data
from videoar.training.cli_flags import LazyParser, Subparsers, add_fields, add_kind, values_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

RESUME = "A run stopped half-way goes on by itself where --out holds its state."
# Set by the stages themselves.
STAGE_FIELDS = ("steps", "learning_rate", "warmup")


def add_train(subparsers: Subparsers) -> None:
    """Register `videoar train tokenizer | cache | transformer | judge | export`."""
    text = "train the models and assemble a checkpoint"
    parser = subparsers.add_parser("train", help=text, description=text.capitalize() + ".")
    kinds = parser.add_subparsers(
        title="what to train", metavar="WHAT", required=True, parser_class=LazyParser
    )
    _add_tokenizer(kinds)
    add_cache(kinds)
    _add_transformer(kinds)
    _add_judge(kinds)
    _add_export(kinds)


def _add_run_flags(parser: argparse.ArgumentParser, cls: type) -> None:
    """All flags of a training dataclass, those of its optimiser included."""
    from videoar.training.run import OptimConfig

    add_fields(parser, cls, skip=("optim",))
    if _has_optim(cls):
        add_fields(parser, OptimConfig, skip=STAGE_FIELDS, prefix="optim")


def _has_optim(cls: type) -> bool:
    return any(field.name == "optim" for field in fields(cls))


def _run_config(args: argparse.Namespace, cls: type) -> Any:
    from videoar.training.run import OptimConfig

    values = values_of(args, cls, skip=("optim",))
    if _has_optim(cls):
        values["optim"] = values_of(args, OptimConfig, skip=STAGE_FIELDS, prefix="optim")
    return cls(**values)


def _add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads (default: torch's choice)"
    )


def _set_threads(args: argparse.Namespace) -> None:
    import torch

    if args.threads is not None:
        torch.set_num_threads(args.threads)


def _add_tokenizer(kinds: Subparsers) -> None:
    def populate(parser: LazyParser) -> None:
        from videoar.training.train_tokenizer import TokenizerTraining

        _add_run_flags(parser, TokenizerTraining)
        add_data(parser, cache=False)

    text = "train the video tokenizer: on frames, then on clips"
    parser = add_kind(kinds, "tokenizer", text, _train_tokenizer, RESUME, populate=populate)
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="states, logs and DIR/video_tokenizer"
    )
    _add_threads(parser)


def _train_tokenizer(args: argparse.Namespace) -> None:
    from videoar.runtime.model_folder import save_tokenizer
    from videoar.runtime.presets import preset
    from videoar.training.train_tokenizer import TokenizerTraining, train_tokenizer

    _set_threads(args)
    config, out = _run_config(args, TokenizerTraining), Path(args.out)
    model = preset(args.preset)
    data = {}
    if source_of := training_data(args, model):
        data = {"source_of": source_of, "num_frames": model.num_frames}
    trained = train_tokenizer(out, model.tokenizer, model.transformer.sizes, config, **data)
    save_tokenizer(out / "video_tokenizer", trained)
    print(out / "video_tokenizer")


def _add_transformer(kinds: Subparsers) -> None:
    def populate(parser: LazyParser) -> None:
        from videoar.training.train_transformer import TransformerTraining

        _add_run_flags(parser, TransformerTraining)
        add_data(parser, cache=True)

    text = "train the transformer on the latents of a trained tokenizer"
    parser = add_kind(kinds, "transformer", text, _train_transformer, RESUME, populate=populate)
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help=_where("tokenizer"))
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="states, logs and DIR/transformer"
    )
    _add_threads(parser)


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
    from videoar.training.train_transformer import TransformerTraining, train_transformer

    _set_threads(args)
    config, out = _run_config(args, TransformerTraining), Path(args.out)
    model, tokenizer = preset(args.preset), load_tokenizer(args.tokenizer)
    text = _text_tokenizer(args.preset)
    source_of = training_data(args, model, tokenizer=tokenizer, text_tokenizer=text)
    data = {"source_of": source_of, "text_tokenizer": text} if source_of else {}
    trained = train_transformer(out, tokenizer, model.transformer, config, **data)
    write_component(out / "transformer", "transformer", trained.config, trained.state_dict())
    print(out / "transformer")


def _add_judge(kinds: Subparsers) -> None:
    def populate(parser: LazyParser) -> None:
        from videoar.training.train_judge import JudgeTraining

        _add_run_flags(parser, JudgeTraining)

    text = "train the digit classifier that `videoar eval prompts` judges with"
    parser = add_kind(kinds, "judge", text, _train_judge, RESUME, populate=populate)
    parser.add_argument("--out", required=True, metavar="DIR", help="state, log and DIR/judge")
    _add_threads(parser)


def _train_judge(args: argparse.Namespace) -> None:
    from videoar.training.train_judge import JudgeTraining, train_judge

    _set_threads(args)
    judge = train_judge(Path(args.out), _run_config(args, JudgeTraining))
    print(f"held-out clips  {judge.config.accuracy:.1%} of {judge.config.num_held_out}")
    print(f"held-out images {judge.config.image_accuracy:.1%}")
    print(Path(args.out) / "judge")


def _add_export(kinds: Subparsers) -> None:
    text = "assemble a checkpoint folder from a trained tokenizer and transformer"
    parser = add_kind(kinds, "export", text, _export)
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help=_where("tokenizer"))
    parser.add_argument("--transformer", required=True, metavar="DIR", help=_where("transformer"))
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the checkpoint's folder")
    text = "what they were trained as; gives frame size, rate and text tokenizer"
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

    from videoar.runtime.guidance import GuidanceSchedule
    from videoar.runtime.model_folder import load_tokenizer, load_transformer, save_model
    from videoar.runtime.pipeline import DTYPES, VideoAR
    from videoar.runtime.presets import preset
    from videoar.runtime.sampling import SamplingParams

    tokenizer, transformer = load_tokenizer(args.tokenizer), load_transformer(args.transformer)
    base = preset(args.preset)
    config = replace(
        base,
        tokenizer=tokenizer.config,
        transformer=transformer.config,
        guidance=base.guidance if args.guidance is None else args.guidance,
        temperature=base.temperature if args.temperature is None else args.temperature,
    )
    # A default that no request could use is refused here rather than at every request.
    SamplingParams(guidance=GuidanceSchedule.parse(config.guidance), temperature=config.temperature)
    model = VideoAR(config, transformer, tokenizer, _text_tokenizer(args.preset))
    save_model(args.out, model, DTYPES[args.dtype])
    print(args.out)

"""What each technique of the paper adds, in small: its ablation on moving digits.

    python -m videoar.training.ablation run --tokenizer runs/digits-tokenizer --out runs/ablation
    python -m videoar.training.ablation table --out runs/ablation

Every row of arXiv 2601.05966, Table 5, keeps what the row above it has and adds one technique; all
rows have the same data, network, steps and seeds. A run that is stopped goes on where it was; runs
that are done are not made again, so several processes may share the work with `--only`.
"""

import argparse
import json
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from videoar.runtime.aside import written_aside
from videoar.runtime.checkpoint import write_component
from videoar.runtime.config import TransformerConfig
from videoar.runtime.model_folder import load_tokenizer, load_transformer
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.presets import preset
from videoar.runtime.transformer import Transformer
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training import digits
from videoar.training.ablation_eval import (
    Clips,
    clip_lengths,
    generated_clips,
    real_clips,
    scores,
)
from videoar.training.cli_flags import add_fields, values_of
from videoar.training.corruption import FlipConfig
from videoar.training.features import TransNet, clip_features, load_transnet
from videoar.training.folder_config import DataConfig
from videoar.training.frame_mask import FrameMaskConfig
from videoar.training.judge import Judge, load_judge
from videoar.training.sources import Shape
from videoar.training.train_transformer import (
    TransformerStage,
    TransformerTraining,
    train_transformer,
)

TECHNIQUES = ("base", "rope", "corruption", "inheritance", "mask")
# A row that is not trained: other held-out clips in the place of generated ones.
REAL = "real"
ROWS = (REAL, *TECHNIQUES)
REFERENCE_SEED = 1000
TITLES = {
    "real": "held-out clips",
    "base": "base: 1D positions",
    "rope": "+ multi-scale temporal RoPE",
    "corruption": "+ time-dependent corruption",
    "inheritance": "+ error inheritance",
    "mask": "+ random frame mask",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationConfig:
    """The budget that every run has.

    Attributes:
        layers: decoder layers.
        heads: of 64; the width is theirs.
        clips: training clips of a seed, encoded once.
        steps: optimiser steps.
        batch: clips a step.
        rate: top of the learning rate.
        p_max: largest flip probability at frame 0, where there are flips.
        delta: its growth a frame.
        p_mask: share of hidden frames, where there is a mask.
        prompts: clips that are generated and judged, short and extended.
        references: held-out clips of the Fréchet distance.
    """

    layers: int = 4
    heads: int = 2
    clips: int = 4000
    steps: int = 1500
    batch: int = 32
    rate: float = 3e-3
    p_max: float = 0.15
    delta: float = 0.01
    p_mask: float = 0.1
    prompts: int = 100
    references: int = 300


def architecture_of(technique: str, config: AblationConfig) -> TransformerConfig:
    """The network of a row: ordinary 1D rotary positions in the first, the paper's elsewhere."""
    base, heads = preset("digits").transformer, config.heads
    small = replace(
        base,
        layers=config.layers,
        width=heads * base.head_dim,
        heads=heads,
        kv_heads=heads,
        mlp_width=176 * heads,
    )
    if technique == "base":
        return replace(small, positions="sequence", rope_theta=10_000.0)
    return small


def training_of(
    technique: str, config: AblationConfig, seed: int, latents: Path
) -> TransformerTraining:
    """The training of a row; `latents` is where encoded clips are kept."""
    level = TECHNIQUES.index(technique)
    flip = FlipConfig(p_max=0.0, delta=0.0, inherit=False)
    if level >= TECHNIQUES.index("corruption"):
        inherit = level >= TECHNIQUES.index("inheritance")
        flip = FlipConfig(p_max=config.p_max, delta=config.delta, inherit=inherit)
    mask = FrameMaskConfig(p_mask=config.p_mask if technique == "mask" else 0.0)
    stage = TransformerStage(
        name="clip",
        steps=config.steps,
        learning_rate=config.rate,
        warmup=100,
        shapes=(Shape(batch=config.batch),),
        data=(DataConfig(count=config.clips, path=str(latents)),),
        flip=flip,
        mask=mask,
    )
    return TransformerTraining(seed=seed, stages=(stage,))


def train_run(
    out: Path, tokenizer: VideoTokenizer, technique: str, seed: int, config: AblationConfig
) -> Transformer:
    """The trained network of a row, from `out` where it is there already."""
    folder = out / f"{technique}-{seed}"
    if (folder / "transformer" / "config.json").exists():
        return load_transformer(folder / "transformer")
    training = training_of(technique, config, seed, out / "latents")
    model = train_transformer(folder, tokenizer, architecture_of(technique, config), training)
    write_component(folder / "transformer", "transformer", model.config, model.state_dict())
    return model


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """What every run is scored with."""

    judge: Judge
    network: TransNet
    references: dict[str, torch.Tensor]

    @classmethod
    def load(cls, out: Path, config: AblationConfig) -> "Scoring":
        """Features of held-out clips are computed once and kept in `out`."""
        lengths, network = clip_lengths(preset("digits")), load_transnet()
        path = out / f"references-{config.references}.safetensors"
        if not path.exists():
            real = real_clips(lengths, config.references, REFERENCE_SEED).frames
            features = {name: clip_features(real[name], network) for name in lengths}
            with written_aside(path) as unfinished:
                save_file(features, unfinished)
        return cls(judge=load_judge(), network=network, references=load_file(path))

    def of(self, clips: Clips) -> dict[str, Any]:
        """See `ablation_eval.scores`."""
        return scores(clips, self.judge, self.network, self.references)


def run_one(
    out: Path,
    tokenizer: VideoTokenizer,
    technique: str,
    seed: int,
    config: AblationConfig,
    scoring: Scoring,
) -> dict[str, Any]:
    """Train and score one run, or score held-out clips; the result is kept in `out`.

    Raises:
        ValueError: `out` holds a result of another budget.
    """
    path = out / f"{technique}-{seed}.json"
    if path.exists():
        result = json.loads(path.read_text())
        if result["config"] != asdict(config):
            raise ValueError(f"{path}: made with {result['config']}, asked for {asdict(config)}")
        return result
    if technique == REAL:
        lengths = clip_lengths(preset("digits"))
        clips = real_clips(lengths, config.prompts, REFERENCE_SEED + 1 + seed)
    else:
        transformer = train_run(out, tokenizer, technique, seed, config)
        described = replace(preset("digits"), transformer=transformer.config)
        model = VideoAR(described, transformer, tokenizer, digits.text_tokenizer())
        clips = generated_clips(model, config.prompts, 1000 * (seed + 1))
    result = {"technique": technique, "seed": seed, "config": asdict(config), **scoring.of(clips)}
    with written_aside(path) as unfinished:
        unfinished.write_text(json.dumps(result, indent=1) + "\n")
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation over the seeds of every row."""
    columns = [
        ("prompts right, 17 frames", "short", "all"),
        ("digit", "short", "digit"),
        ("TFVD, 17 frames", "short", "tfvd"),
        ("digit and colour, last of 65 frames", "extended", "all"),
        ("TFVD, 65 frames", "extended", "tfvd"),
    ]
    lines = [
        "| | " + " | ".join(title for title, *_ in columns) + " | seeds |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for technique in ROWS:
        own = [result for result in results if result["technique"] == technique]
        if not own:
            continue
        cells = [_spread([run[length][name] for run in own]) for _, length, name in columns]
        lines.append(f"| {TITLES[technique]} | " + " | ".join(cells) + f" | {len(own)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    mean = statistics.fmean(values)
    digits_shown = 3 if abs(mean) < 10 else 1
    if len(values) < 2:
        return f"{mean:.{digits_shown}f}"
    return f"{mean:.{digits_shown}f} ± {statistics.stdev(values):.{digits_shown}f}"


def results_in(out: Path) -> list[dict[str, Any]]:
    """The results of the runs that are done, in the order of the table.

    Raises:
        ValueError: there are none.
    """
    paths = [path for t in ROWS for path in sorted(out.glob(f"{t}-*.json"))]
    if not paths:
        raise ValueError(f"{out}: holds no result of a run")
    return [json.loads(path.read_text()) for path in paths]


def main(arguments: list[str] | None = None) -> None:
    """The two commands."""
    parser = argparse.ArgumentParser(
        prog="python -m videoar.training.ablation", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    run = commands.add_parser("run", help="train and judge every row with every seed")
    text = "a trained video tokenizer (default: the shipped one)"
    run.add_argument("--tokenizer", default="digits", metavar="DIR", help=text)
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    text = "rows to make (default: all)"
    run.add_argument("--only", nargs="+", choices=ROWS, default=ROWS, help=text)
    run.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    add_fields(run, AblationConfig)
    show = commands.add_parser("table", help="mean and spread over the seeds, as Markdown")
    for command in (run, show):
        command.add_argument("--out", type=Path, required=True, metavar="DIR", help="of all runs")
    args = parser.parse_args(arguments)
    if args.command == "run":
        torch.set_num_threads(args.threads)
        args.out.mkdir(parents=True, exist_ok=True)
        config = AblationConfig(**values_of(args, AblationConfig))
        tokenizer, scoring = load_tokenizer(args.tokenizer), Scoring.load(args.out, config)
        for seed in args.seeds:
            for technique in args.only:
                result = run_one(args.out, tokenizer, technique, seed, config, scoring)
                print(json.dumps(result), flush=True)
    print(table(results_in(args.out)))


if __name__ == "__main__":
    main()

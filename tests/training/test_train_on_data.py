"""Training from folders and caches: resuming is exact, labels are checked, the commands work."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.runtime.checkpoint import write_component
from videoar.runtime.cli_arguments import Parser
from videoar.runtime.config import ModelConfig
from videoar.runtime.errors import CheckpointError, MediaError
from videoar.runtime.model_folder import save_tokenizer
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.presets import DIGITS_TOKENIZER, DIGITS_TRANSFORMER, PRESETS
from videoar.runtime.schedule import default_sizes
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training import train_tokenizer as tokenizer_module
from videoar.training import train_transformer as transformer_module
from videoar.training.cli import add_train
from videoar.training.corruption import FlipConfig
from videoar.training.digits import text_tokenizer as digits_text_tokenizer
from videoar.training.folder_config import FolderConfig, cache_sources, folder_sources
from videoar.training.sources import Shape
from videoar.training.token_cache import TokenCache
from videoar.training.train_tokenizer import TokenizerTraining, train_tokenizer
from videoar.training.train_transformer import (
    TransformerTraining,
    draw_generator,
    make_batch,
    make_clean_batch,
    train_transformer,
)
from videoar.training.video_folder import Bucket, ClipConfig, VideoFolder
from videoar.training.write_cache import CacheConfig, write_cache

SIZES = default_sizes(2, 2)
TOKENIZER = replace(
    DIGITS_TOKENIZER, channels=16, norm_groups=8, latent_dim=8, decoder_blocks=(1,) * 4
)
TRANSFORMER = replace(
    DIGITS_TRANSFORMER,
    layers=1,
    width=32,
    heads=1,
    kv_heads=1,
    mlp_width=64,
    latent_dim=8,
    sizes=SIZES,
    max_frames=2,
)
MODEL = ModelConfig(tokenizer=TOKENIZER, transformer=TRANSFORMER, height=32, width=32)
CLASSES = replace(
    MODEL, transformer=replace(TRANSFORMER, condition="class", vocab_size=3, max_text=1)
)
CLIPS = FolderConfig(mirror=0.5, workers=0)
TRAINING = TransformerTraining(
    image_steps=1, image_batch=2, clip_steps=6, clip_batch=2, optim={"accumulate": 2}
)
PLAIN = FlipConfig(p_max=0.0, delta=0.0)
TEXT = digits_text_tokenizer()


@pytest.fixture(scope="module")
def tokenizer() -> VideoTokenizer:
    torch.manual_seed(0)
    return VideoTokenizer(TOKENIZER).eval()


@pytest.fixture(scope="module")
def cache(
    mixed: Path, tokenizer: VideoTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[bool], Path]:
    """The folder's cache, with latents or bits alone."""

    def made(latents: bool) -> Path:
        out = tmp_path_factory.getbasetemp() / f"tokens-{latents}"
        bucket = Bucket(frames=5, height=32, width=32)
        config = CacheConfig(workers=0, latents=latents, views=2)
        write_cache(out, VideoFolder(mixed), tokenizer, SIZES, bucket, config)
        return out

    return made


def interrupt(module, name: str, monkeypatch, call: int) -> None:
    """Ctrl-C in the given call of a function of `module`; only that once."""
    calls, function = iter(range(10**6)), getattr(module, name)

    def stopped(*args, **kwargs):
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, stopped)


def check_resume(module, name: str, call: int, train: Callable[[Path], nn.Module], path, patch):
    """A run that is stopped in a call behind a saved state ends like one that is not."""
    patch.setattr(module, "Run", partial(module.Run, save_every=3))
    whole = train(path / "whole").state_dict()
    interrupt(module, name, patch, call)
    with pytest.raises(KeyboardInterrupt):
        train(path / "stopped")
    assert (path / "stopped" / "clip" / "state.safetensors").exists()
    resumed = train(path / "stopped").state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    start = train(path / "other").state_dict()
    assert all(torch.equal(whole[key], start[key]) for key in whole)


@pytest.mark.parametrize("kind", ["folder", "workers", "latents", "bits"])
def test_a_transformer_resumes_exactly(
    kind: str, mixed: Path, cache, tokenizer: VideoTokenizer, tmp_path: Path, monkeypatch
) -> None:
    config = TRAINING
    if kind in ("folder", "workers"):
        clips = replace(CLIPS, workers=2 * (kind == "workers"))
        source_of = folder_sources([mixed], clips, MODEL, tokenizer, TEXT)
    else:
        source_of = cache_sources(
            [cache(kind == "latents")], FolderConfig(), MODEL, tokenizer, TEXT
        )
        config = replace(config, flip=PLAIN) if kind == "bits" else config
    train = partial(
        train_transformer,
        tokenizer=tokenizer,
        architecture=TRANSFORMER,
        config=config,
        source_of=source_of,
    )
    # Two batches of frames, then two a step: the tenth batch of clips is in step 4.
    check_resume(transformer_module, "transformer_loss", 11, train, tmp_path, monkeypatch)


def test_a_tokenizer_resumes_exactly(mixed: Path, tmp_path: Path, monkeypatch) -> None:
    config = TokenizerTraining(
        image_steps=1,
        continuous_steps=0,
        image_batch=2,
        clip_steps=6,
        clip_batch=1,
        image_share=0.5,
    )
    train = partial(
        train_tokenizer,
        architecture=TOKENIZER,
        sizes=SIZES,
        config=config,
        source_of=folder_sources([mixed], CLIPS, MODEL),
        num_frames=MODEL.num_frames,
    )
    check_resume(tokenizer_module, "tokenizer_loss", 5, train, tmp_path, monkeypatch)


def test_classes_of_ucf(ucf: Path, tokenizer: VideoTokenizer, tmp_path: Path) -> None:
    source_of = folder_sources([ucf], replace(CLIPS, fps=25), CLASSES, tokenizer)
    config = replace(TRAINING, clip_steps=2)
    trained = train_transformer(
        tmp_path, tokenizer, CLASSES.transformer, config, source_of=source_of
    )
    assert all(value.isfinite().all() for value in trained.state_dict().values())
    few = replace(CLASSES, transformer=replace(CLASSES.transformer, vocab_size=2))
    with pytest.raises(ValueError, match=r"v_YoYo_g01_c01\.avi: class: 2, the model knows 0 to 1"):
        folder_sources([ucf], replace(CLIPS, fps=25), few, tokenizer)


def test_bits_alone_train_like_their_latents(cache, tokenizer: VideoTokenizer) -> None:
    tokens = TokenCache(cache(True), tokenizer)
    captions = [row["caption"] for row in tokens.rows[:4]]
    plain = replace(TRAINING, flip=PLAIN, dropout=0.5)
    batches = [
        make(of(range(4)), captions, TEXT, TRANSFORMER, plain, draw_generator(0, 1))
        for make, of in ((make_batch, tokens.latents), (make_clean_batch, tokens.bits))
    ]
    assert torch.equal(batches[0].targets, batches[1].targets)
    torch.testing.assert_close(batches[0].inputs, batches[1].inputs, rtol=1e-5, atol=1e-5)
    clean = bsq_quantize(tokens.latents(range(4)).float(), SIZES).targets
    assert torch.equal(batches[1].targets, clean)
    with pytest.raises(ValueError, match=r"flip\.p_max"):
        make_clean_batch(tokens.bits([0]), captions[:1], TEXT, TRANSFORMER, TRAINING, None)


def test_random_numbers_follow_seed_and_draw() -> None:
    drawn = {
        torch.rand(2, generator=draw_generator(seed, draw))[1].item()
        for seed in range(4)
        for draw in range(50)
    }
    assert len(drawn) == 200


def test_what_is_refused_before_the_first_step(
    mixed: Path, ucf: Path, cache, tokenizer: VideoTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"v_HammerThrow_g01_c01\.avi: caption: missing"):
        folder_sources([ucf], CLIPS, MODEL, tokenizer, TEXT)
    with pytest.raises(ValueError, match=r"0\.png: class: missing"):
        folder_sources([mixed], CLIPS, CLASSES, tokenizer)
    long = replace(MODEL, transformer=replace(TRANSFORMER, max_frames=7))
    with pytest.raises(MediaError, match="nothing fills a clip of 25x32x32"):
        folder_sources([mixed], CLIPS, long, tokenizer, TEXT)
    with pytest.raises(ValueError, match="25 frames needed, the longest has 5"):
        cache_sources([cache(True)], FolderConfig(), long, tokenizer, TEXT)
    for weights in ((1.0, 2.0), (0.0,)):
        with pytest.raises(ValueError, match="weights"):
            folder_sources([mixed], replace(CLIPS, weights=weights), MODEL, tokenizer, TEXT)
    with pytest.raises(ValueError, match="split"):
        folder_sources([mixed, ucf], replace(CLIPS, split="x"), MODEL, tokenizer, TEXT)
    with pytest.raises(ValueError, match="as they were cached"):
        cache_sources([cache(True)], CLIPS, MODEL, tokenizer, TEXT)
    torch.manual_seed(1)
    with pytest.raises(CheckpointError, match="made with tokenizer"):
        cache_sources([cache(True)], FolderConfig(), MODEL, VideoTokenizer(TOKENIZER), TEXT)
    copy = shutil.copytree(mixed, tmp_path / "copy")
    text = (copy / "captions.jsonl").read_text()
    (copy / "captions.jsonl").write_text(text.replace("a red 2", "a pink 2"))
    with pytest.raises(ValueError, match=r"2\.mp4: caption: prompt: unknown words \['pink'\]"):
        folder_sources([copy], CLIPS, MODEL, tokenizer, TEXT)


def test_a_mix_of_folders(mixed: Path, ucf: Path, tmp_path: Path) -> None:
    shutil.copytree(mixed, tmp_path / "pictures", ignore=shutil.ignore_patterns("*.mp4"))
    config = replace(CLIPS, weights=(1.0, 3.0, 50.0), fps=0)
    source_of = folder_sources([mixed, ucf, tmp_path / "pictures"], config, MODEL)
    frames, clips = Shape(frames=1, batch=1, share=1), Shape(frames=5, batch=2, share=3)
    batches = [source_of([frames, clips], 0).batch(step) for step in range(16)]
    lengths = [batch["frames"].shape[1] for batch in batches]
    # Pictures fill no clips: their share of those is the others'.
    assert (lengths.count(1), lengths.count(5)) == (4, 12)
    long = [b["captions"][0] is None for b in batches if b["frames"].shape[1] == 5]
    assert sum(long) == 9


def run(*words: object) -> None:
    parser = Parser(prog="videoar")
    add_train(parser.add_subparsers(required=True))
    args = parser.parse_args([str(word) for word in words])
    assert not args.run(args)


@pytest.fixture
def small_preset(monkeypatch) -> None:
    monkeypatch.setitem(PRESETS, "digits", MODEL)
    monkeypatch.setitem(PRESETS, "classes", CLASSES)


@pytest.mark.usefixtures("small_preset")
def test_commands_from_a_folder_to_a_transformer(mixed: Path, tmp_path: Path, capsys) -> None:
    steps = ["--image-steps", 1, "--image-batch", 2, "--clip-steps", 1, "--clip-batch", 2]
    data = ["--data", mixed, "--data-workers", 1]
    run("train", "tokenizer", "--out", tmp_path / "tok", *steps, *data)
    assert "8 files, 1 left out" in capsys.readouterr().err
    words = ["train", "cache", "--tokenizer", tmp_path / "tok", "--data", mixed]
    words += ["--out", tmp_path / "tokens", "--workers", 1, "--views", 2]
    run(*words)
    assert "10 clips of 5x32x32, 0 files could not be decoded" in capsys.readouterr().out
    run(*words)
    source = ["--tokenizer", tmp_path / "tok", *steps]
    cache = ["--cache", tmp_path / "tokens"]
    run("train", "transformer", "--out", tmp_path / "a", *source, *cache)
    run("train", "transformer", "--out", tmp_path / "b", *source, *data)
    for name in "ab":
        assert (tmp_path / name / "transformer" / "model.safetensors").exists()


@pytest.mark.usefixtures("small_preset")
def test_commands_with_classes(ucf: Path, tokenizer: VideoTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "tok" / "video_tokenizer", tokenizer)
    steps = ["--image-steps", 1, "--image-batch", 2, "--clip-steps", 1, "--clip-batch", 2]
    source = ["--tokenizer", tmp_path / "tok", "--preset", "classes", "--data", ucf]
    split = tmp_path / "trainlist01.txt"
    split.write_text("YoYo/v_YoYo_g01_c02.avi 3\nHammering/v_Hammering_g01_c01.avi 1\n")
    words = ["--data-fps", 25, "--data-split", split, "--data-workers", 0]
    run("train", "transformer", "--out", tmp_path / "a", *source, *steps, *words)
    parts = ["--tokenizer", tmp_path / "tok", "--transformer", tmp_path / "a"]
    run("train", "export", *parts, "--preset", "classes", "--out", tmp_path / "model")
    video = VideoAR.from_pretrained(tmp_path / "model").generate(class_id=2, guidance=1)
    assert video.frames.shape == (1, 5, 32, 32, 3)


@pytest.mark.usefixtures("small_preset")
@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--data", "nowhere"], MediaError, "nowhere: does not exist"),
        (["--cache", "nowhere"], CheckpointError, "nowhere"),
        (["--data-fps", "3"], ValueError, "--data: missing"),
        (["--preset", "classes"], ValueError, "--data: missing"),
        (["--preset", "none"], ValueError, "preset"),
        (["--data", "a", "--cache", "b"], ValueError, "not allowed with"),
    ],
)
def test_bad_commands(
    words: list[str], error: type, message: str, tokenizer: VideoTokenizer, tmp_path: Path
) -> None:
    write_component(
        tmp_path / "video_tokenizer", "video_tokenizer", TOKENIZER, tokenizer.state_dict()
    )
    with pytest.raises(error, match=message):
        run("train", "transformer", "--tokenizer", tmp_path, "--out", tmp_path / "out", *words)


def test_settings_have_no_second_default() -> None:
    assert FolderConfig().clip(MODEL) == ClipConfig(fps=MODEL.fps)
    assert CacheConfig().clip == ClipConfig()

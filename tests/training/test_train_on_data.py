"""Training from folders and caches: resuming is exact, labels are checked, the commands work."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.runtime.checkpoint import write_component
from videoar.runtime.cli import main
from videoar.runtime.cli_arguments import Parser
from videoar.runtime.config import ModelConfig
from videoar.runtime.errors import CheckpointError, MediaError
from videoar.runtime.model_folder import save_tokenizer
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.presets import DIGITS_TOKENIZER, DIGITS_TRANSFORMER, PRESETS
from videoar.runtime.schedule import default_sizes
from videoar.runtime.transformer import Transformer
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training import train_tokenizer as tokenizer_module
from videoar.training import train_transformer as transformer_module
from videoar.training.cli import add_train
from videoar.training.corruption import FlipConfig
from videoar.training.digits import text_tokenizer as digits_text_tokenizer
from videoar.training.folder_config import DataConfig, FolderConfig
from videoar.training.recipes import (
    TokenizerStage,
    TokenizerTraining,
    TransformerStage,
    TransformerTraining,
)
from videoar.training.run import draw_generator, row_generators
from videoar.training.sources import Shape, Source
from videoar.training.stage_data import StageData
from videoar.training.state import latest_state
from videoar.training.teacher_forcing import clean_history, make_batch
from videoar.training.token_cache import TokenCache
from videoar.training.train_tokenizer import train_tokenizer
from videoar.training.train_transformer import train_transformer
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
PLAIN = FlipConfig(p_max=0.0, delta=0.0)
IMAGE = TransformerStage(
    name="image", steps=1, learning_rate=1e-3, shapes=(Shape(frames=1, batch=2),), accumulate=2
)
CLIP = TransformerStage(
    name="clip", steps=6, learning_rate=1e-3, shapes=(Shape(batch=2),), accumulate=2
)
TRAINING = TransformerTraining(stages=(IMAGE, CLIP), save_every=3, workers=0)
TEXT = digits_text_tokenizer()


def folder(path: Path, **options: object) -> DataConfig:
    return DataConfig(source="folder", path=str(path), **options)


def tokens(path: Path, **options: object) -> DataConfig:
    return DataConfig(source="cache", path=str(path), **options)


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
    whole = train(path / "whole").state_dict()
    interrupt(module, name, patch, call)
    with pytest.raises(KeyboardInterrupt):
        train(path / "stopped")
    assert latest_state(path / "stopped" / "clip") is not None
    resumed = train(path / "stopped").state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    start = train(path / "other").state_dict()
    assert all(torch.equal(whole[key], start[key]) for key in whole)


@pytest.mark.parametrize("kind", ["folder", "workers", "latents", "bits"])
def test_a_transformer_resumes_exactly(
    kind: str, mixed: Path, cache, tokenizer: VideoTokenizer, tmp_path: Path, monkeypatch
) -> None:
    if kind in ("folder", "workers"):
        data = folder(mixed, mirror=0.5)
    else:
        data = tokens(cache(kind == "latents"))
    stages = [replace(s, flip=PLAIN if kind == "bits" else s.flip) for s in TRAINING.stages]
    config = replace(TRAINING, stages=tuple(stages), data=(data,), workers=2 * (kind == "workers"))
    train = partial(train_transformer, tokenizer=tokenizer, architecture=TRANSFORMER, config=config)
    # Two batches of frames, then two a step: the tenth batch of clips is in step 4.
    check_resume(transformer_module, "transformer_loss", 11, train, tmp_path, monkeypatch)


def test_a_tokenizer_resumes_exactly(mixed: Path, tmp_path: Path, monkeypatch) -> None:
    frames, clips = Shape(frames=1, batch=2, share=0.5), Shape(batch=1, share=0.5)
    image = TokenizerStage(
        name="image", form="2d", steps=1, learning_rate=1e-3, shapes=(Shape(frames=1, batch=2),)
    )
    clip = TokenizerStage(name="clip", steps=6, learning_rate=6e-4, shapes=(frames, clips))
    config = TokenizerTraining(
        stages=(image, clip), data=(folder(mixed, mirror=0.5),), save_every=3, workers=0
    )
    train = partial(train_tokenizer, model_config=MODEL, config=config)
    check_resume(tokenizer_module, "tokenizer_loss", 5, train, tmp_path, monkeypatch)


def open_source(
    data: tuple[DataConfig, ...],
    model: ModelConfig = MODEL,
    tokenizer: VideoTokenizer | None = None,
    shapes: tuple[Shape, ...] = CLIP.shapes,
) -> Source:
    config = replace(TRAINING, data=data)
    text = TEXT if model.transformer.condition == "text" else None
    opened = StageData(model=model, folder=Path("x"), tokenizer=tokenizer, text_tokenizer=text)
    return opened.open(config, replace(CLIP, shapes=shapes), 1)


def test_classes_of_ucf(ucf: Path, tokenizer: VideoTokenizer, tmp_path: Path) -> None:
    data = (folder(ucf, fps=25.0),)
    config = replace(TRAINING, stages=(replace(CLIP, steps=2),), data=data)
    trained = train_transformer(tmp_path, tokenizer, CLASSES.transformer, config)
    assert all(value.isfinite().all() for value in trained.state_dict().values())
    few = replace(CLASSES, transformer=replace(CLASSES.transformer, vocab_size=2))
    with pytest.raises(ValueError, match=r"v_YoYo_g01_c01\.avi: class: 2, the model knows 0 to 1"):
        open_source(data, few, tokenizer)


def test_bits_alone_train_like_their_latents(cache, tokenizer: VideoTokenizer) -> None:
    stored = TokenCache(cache(True), tokenizer)
    stage = replace(CLIP, flip=PLAIN, dropout=0.5)
    labels = {"captions": [row["caption"] for row in stored.rows[:4]], "sizes": SIZES}
    batches = [
        make_batch(values | labels, TEXT, TRANSFORMER, stage, row_generators(0, 1, range(4)))
        for values in ({"latents": stored.latents(range(4))}, {"bits": stored.bits(range(4))})
    ]
    assert torch.equal(batches[0].targets, batches[1].targets)
    assert torch.equal(batches[0].text_lengths, batches[1].text_lengths)
    torch.testing.assert_close(batches[0].inputs, batches[1].inputs, rtol=1e-5, atol=1e-5)
    clean = bsq_quantize(stored.latents(range(4)).float(), SIZES).targets
    assert torch.equal(batches[1].targets, clean)
    assert torch.equal(clean_history(clean, SIZES), batches[1].inputs)


def test_flips_need_latents(cache, tokenizer: VideoTokenizer, tmp_path: Path) -> None:
    stages = (replace(IMAGE, flip=PLAIN), CLIP)
    config = replace(TRAINING, stages=stages, data=(tokens(cache(False)),))
    with pytest.raises(
        ValueError, match=r"stages\[1\]\.flip\.p_max, delta: must be 0 for .*-False"
    ):
        train_transformer(tmp_path / "out", tokenizer, TRANSFORMER, config)
    assert not (tmp_path / "out").exists()


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
    def refuses(kind: type, message: str, *data: DataConfig, model: ModelConfig = MODEL) -> None:
        with pytest.raises(kind, match=message):
            open_source(data, model, tokenizer)

    refuses(ValueError, r"data\[0\]: .*v_HammerThrow_g01_c01\.avi: caption: missing", folder(ucf))
    refuses(ValueError, r"0\.png: class: missing", folder(mixed), model=CLASSES)
    refuses(MediaError, r"data\[0\]: nowhere: does not exist", folder(Path("nowhere")))
    (tmp_path / "empty").mkdir()
    refuses(MediaError, r"data\[0\]: .*empty", folder(tmp_path / "empty"))
    long = replace(MODEL, transformer=replace(TRANSFORMER, max_frames=7))
    text = r"stages\[1\]\.shapes: nothing fills a clip of 25x32x32; .*mixed"
    refuses(MediaError, text, folder(mixed), model=long)
    text = "nothing fills a clip of 25x32x32; .*tokens-True 5x32x32"
    refuses(MediaError, text, tokens(cache(True)), model=long)
    shared = folder(mixed, share=1.0)
    refuses(ValueError, r"data\[1\]\.share: missing", shared, folder(ucf))
    refuses(ValueError, r"data\[0\]\.share: missing", DataConfig(), folder(mixed))
    refuses(ValueError, r"data\[0\]: source: the moving digits are 64x64", DataConfig())
    torch.manual_seed(1)
    with pytest.raises(CheckpointError, match=r"data\[0\]: .*made with tokenizer"):
        open_source((tokens(cache(True)),), MODEL, VideoTokenizer(TOKENIZER))
    with pytest.raises(ValueError, match=r"data\[0\]: source: a cache holds no frames"):
        open_source((tokens(cache(True)),), MODEL)
    copy = shutil.copytree(mixed, tmp_path / "copy")
    text = (copy / "captions.jsonl").read_text()
    (copy / "captions.jsonl").write_text(text.replace("a red 2", "a pink 2"))
    refuses(ValueError, r"2\.mp4: caption: prompt: unknown words \['pink'\]", folder(copy))


def test_a_mix_of_folders(mixed: Path, ucf: Path, tmp_path: Path) -> None:
    pictures = shutil.copytree(mixed, tmp_path / "pictures", ignore=shutil.ignore_patterns("*.mp4"))
    data = (folder(mixed, share=1.0), folder(ucf, share=3.0), folder(pictures, share=50.0))
    data = tuple(replace(entry, fps=0.0) for entry in data)
    frames, clips = Shape(frames=1, batch=1, share=1), Shape(frames=5, batch=2, share=3)
    source = open_source(data, shapes=(frames, clips))
    batches = [source.batch(step) for step in range(16)]
    lengths = [batch["frames"].shape[1] for batch in batches]
    # Pictures fill no clips: their share of those is the others'.
    assert (lengths.count(1), lengths.count(5)) == (4, 12)
    long = [b["captions"][0] is None for b in batches if b["frames"].shape[1] == 5]
    assert sum(long) == 9
    again = open_source(data, shapes=(frames, clips)).batch(11)
    assert torch.equal(again["frames"], batches[11]["frames"])


def test_folders_and_caches_take_turns(
    mixed: Path, cache, tokenizer: VideoTokenizer, tmp_path: Path
) -> None:
    """By default as they have files and clips: 8 and 10."""
    data = (folder(mixed), tokens(cache(True)))
    source = open_source(data, MODEL, tokenizer)
    batches = [source.batch(step) for step in range(18)]
    assert sum("bits" in batch for batch in batches) == 10
    assert all(batch["latents"].shape == (2, 8, 2, 2, 2) for batch in batches)
    config = replace(TRAINING, stages=(CLIP,), data=data)
    trained = train_transformer(tmp_path, tokenizer, TRANSFORMER, config)
    assert all(value.isfinite().all() for value in trained.state_dict().values())


def test_sizes_share_a_folder_by_aspect_ratio(mixed: Path, tmp_path: Path) -> None:
    """Videos are 32x48 and pictures 40x40: each goes where it fits."""
    wide, square = Shape(frames=1, batch=1, height=32, width=48), Shape(frames=1, batch=1)
    source = open_source((folder(mixed),), shapes=(wide, square))
    found = Counter(tuple(source.batch(step)["frames"].shape[2:4]) for step in range(16))
    assert found == {(32, 48): 12, (32, 32): 4}


def test_two_resolutions_in_two_stages(
    mixed: Path, tokenizer: VideoTokenizer, tmp_path: Path
) -> None:
    low = replace(IMAGE, name="low", shapes=(Shape(frames=5, batch=2, height=16, width=16),))
    config = replace(TRAINING, stages=(low, replace(CLIP, steps=1)), data=(folder(mixed),))
    train_transformer(tmp_path, tokenizer, TRANSFORMER, config)
    (line,) = map(json.loads, (tmp_path / "low" / "log.jsonl").read_text().splitlines())
    assert [len(row) for row in line["bits"]] == [1, 1]
    (line,) = map(json.loads, (tmp_path / "clip" / "log.jsonl").read_text().splitlines())
    assert [len(row) for row in line["bits"]] == [2, 2]


def save_transformer(path: Path, model: Transformer) -> str:
    write_component(path / "transformer", "transformer", model.config, model.state_dict())
    return str(path)


def test_a_run_starts_from_another_ones_transformer(
    mixed: Path, tokenizer: VideoTokenizer, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    short = Transformer(replace(TRANSFORMER, max_frames=1, sizes=default_sizes(1, 1)))
    start = save_transformer(tmp_path / "short", short)
    # A learning rate of next to nothing: the weights stay where they start.
    stage = replace(CLIP, steps=1, learning_rate=1e-12)
    config = replace(TRAINING, stages=(stage,), data=(folder(mixed),), start=start)
    trained = train_transformer(tmp_path / "a", tokenizer, TRANSFORMER, config).state_dict()
    for name, value in short.state_dict().items():
        torch.testing.assert_close(trained[name][: len(value)], value, msg=name)
    assert len(trained["embed_scale.weight"]) == 2
    for changes, message in (
        ({"width": 64, "mlp_width": 32}, r"other: width: 64, this run's model has 32"),
        ({"max_frames": 3}, r"other: max_frames: 3, this run's model has 2"),
        ({"sizes": default_sizes(4, 4)}, r"other: sizes: "),
        ({"rope_theta": 50.0}, r"other: rope_theta: 50\.0"),
    ):
        other = save_transformer(tmp_path / "other", Transformer(replace(TRANSFORMER, **changes)))
        again = replace(config, start=other)
        with pytest.raises(CheckpointError, match=message):
            train_transformer(tmp_path / "b", tokenizer, TRANSFORMER, again)
        shutil.rmtree(other)


def run(*words: object) -> None:
    parser = Parser(prog="videoar")
    add_train(parser.add_subparsers(required=True))
    args = parser.parse_args([str(word) for word in words])
    assert not args.run(args)


@pytest.fixture
def small_preset(monkeypatch) -> None:
    monkeypatch.setitem(PRESETS, "digits", MODEL)
    monkeypatch.setitem(PRESETS, "classes", CLASSES)


def short(*more: str) -> list[str]:
    """Settings of the built-in recipes that make their stages one step each."""
    settings = [f"stages[{n}].{name}" for n in (0, 1) for name in ("steps=1", "shapes[0].batch=2")]
    return [word for setting in [*settings, "workers=1", *more] for word in ("--set", setting)]


@pytest.mark.usefixtures("small_preset")
def test_commands_from_a_folder_to_a_transformer(mixed: Path, tmp_path: Path, capsys) -> None:
    steps, data = short("stages[0].continuous_steps=0"), ["--data", mixed]
    run("train", "tokenizer", "--out", tmp_path / "tok", *steps, *data)
    assert "8 files, 1 left out" in capsys.readouterr().err
    words = ["train", "cache", "--tokenizer", tmp_path / "tok", "--data", mixed]
    words += ["--out", tmp_path / "tokens", "--workers", 1, "--views", 2]
    run(*words)
    assert "10 clips of 5x32x32, 0 files could not be decoded" in capsys.readouterr().out
    run(*words)
    source = ["--tokenizer", tmp_path / "tok", *short()]
    cache = ["--cache", tmp_path / "tokens"]
    run("train", "transformer", "--out", tmp_path / "a", *source, *cache)
    run("train", "transformer", "--out", tmp_path / "b", *source, *data)
    for name in "ab":
        assert (tmp_path / name / "transformer" / "model.safetensors").exists()
    again = ["--start", tmp_path / "a", "--out", tmp_path / "c"]
    run("train", "transformer", *again, *source, *cache, "--seed", 3)


@pytest.mark.usefixtures("small_preset")
def test_commands_with_classes(ucf: Path, tokenizer: VideoTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "tok" / "video_tokenizer", tokenizer)
    source = ["--tokenizer", tmp_path / "tok", "--preset", "classes", "--data", ucf]
    split = tmp_path / "trainlist01.txt"
    split.write_text("YoYo/v_YoYo_g01_c02.avi 3\nHammering/v_Hammering_g01_c01.avi 1\n")
    words = short("data[0].fps=25", f"data[0].split={split}", "workers=0")
    run("train", "transformer", "--out", tmp_path / "a", *source, *words)
    parts = ["--tokenizer", tmp_path / "tok", "--transformer", tmp_path / "a"]
    run("train", "export", *parts, "--preset", "classes", "--out", tmp_path / "model")
    video = VideoAR.from_pretrained(tmp_path / "model").generate(class_id=2, guidance=1)
    assert video.frames.shape == (1, 5, 32, 32, 3)


@pytest.mark.usefixtures("small_preset")
@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--data", "nowhere"], MediaError, r"data\[0\]: nowhere: does not exist"),
        (["--cache", "nowhere"], CheckpointError, r"data\[0\]: nowhere"),
        (["--set", "data[0].fps=3.0"], ValueError, r"^data\[0\]\.fps: for folders alone"),
        (["--preset", "classes"], ValueError, r"^stages\[0\]\.data\[0\]: source: the moving"),
        (["--preset", "none"], ValueError, "^preset: "),
        (["--data", "a", "--cache", "b"], ValueError, "not allowed with"),
        (["--config", "nowhere.toml"], ValueError, r"^nowhere\.toml: does not exist"),
        (
            ["--start", "nowhere", "--data", "{mixed}"],
            CheckpointError,
            "^start: nowhere: does not exist",
        ),
        (["--set", "stages[1].step=3"], ValueError, r"^stages\[1\]\.step: unknown field; did you"),
    ],
)
def test_bad_commands(
    words: list[str],
    error: type,
    message: str,
    mixed: Path,
    tokenizer: VideoTokenizer,
    tmp_path: Path,
) -> None:
    write_component(
        tmp_path / "video_tokenizer", "video_tokenizer", TOKENIZER, tokenizer.state_dict()
    )
    words = [word.format(mixed=mixed) for word in words]
    with pytest.raises(error, match=message):
        run("train", "transformer", "--tokenizer", tmp_path, "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("small_preset")
def test_a_config_file_is_named(tokenizer: VideoTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "video_tokenizer", tokenizer)
    path = tmp_path / "run.toml"
    stage = '[[stages]]\nname = "a"\nsteps = 1\nlearning_rate = 1e-3\n'
    path.write_text(f"{stage}shapes = [{{ frames = 4, batch = 1 }}]\n")
    words = ["--tokenizer", tmp_path, "--out", tmp_path / "out", "--config", path]
    with pytest.raises(
        ValueError, match=r"run\.toml: stages\[0\]\.shapes\[0\]\.frames: must be 1 \+"
    ):
        run("train", "transformer", *words)
    text = r"run\.toml: stages\[0\]\.data\[0\]: x: does not exist"
    data = "stages[0].data=[{source='folder', path='x'}]"
    with pytest.raises(MediaError, match=text):
        run("train", "transformer", *words, "--set", data, "--set", "stages[0].shapes[0].frames=5")


@pytest.mark.usefixtures("small_preset")
def test_a_loss_that_is_no_number_ends_the_command(
    mixed: Path, tokenizer: VideoTokenizer, tmp_path: Path, monkeypatch, capsys
) -> None:
    save_tokenizer(tmp_path / "video_tokenizer", tokenizer)
    calls, loss_of = iter(range(100)), transformer_module.transformer_loss

    def broken(*args):
        loss, logits = loss_of(*args)
        return (loss * float("nan") if next(calls) == 3 else loss), logits

    monkeypatch.setattr(transformer_module, "transformer_loss", broken)
    words = ["train", "transformer", "--tokenizer", tmp_path, "--out", tmp_path / "out"]
    words += ["--data", mixed, *short("stages[1].steps=4", "save_every=1")]
    words = [str(word) for word in words]
    assert main(words) == 1
    message = "error: transformer clip: loss is nan at step 2 (batch 2)"
    assert message in capsys.readouterr().err
    assert latest_state(tmp_path / "out" / "clip").name.endswith("2")
    # The state is good: without the trouble the run goes on from it.
    assert main(words) == 0
    assert (tmp_path / "out" / "transformer" / "model.safetensors").exists()


def test_settings_have_no_second_default() -> None:
    assert FolderConfig().clip(MODEL.fps) == ClipConfig(fps=MODEL.fps)
    assert CacheConfig().clip == ClipConfig()

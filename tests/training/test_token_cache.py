"""Token caches: what is stored, how writing resumes, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.runtime.errors import CheckpointError, MediaError
from videoar.runtime.presets import DIGITS_TOKENIZER
from videoar.runtime.schedule import default_sizes
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training import write_cache as module
from videoar.training.sources import encode
from videoar.training.token_cache import CacheSource, TokenCache, shard_path, tokenizer_hash
from videoar.training.video_folder import Bucket, ClipConfig, VideoFolder
from videoar.training.write_cache import CacheConfig, write_cache

SMALL = replace(
    DIGITS_TOKENIZER, channels=16, norm_groups=8, latent_dim=40, decoder_blocks=(1,) * 4
)
SIZES = default_sizes(2, 2)
BUCKET = Bucket(frames=5, height=32, width=32)
CONFIG = CacheConfig(
    views=2, shard_clips=4, batch=2, workers=0, clip=ClipConfig(fps=8, mirror=0.5), seed=3
)


@pytest.fixture(scope="module")
def tokenizer() -> VideoTokenizer:
    torch.manual_seed(0)
    return VideoTokenizer(SMALL).eval()


def write(out: Path, folder: Path, tokenizer: VideoTokenizer, **changes) -> dict[str, str]:
    config = replace(CONFIG, **changes)
    return write_cache(out, VideoFolder(folder), tokenizer, SIZES, BUCKET, config)


@pytest.fixture(scope="module")
def cache(mixed: Path, tokenizer: VideoTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cache")
    assert write(out, mixed, tokenizer) == {}
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_tokens_are_those_of_the_encoder(
    mixed: Path, cache: Path, tokenizer: VideoTokenizer
) -> None:
    names = ["config.json", *(f"shard-{n:05d}.safetensors" for n in range(3))]
    assert list(contents(cache)) == names
    tokens, folder = TokenCache(cache, tokenizer), VideoFolder(mixed)
    (members,) = folder.split([BUCKET], 8)
    assert [row["epoch"] for row in tokens.rows] == [0] * 5 + [1] * 5
    for clip, row in enumerate(tokens.rows):
        number = members[clip % 5]
        assert row["file"] == folder.items[number].name
        assert row["caption"] == folder.items[number].caption
        frames = folder.read(number, BUCKET, CONFIG.clip, CONFIG.seed, row["epoch"])
        latents = encode(tokenizer, torch.from_numpy(frames)[None])
        # Another batch size changes the last bit of a product, and so a bit near zero.
        close = torch.isclose(tokens.latents([clip]), latents, rtol=0.05, atol=0.05)
        assert close.float().mean() > 0.99
        bits = bsq_quantize(tokens.latents([clip]).float(), SIZES).bits
        assert torch.equal(tokens.bits([clip]), bits)
    assert tokens.bits([0, 9, 4]).shape == (3, 2, 5, 40)


def test_a_frame_alone_is_the_first_of_a_clip(
    mixed: Path, cache: Path, tokenizer: VideoTokenizer
) -> None:
    tokens = TokenCache(cache, tokenizer)
    assert torch.equal(tokens.bits([3, 1], 1), tokens.bits([3, 1])[:, :1])
    batch = CacheSource([(tokens, 1.0)], 4, frames=1).batch(5)
    assert batch["latents"].shape == (4, 40, 1, 2, 2)
    assert batch["bits"].shape == (4, 1, 5, 40)
    with pytest.raises(ValueError, match="1 to 2"):
        CacheSource([(tokens, 1.0)], 4, frames=3)


def test_batches_of_a_cache(cache: Path) -> None:
    tokens = TokenCache(cache)
    source = CacheSource([(tokens, 1.0)], 5, seed=1)
    seen = [text for step in range(2) for text in source.batch(step)["captions"]]
    assert sorted(seen) == sorted(row["caption"] for row in tokens.rows)
    halves = [CacheSource([(tokens, 1.0)], 4, 1, rank=r, world_size=2).batch(7) for r in (0, 1)]
    whole = CacheSource([(tokens, 1.0)], 4, 1).batch(7)
    assert torch.equal(torch.cat([half["bits"] for half in halves]), whole["bits"])


def test_bits_alone(mixed: Path, cache: Path, tokenizer: VideoTokenizer, tmp_path: Path) -> None:
    write(tmp_path / "bits", mixed, tokenizer, latents=False)
    bits = TokenCache(tmp_path / "bits", tokenizer)
    assert torch.equal(bits.bits(range(10)), TokenCache(cache).bits(range(10)))
    assert "latents" not in CacheSource([(bits, 1.0)], 2).batch(0)
    with pytest.raises(CheckpointError, match="bits alone"):
        bits.latents([0])
    with safe_open(shard_path(tmp_path / "bits", 0), "pt") as file:
        assert list(file.keys()) == ["words"]
        assert file.get_tensor("words").shape == (4, 2, 5, 2)


def test_an_interrupted_cache_goes_on(
    mixed: Path, cache: Path, tokenizer: VideoTokenizer, tmp_path: Path, monkeypatch
) -> None:
    out, save = tmp_path / "cache", module.save_file

    def killed(tensors, path, metadata):
        save(tensors, path, metadata)
        if json.loads(metadata["content"])["shard"].endswith(" 1"):
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        write(out, mixed, tokenizer)
    assert not shard_path(out, 1).exists()
    with pytest.raises(CheckpointError, match="1 of 3 shards"):
        TokenCache(out, tokenizer)
    first = shard_path(out, 0).stat().st_mtime_ns
    monkeypatch.setattr(module, "save_file", save)
    write(out, mixed, tokenizer)
    assert shard_path(out, 0).stat().st_mtime_ns == first
    assert contents(out) == contents(cache)
    shard = shard_path(out, 2)
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="shard-00002"):
        TokenCache(out, tokenizer)
    shutil.copy(shard_path(out, 0), shard_path(out, 1))
    with pytest.raises(CheckpointError, match="is not shard 1"):
        TokenCache(out, tokenizer)
    write(out, mixed, tokenizer)
    assert contents(out) == contents(cache)


def test_another_tokenizer_is_refused(mixed: Path, cache: Path, tokenizer: VideoTokenizer) -> None:
    torch.manual_seed(1)
    other = VideoTokenizer(SMALL).eval()
    hashes = f"{tokenizer_hash(tokenizer)}.*{tokenizer_hash(other)}"
    with pytest.raises(CheckpointError, match=hashes):
        TokenCache(cache, other)
    with pytest.raises(ValueError, match="tokenizer: the cache there has"):
        write(cache, mixed, other)
    # The decoder does not decide about tokens.
    other.load_state_dict(tokenizer.state_dict())
    with torch.no_grad():
        other.decoder.conv_in.conv.weight.add_(1)
    assert tokenizer_hash(other) == tokenizer_hash(tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"views": 3}, "views"), ({"seed": 4}, "seed"), ({"latents": False}, "latents")],
)
def test_another_cache_is_left_alone(
    mixed: Path, cache: Path, tokenizer: VideoTokenizer, changes: dict, message: str
) -> None:
    before = contents(cache)
    with pytest.raises(ValueError, match=rf"config\.json: {message}: "):
        write(cache, mixed, tokenizer, **changes)
    with pytest.raises(ValueError, match="something else"):
        write(mixed, mixed, tokenizer)
    assert contents(cache) == before


def test_broken_files_are_left_out(mixed: Path, tokenizer: VideoTokenizer, tmp_path: Path) -> None:
    folder = shutil.copytree(mixed, tmp_path / "data")
    scanned = VideoFolder(folder)
    (folder / "videos" / "1.mp4").write_bytes(b"broken")
    broken = write_cache(tmp_path / "out", scanned, tokenizer, SIZES, BUCKET, CONFIG)
    assert broken.keys() == {"videos/1.mp4"}
    tokens = TokenCache(tmp_path / "out", tokenizer)
    assert len(tokens.rows) == 8
    assert tokens.bits(range(8)).shape == (8, 2, 5, 40)
    again = write_cache(tmp_path / "out", scanned, tokenizer, SIZES, BUCKET, CONFIG)
    assert again == broken


def test_what_cannot_be_cached(mixed: Path, tokenizer: VideoTokenizer, tmp_path: Path) -> None:
    folder = VideoFolder(mixed)
    for bucket, message in (
        (replace(BUCKET, frames=4), "num_frames"),
        (replace(BUCKET, height=33), "height"),
        (replace(BUCKET, height=64), "sizes"),
    ):
        with pytest.raises(ValueError, match=message):
            write_cache(tmp_path, folder, tokenizer, SIZES, bucket, CONFIG)
    with pytest.raises(MediaError, match="nothing fills"):
        write_cache(tmp_path, folder, tokenizer, SIZES, replace(BUCKET, frames=65), CONFIG)
    assert list(tmp_path.iterdir()) == []
    for values in ({"views": 0}, {"batch": 3}, {"shard_clips": 0}):
        with pytest.raises(ValueError, match=next(iter(values))):
            replace(CONFIG, **values)


def test_a_plan_is_read_strictly(cache: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(cache, tmp_path / "copy")
    plan = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(plan | {"colour": 3}))
    with pytest.raises(CheckpointError, match="colour"):
        TokenCache(copy)
    (copy / "config.json").write_text(json.dumps(plan | {"views": 1, "files": 10}))
    with pytest.raises(CheckpointError, match="is not shard 0"):
        TokenCache(copy)

"""`VideoAR` end to end on tiny random weights: what a result may and may not depend on."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from videoar.runtime.config import ModelConfig
from videoar.runtime.errors import CapacityError, CheckpointError
from videoar.runtime.executor import ModelExecutor
from videoar.runtime.model_folder import load_tokenizer, save_model
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.plan import EngineSettings, MemoryPlan
from videoar.runtime.presets import PRESETS
from videoar.runtime.text import byte_tokenizer, encode_prompt

PROMPTS = ["a red 3 moving left", "a green 7 moving up slowly", "blue five standing still"]


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> VideoAR:
    torch.set_num_threads(1)
    return VideoAR.from_pretrained(tiny_folder)


def test_batched_equals_single(model: VideoAR) -> None:
    together = model.generate(PROMPTS, seed=[4, 5, 6], num_frames=9, guidance=2)
    for i, prompt in enumerate(PROMPTS):
        alone = model.generate(prompt, seed=4 + i, num_frames=9, guidance=2)
        assert np.array_equal(alone.frames[0], together.frames[i]), prompt
    assert together.seeds == (4, 5, 6)
    counted = model.generate(prompts=PROMPTS, seed=4, num_frames=9, guidance=2)
    assert np.array_equal(counted.frames, together.frames)


def test_more_videos_at_once_take_the_place_of_fewer(tiny_folder: Path) -> None:
    model = VideoAR.from_pretrained(tiny_folder)
    model.generate(PROMPTS[0], num_frames=1)
    (one,) = model._idle
    model.generate(PROMPTS, num_frames=1)
    (three,) = model._idle
    assert (one.slots, three.slots) == (1, 3)
    assert not hasattr(one, "state")
    model.generate(PROMPTS[0], num_frames=1)
    assert model._idle == [three]
    # While the three slots are taken, another executor is made.
    stream = model.stream(PROMPTS[0], num_frames=5)
    next(stream)
    model.generate(PROMPTS[1], num_frames=1)
    list(stream)
    # Nobody else is left now, so one stays: the larger.
    assert model._idle == [three]
    model.generate(PROMPTS * 3, num_frames=1)
    assert [executor.slots for executor in model._idle] == [8]


def test_as_many_at_once_as_fit(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = VideoAR.from_pretrained(tiny_folder)
    expected = model.generate(PROMPTS, seed=4, num_frames=5).frames
    slots = [MemoryPlan.of(EngineSettings(config=model.config, slots=n)).created for n in (1, 2, 3)]

    live = []

    class Counted(ModelExecutor):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            live.append(self.slots)

        def close(self) -> None:
            super().close()
            live.remove(self.slots)

    def available(device: object) -> int:
        return slots[2] - 1 - sum(slots[count - 1] for count in live)

    monkeypatch.setattr("videoar.runtime.executor.ModelExecutor", Counted)
    monkeypatch.setattr("videoar.runtime.memory.available_bytes", available)
    monkeypatch.setattr("videoar.runtime.plan.available_bytes", available)
    small = VideoAR.from_pretrained(tiny_folder)
    small.generate(PROMPTS[0], num_frames=1)
    assert np.array_equal(small.generate(PROMPTS, seed=4, num_frames=5).frames, expected)
    (two,) = small._idle
    assert two.slots == 2
    assert np.array_equal(small.generate(PROMPTS, seed=4, num_frames=5).frames, expected)
    assert small._idle == [two]
    slots[2] = slots[1] + slots[0]
    with pytest.raises(CapacityError, match="1 slot with a window of 4 frames on cpu; largest"):
        VideoAR.from_pretrained(tiny_folder).generate(PROMPTS, num_frames=1)


def test_stream_equals_generate(model: VideoAR) -> None:
    steps = []
    seconds = []

    def on_step(frame: int, scale: int, took: float) -> None:
        steps.append((frame, scale))
        seconds.append(took)

    parts = list(model.stream(PROMPTS[0], seed=3, num_frames=13, on_step=on_step))
    tau, scales = model.config.tokenizer.temporal_compression, model.config.transformer.sizes
    assert [len(part) for part in parts] == [1] + [tau] * (12 // tau)
    whole = model.generate(PROMPTS[0], seed=3, num_frames=13)
    assert np.array_equal(np.concatenate(parts), whole.frames[0])
    assert steps == [(t, k) for t in range(1 + 12 // tau) for k in range(len(scales))]
    assert whole.timings["steps"] == len(steps)
    assert min(seconds) > 0
    assert whole.frames.dtype == np.uint8
    assert whole.frames.shape[1] == 13


def test_seed_prompt_and_guidance_matter(model: VideoAR) -> None:
    base = model.generate(PROMPTS[0], seed=1, num_frames=5).frames
    assert np.array_equal(base, model.generate(PROMPTS[0], seed=1, num_frames=5).frames)
    assert not np.array_equal(base, model.generate(PROMPTS[0], seed=2, num_frames=5).frames)
    assert not np.array_equal(base, model.generate(PROMPTS[1], seed=1, num_frames=5).frames)
    guided = model.generate(PROMPTS[0], seed=1, num_frames=5, guidance=30).frames
    assert not np.array_equal(base, guided)


def test_greedy_ignores_the_seed(model: VideoAR) -> None:
    one = model.generate(PROMPTS[0], seed=1, num_frames=5, temperature=0).frames
    assert np.array_equal(
        one, model.generate(PROMPTS[0], seed=2, num_frames=5, temperature=0).frames
    )


def test_longer_clips_begin_like_shorter_ones(model: VideoAR) -> None:
    """Beyond the trained length the ring goes round; what came before does not change."""
    frames = model.config.num_frames
    tau = model.config.tokenizer.temporal_compression
    short = model.generate(PROMPTS[0], seed=1, num_frames=frames, guidance=2).frames
    long = model.generate(PROMPTS[0], seed=1, num_frames=frames + 3 * tau, guidance=2).frames
    assert long.shape[1] == frames + 3 * tau
    assert np.array_equal(long[:, :frames], short)


def test_words_that_differ_in_case_and_punctuation(model: VideoAR) -> None:
    plain = model.generate("a red 3 moving left", num_frames=1).frames
    assert np.array_equal(plain, model.generate("  A Red 3, moving LEFT. ", num_frames=1).frames)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 16}, "num_frames: must be 1 \\+ 4n, got 16; nearest: 13 or 17"),
        ({"num_frames": 0}, "num_frames"),
        ({"guidance": -1}, "guidance: must be 0 or more"),
        ({"guidance": 1e39}, r"guidance: must be at most 1e\+06, got 1e\+39; nearest: 1e\+06"),
        ({"guidance": 10**400}, "guidance: expected a number, constant:S"),
        ({"guidance": "falling:3:1e300"}, "guidance: must be at most"),
        ({"temperature": -0.5}, "temperature: must be 0 or more"),
        ({"temperature": 1e39}, "temperature: must be at most"),
        ({"temperature": "warm"}, "temperature: expected a number, got 'warm'"),
        ({"temperature": True}, "temperature: expected a number, got True"),
        ({"on_step": 3}, "on_step: expected a function, got 3"),
        ({"temperature": float("nan")}, "temperature"),
        ({"seed": -1}, "seed: expected 0"),
        ({"seed": 2**63}, "seed"),
        ({"seed": [1, 2]}, "seed: expected 1, one a video, got 2"),
        ({"seed": 1.5}, "seed"),
        ({"class_id": 3}, "prompt: this model takes a prompt"),
        ({"prompts": ["a"]}, "prompt: give prompt or prompts"),
    ],
)
def test_bad_arguments(model: VideoAR, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate("a red 3 moving left", **arguments)


def test_bad_prompts(model: VideoAR) -> None:
    with pytest.raises(ValueError, match=r"prompt: unknown words \['purple'\]; .*yellow"):
        model.generate("a purple 3")
    with pytest.raises(ValueError, match="prompt: 24 tokens, the model takes at most 11"):
        model.generate("a red 3 moving left slowly " * 4)
    with pytest.raises(ValueError, match=r"prompt: no Unicode text, '\\udcff' at 6"):
        model.generate(b"a red \xff".decode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="prompts: expected at least one"):
        model.generate([])
    with pytest.raises(ValueError, match="prompt: expected a string"):
        model.generate([3])
    with pytest.raises(ValueError, match="prompt: this model takes a prompt"):
        model.generate()
    with pytest.raises(ValueError, match="stream makes one video"):
        model.stream(PROMPTS)
    with pytest.raises(ValueError, match="num_frames"):
        model.stream(PROMPTS[0], num_frames=2)


def test_round_trip_in_half_precision(model: VideoAR, tmp_path: Path) -> None:
    save_model(tmp_path / "copy", model, torch.float16)
    copy = VideoAR.from_pretrained(tmp_path / "copy")
    assert copy.config == model.config
    for name, value in model.transformer.state_dict().items():
        assert torch.equal(copy.transformer.state_dict()[name], value.half().float()), name
    assert copy.generate(PROMPTS[0], num_frames=5).frames.shape[1] == 5
    tokenizer = load_tokenizer(tmp_path / "copy" / "video_tokenizer")
    assert tokenizer.config == model.config.tokenizer


def break_index(folder: Path, old: str, new: str) -> None:
    path = folder / "model_index.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"fps"', '"rate"', "fps: missing|rate: unknown"),
        ('"components"', '"extra": 1, "components"', "extra: unknown field"),
        ('"fps": 8', '"fps": "8"', "fps: expected int"),
        ('"fps": 8', '"fps": 0', "fps: 1 to 1000, got 0"),
        ('"fps": 8', '"fps": 1000000000', "fps: 1 to 1000"),
        ('"temperature": ', '"temperature": -', "temperature: must be 0 or more"),
        ('"temperature": 1.0', '"temperature": 1e999', "temperature: must be at most"),
        ('"temperature": 1.0', f'"temperature": 1{"0" * 400}', "temperature: out of range"),
        ('"guidance": "', '"guidance": "x', "guidance: kind must be one of"),
        ('"guidance": "constant:3"', '"guidance": "constant:1e39"', "guidance: must be at most"),
        ('"height": ', '"height": 1', "height|sizes"),
        ('"text_tokenizer": {}', '"other": {}', "components"),
    ],
)
def test_broken_index(model: VideoAR, tmp_path: Path, old: str, new: str, message: str) -> None:
    save_model(tmp_path / "m", model)
    break_index(tmp_path / "m", old, new)
    with pytest.raises(CheckpointError, match=message):
        VideoAR.from_pretrained(tmp_path / "m")


def test_broken_text_tokenizer(model: VideoAR, tmp_path: Path) -> None:
    save_model(tmp_path / "m", model)
    path = tmp_path / "m" / "text_tokenizer" / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no readable"):
        VideoAR.from_pretrained(tmp_path / "m")
    path.unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        VideoAR.from_pretrained(tmp_path / "m")


def test_a_text_tokenizer_that_would_cut_or_pad_prompts(model: VideoAR, tmp_path: Path) -> None:
    save_model(tmp_path / "m", model)
    path = tmp_path / "m" / "text_tokenizer" / "tokenizer.json"
    changed = Tokenizer.from_file(str(path))
    changed.enable_truncation(3)
    changed.enable_padding(length=9)
    changed.save(str(path))
    copy = VideoAR.from_pretrained(tmp_path / "m")
    assert encode_prompt(copy.text_tokenizer, PROMPTS[0], 12) == (
        encode_prompt(model.text_tokenizer, PROMPTS[0], 12)
    )


def test_executors_of_streams_that_have_ended_are_given_back(tiny_folder: Path) -> None:
    model = VideoAR.from_pretrained(tiny_folder)
    streams = [model.stream(PROMPTS[0], num_frames=5, seed=i) for i in range(6)]
    for stream in streams:
        next(stream)
    executors = []
    for stream in streams:
        list(stream)
        executors.append(len(model._idle))
    assert executors == [1, 2, 3, 2, 1, 1]
    del streams[0]
    assert hasattr(model._idle[0], "state")


def test_the_first_calls_come_from_several_threads(tiny_folder: Path) -> None:
    """The first one packs the layers in place; the others must not meet it half-way."""
    expected = VideoAR.from_pretrained(tiny_folder).generate(PROMPTS[0], num_frames=1).frames
    for _ in range(5):
        model = VideoAR.from_pretrained(tiny_folder)
        barrier = threading.Barrier(4)

        def first(model: VideoAR = model, barrier: threading.Barrier = barrier) -> np.ndarray:
            barrier.wait()
            return model.generate(PROMPTS[0], num_frames=1).frames

        with ThreadPoolExecutor(4) as pool:
            made = [future.result() for future in [pool.submit(first) for _ in range(4)]]
        assert all(np.array_equal(frames, expected) for frames in made)


def test_bit_width_of_the_parts_must_agree(model: VideoAR) -> None:
    config = model.config
    from dataclasses import replace

    other = replace(config.transformer, latent_dim=config.transformer.latent_dim + 1)
    with pytest.raises(ValueError, match=r"transformer\.latent_dim"):
        ModelConfig(
            tokenizer=config.tokenizer, transformer=other, height=config.height, width=config.width
        )


def test_bytes_stand_in_for_a_text_tokenizer() -> None:
    """Presets without words of their own take any text, and tell texts apart."""
    tokenizer = byte_tokenizer()
    ids = encode_prompt(tokenizer, "Größe 7 \u4e2d!", 256)
    assert len(ids) == 1 + len("Größe 7 \u4e2d!".encode())
    assert max(ids) < PRESETS["videoar-4b"].transformer.vocab_size
    assert encode_prompt(tokenizer, "", 256) == ids[:1]
    with pytest.raises(ValueError, match="prompt: 300 tokens, the model takes at most 255"):
        encode_prompt(tokenizer, "x" * 300, 256)


def test_preset_is_deterministic() -> None:
    one, other = VideoAR.preset("digits"), VideoAR.preset("digits")
    for a, b in zip(one.transformer.parameters(), other.transformer.parameters(), strict=True):
        assert torch.equal(a, b)
    frames = one.generate("a red 3", num_frames=1, guidance=1).frames
    assert frames.std() > 0
    with pytest.raises(ValueError, match="dtype: expected one of"):
        VideoAR.preset("digits", dtype="int8")

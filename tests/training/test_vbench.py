"""VBench's folder layout, with a model that draws each seed."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from videoar.runtime.errors import MediaError
from videoar.runtime.media import read_video
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.presets import preset
from videoar.training.vbench import clip_name, clip_seed, export_vbench, read_prompts

PROMPTS = ["a red three moving left", "a blue 4 standing still"]


class SeedModel:
    """Every clip is one grey level, that of its seed and prompt."""

    config = preset("digits")
    text_tokenizer = VideoAR.preset("digits").text_tokenizer

    def __init__(self):
        self.calls = []

    def generate(self, prompts, *, seed, **options):
        self.calls.append((tuple(prompts), tuple(seed), options))
        levels = [self.level(p, s) for p, s in zip(prompts, seed, strict=True)]
        frames = np.stack([np.full((2, 32, 32, 3), level, np.uint8) for level in levels])
        return SimpleNamespace(frames=frames, fps=8)

    @staticmethod
    def level(prompt, seed):
        return 20 + (len(prompt) * 7 + seed) % 200


def prompt_of(path: str) -> str:
    """How VBench reads a prompt out of a file's name in its custom mode."""
    return re.sub(r"-\d+$", "", Path(path).stem)


def test_layout(tmp_path):
    model = SeedModel()
    result = export_vbench(model, PROMPTS, tmp_path / "clips", num_frames=17, guidance="2")
    names = {path.name for path in (tmp_path / "clips").iterdir()}
    assert names == {f"{prompt}-{i}.mp4" for prompt in PROMPTS for i in range(5)}
    assert {prompt_of(name) for name in names} == set(PROMPTS)
    assert (result["made"], result["kept"], result["renamed"]) == (10, 0, [])
    assert all(options == {"num_frames": 17, "guidance": "2"} for *_, options in model.calls)
    for prompt in PROMPTS:
        for i in range(5):
            frames, fps = read_video(tmp_path / "clips" / f"{prompt}-{i}.mp4")
            expected = model.level(prompt, clip_seed(0, prompt, i))
            assert fps == 8
            assert abs(int(frames[0, 16, 16, 0]) - expected) <= 3
    prompt_file = json.loads(Path(result["prompt_file"]).read_text())
    assert {Path(path).name: prompt for path, prompt in prompt_file.items()} == {
        f"{prompt}-{i}.mp4": prompt for prompt in PROMPTS for i in range(5)
    }


def test_resuming_makes_what_is_missing_and_nothing_else(tmp_path):
    folder = tmp_path / "clips"
    export_vbench(SeedModel(), PROMPTS, folder, samples=2)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    gone = f"{PROMPTS[1]}-0.mp4"
    (folder / gone).unlink()
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    model = SeedModel()
    # Another order of the prompts and another batch: clips do not depend on either.
    result = export_vbench(model, PROMPTS[::-1], folder, samples=2, batch=1)
    assert (result["made"], result["kept"]) == (1, 3)
    assert [call[0] for call in model.calls] == [(PROMPTS[1],)]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    for name, stamp in stamps.items():
        assert (folder / name).stat().st_mtime_ns == stamp


def test_seeds_differ():
    seeds = {clip_seed(s, p, i) for s in range(3) for p in PROMPTS for i in range(5)}
    assert len(seeds) == 30
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_prompts_that_are_names_stay_as_they_are():
    for prompt in ("A tranquil tableau of alley", "a person's hand, in 4k; 'so' (slow)", "x-1"):
        assert clip_name(prompt, 3) == f"{prompt}-3.mp4"


def test_prompts_that_are_no_names():
    for prompt in ("24/7 diner", ".hidden", "long " * 60, "é" * 150, "two\tcolumns"):
        name = clip_name(prompt, 12)
        assert "/" not in name
        assert not name.startswith(".")
        assert name.endswith("-12.mp4")
        assert len(name.encode()) <= 255
    assert clip_name("long " * 60 + "a", 0) != clip_name("long " * 60 + "b", 0)
    assert clip_name("a/b", 0) != clip_name("a_b", 0)


def test_read_prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbf  one \r\n\r\ntwo\r\none\r\n")
    assert read_prompts(path) == ["one", "two"]
    path.write_text("\n \n")
    with pytest.raises(ValueError, match=r"prompts.txt: holds none"):
        read_prompts(path)
    with pytest.raises(ValueError, match=r"nowhere.txt: cannot be read"):
        read_prompts(tmp_path / "nowhere.txt")


def test_nothing_is_made_of_bad_prompts(tmp_path):
    model = SeedModel()
    with pytest.raises(ValueError, match=r"'a red zebra': prompt: unknown words"):
        export_vbench(model, [*PROMPTS, "a red zebra"], tmp_path / "clips")
    assert not model.calls
    assert not (tmp_path / "clips").exists()
    with pytest.raises(ValueError, match="samples: at least 1"):
        export_vbench(model, PROMPTS, tmp_path / "clips", samples=0)


def test_folders_with_other_files_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("VBench would take this for a clip")
    with pytest.raises(MediaError, match=r"found notes.txt"):
        export_vbench(SeedModel(), PROMPTS, tmp_path)

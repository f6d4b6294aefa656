"""The commands `generate`, `reconstruct`, `inspect` and `demo`: what they write and print."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from videoar.runtime import cli_demo, cli_reconstruct, pipeline
from videoar.runtime.cli import main
from videoar.runtime.media import read_video, write_video

RED, BLUE = "a red 3 moving right quickly", "a blue 7 standing still"
SIZE = 16


@pytest.fixture
def generate(tiny_folder, tmp_path, capsys):
    """Runs `videoar generate` on the tiny model; gives status, stdout and stderr."""

    def run(*words: object, output: str = "a.mp4", model: Path = tiny_folder):
        command = ["generate", *words, "--model", model, "-o", tmp_path / output]
        status = main([str(word) for word in command])
        return status, *capsys.readouterr()

    return run


def moving_square(num_frames: int) -> np.ndarray:
    clip = np.full((num_frames, 24, 32, 3), 40, np.uint8)
    for index, frame in enumerate(clip):
        frame[8:16, 4 + index % 16 : 12 + index % 16] = (220, 90, 30)
    return clip


class TestGenerate:
    def test_writes_the_clip_of_the_pipeline(self, generate, tiny_folder, tmp_path):
        status, out, err = generate(RED, "--seed", 5, "--scale", 2)
        assert (status, err) == (0, "")
        line = f"{tmp_path / 'a.mp4'}: 17 frames of {2 * SIZE}x{2 * SIZE}, "
        assert out.startswith(line)
        result = pipeline.VideoAR.from_pretrained(tiny_folder).generate(RED, seed=5)
        write_video(tmp_path / "expected.mp4", result.frames[0], result.fps, scale=2)
        assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "expected.mp4").read_bytes()

    @pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
    def test_same_seed_same_bytes(self, generate, tmp_path, suffix):
        for name, seed in (("a", 3), ("b", 3), ("c", 4)):
            generate(RED, "--num-frames", 5, "--seed", seed, output=name + suffix)
        first, second, other = ((tmp_path / f"{n}{suffix}").read_bytes() for n in "abc")
        assert first == second
        assert first != other

    def test_a_prompt_does_not_depend_on_its_neighbours(self, generate, tmp_path):
        generate(BLUE, RED, "", "--num-frames", 5, "--seed", 7, output="many.mp4")
        generate(RED, "--num-frames", 5, "--seed", 8, output="one.mp4")
        written = {path.name for path in tmp_path.iterdir()}
        assert written == {"many-1.mp4", "many-2.mp4", "many-3.mp4", "one.mp4"}
        assert (tmp_path / "many-2.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
        assert (tmp_path / "many-1.mp4").read_bytes() != (tmp_path / "one.mp4").read_bytes()

    def test_json(self, generate, tmp_path):
        words = (RED, BLUE, "--json", "--num-frames", 5, "--seed", 2, "--scale", 3)
        status, out, err = generate(*words, "--guidance", 1, "--temperature", 0, output="a.gif")
        document = json.loads(out)
        assert (status, err) == (0, "")
        assert len(document["outputs"]) == 2
        for index, output in enumerate(document["outputs"]):
            assert output.pop("seconds") > 0
            assert output == {
                "path": str(tmp_path / f"a-{index + 1}.gif"),
                "prompt": (RED, BLUE)[index],
                "class_id": None,
                "seed": 2 + index,
                "num_frames": 5,
                "height": 3 * SIZE,
                "width": 3 * SIZE,
                "fps": 8,
            }
            frames, fps = read_video(output["path"])
            assert (frames.shape, fps) == ((5, 48, 48, 3), 8)
        timings = document["timings"]
        assert timings["steps"] == 2 * 2 * 2
        parts = sum(timings[name] for name in ("load", "prefill", "transformer", "decoder"))
        assert parts <= timings["total"]

    def test_classes(self, generate, tiny_class_folder, tmp_path):
        words = ("--class-id", 0, 4, "--num-frames", 1, "--json")
        status, out, _ = generate(*words, output="a.png", model=tiny_class_folder)
        outputs = json.loads(out)["outputs"]
        assert status == 0
        assert [output["class_id"] for output in outputs] == [0, 4]
        assert [output["prompt"] for output in outputs] == [None, None]
        assert read_video(tmp_path / "a-2.png")[0].shape == (1, SIZE, SIZE, 3)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_half_precision(self, generate, dtype):
        assert generate(RED, "--num-frames", 5, "--dtype", dtype)[0] == 0

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ((RED, "--num-frames", 16), "num_frames: must be 1 + 4n, got 16; nearest: 13 or 17"),
            ((RED, "--num-frames", 0), "num_frames: must be 1 + 4n, got 0; nearest: 1"),
            ((RED, "--guidance", -1), "guidance: must be 0 or more, got -1.0; nearest: 0"),
            ((RED, "--guidance", "often"), "guidance: expected a number"),
            ((RED, "--temperature", -1), "temperature: must be 0 or more, got -1.0; nearest: 0"),
            ((RED, "--temperature", "nan"), "temperature: must be 0 or more, got nan"),
            ((RED, "--seed", -1), "seed: expected 0 .. 2^63 - 1, got -1"),
            ((RED, "red " * 12), "prompt: 12 tokens, the model takes at most 11"),
            ((RED, "a purple 3"), "prompt: unknown words ['purple']; the model knows: 0 1 2"),
            (("--class-id", 3), "prompt: this model takes a prompt and no class_id"),
            ((), "prompt: give at least one PROMPT or --class-id"),
            ((RED, "--class-id", 3), "prompt: give at least one PROMPT or --class-id, and not"),
            ((RED, "--scale", 65), "argument --scale: must be 64 or less, got 65; nearest: 64"),
            ((RED, "--threads", 100000), "argument --threads: must be 1024 or less, got 100000"),
            ((RED, "--scale", "big"), "argument --scale: invalid int value: 'big'"),
        ],
    )
    def test_bad_arguments(self, generate, tmp_path, words, message):
        status, out, err = generate(*words)
        assert (status, out) == (2, "")
        assert err.startswith(f"videoar: error: {message}")
        assert err.count("\n") == 1
        assert not list(tmp_path.iterdir())

    def test_bad_output_is_found_before_the_model_is_loaded(self, tmp_path, capsys):
        (tmp_path / "file").touch()
        for output, status, message in (
            ("a.webm", 2, "unknown suffix '.webm', valid are .mp4, .gif, .png"),
            ("file/a.mp4", 1, "is not a folder"),
        ):
            words = ["generate", RED, "--model", "no-such-model", "-o", str(tmp_path / output)]
            assert main(words) == status
            assert message in capsys.readouterr().err

    def test_no_such_model(self, generate, tmp_path):
        status, _, err = generate(RED, model=tmp_path / "nothing")
        assert status == 1
        assert err == f"videoar: error: {tmp_path / 'nothing'}: does not exist\n"

    def test_no_such_preset(self, tmp_path, capsys):
        words = ["generate", RED, "--preset", "digitz", "-o", str(tmp_path / "a.mp4")]
        assert main(words) == 2
        assert "did you mean 'digits'?" in capsys.readouterr().err

    def test_no_such_device(self, generate, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        status, _, err = generate(RED, "--device", "cuda")
        assert status == 2
        assert "torch sees no CUDA device; nearest: cpu" in err


class TestModes:
    """`generate` with frames in front, and in several shots."""

    @pytest.fixture
    def same(self, generate, tiny_folder, tmp_path):
        """Runs the command and `VideoAR.generate`, which must give the same file; its output."""

        def check(*words: object, **request: object) -> dict:
            status, out, err = generate(*words, "--seed", 6, "--json")
            assert (status, err) == (0, "")
            result = pipeline.VideoAR.from_pretrained(tiny_folder).generate(**request, seed=6)
            write_video(tmp_path / "expected.mp4", result.frames[0], result.fps)
            assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "expected.mp4").read_bytes()
            output = json.loads(out)["outputs"][0]
            assert output["num_frames"] == len(result.frames[0])
            return output

        return check

    @pytest.fixture
    def picture(self, tmp_path):
        return write_video(tmp_path / "in.png", moving_square(1))

    @pytest.fixture
    def video(self, tmp_path):
        return write_video(tmp_path / "in.mp4", moving_square(20), fps=8)

    def test_image(self, same, picture):
        output = same(RED, "--image", picture, prompt=RED, image=picture)
        assert (output["num_frames"], output["given_frames"]) == (17, 1)

    def test_video(self, same, video):
        output = same(RED, "--video", video, prompt=RED, video=video)
        assert (output["num_frames"], output["given_frames"]) == (17, 9)
        words = (RED, "--video", video, "--context", 5, "--num-frames", 25)
        output = same(*words, prompt=RED, video=video, context=5, num_frames=25)
        assert (output["num_frames"], output["given_frames"]) == (25, 5)

    def test_the_given_frames_come_first(self, generate, video, tmp_path):
        assert generate(RED, "--video", video, output="a.gif")[0] == 0
        expected, _ = read_video(video, size=(SIZE, SIZE))
        written, _ = read_video(tmp_path / "a.gif")
        # A GIF has 256 colours, which are fewer than these 17 frames have.
        assert np.abs(written[:9].astype(int) - expected[-9:]).mean() < 8

    def test_only_new(self, same, video):
        words = (RED, "--video", video, "--only-new")
        output = same(*words, prompt=RED, video=video, only_new=True)
        assert (output["num_frames"], output["given_frames"]) == (8, 0)

    def test_shots(self, same):
        output = same(RED, "--shots", 3, prompt=RED, shots=3)
        assert (output["num_frames"], output["shots"]) == (17 + 8 + 8, 3)
        assert "given_frames" not in output

    def test_then(self, same):
        words = (RED, "--then", BLUE, RED, "--num-frames", 9, "--context", 1)
        shots = [RED, BLUE, RED]
        output = same(*words, shots=shots, num_frames=9, context=1)
        assert (output["num_frames"], output["shots"], output["prompt"]) == (9 + 8 + 8, shots, None)

    def test_every_prompt_has_the_further_shots(self, generate, tmp_path):
        generate(RED, BLUE, "--then", RED, "--num-frames", 5, "--seed", 3, output="many.mp4")
        generate(BLUE, "--then", RED, "--num-frames", 5, "--seed", 4, output="one.mp4")
        assert (tmp_path / "many-2.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()

    def test_the_progress_bar_is_full_at_the_end(self, generate, picture, monkeypatch):
        bars = []

        def bar(**options):
            bars.append(tqdm(**options | {"disable": False, "file": io.StringIO()}))
            return bars[-1]

        monkeypatch.setattr("videoar.runtime.cli_generate.tqdm", bar)
        generate(RED, "--image", picture, "--shots", 2, "--num-frames", 9, "--context", 5)
        # 3 latent frames of 2 scales, of which one is given, then one more.
        assert [(one.n, one.total) for one in bars] == [(6, 6)]

    def test_classes(self, generate, tiny_class_folder):
        words = ("--class-id", 0, "--then", 4, "--num-frames", 5, "--json")
        status, out, _ = generate(*words, model=tiny_class_folder)
        assert status == 0
        assert json.loads(out)["outputs"][0]["shots"] == [0, 4]
        status, _, err = generate("--class-id", 0, "--then", "red", model=tiny_class_folder)
        assert (status, err) == (2, "videoar: error: then: a class is expected, got 'red'\n")

    @pytest.mark.parametrize(
        ("words", "status", "message"),
        [
            (("--image", "no.png"), 1, "no.png: does not exist"),
            (("--image", "a", "--video", "b"), 2, "argument --video: not allowed with argument"),
            (("--shots", 2, "--then", BLUE), 2, "argument --then: not allowed with argument"),
            (("--shots", 0), 2, "argument --shots: must be 1 or more, got 0; nearest: 1"),
            (("--shots", 2, "--num-frames", 1), 2, "num_frames: 1 leaves nothing to make behind"),
            (("--shots", 2, "--context", 4), 2, "context: must be 1 + 4n, got 4; nearest: 1 or 5"),
            (("--shots", 2, "--context", 17), 2, "context: at most 13 of 17 frames, got 17"),
            (("--then", "a purple 3"), 2, "prompt: unknown words ['purple']"),
            (("--only-new",), 2, "only_new: goes with --image or --video"),
        ],
    )
    def test_bad_arguments_are_found_before_weights_are_loaded(
        self, generate, tmp_path, monkeypatch, words, status, message
    ):
        monkeypatch.setattr("videoar.runtime.cli_generate.load_model", None)
        got, out, err = generate(RED, *words)
        assert (got, out) == (status, "")
        assert err.startswith(f"videoar: error: {message}")
        assert not list(tmp_path.iterdir())


class TestReconstruct:
    def test_measures_what_it_wrote(self, tiny_folder, tmp_path, capsys):
        source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
        write_video(source, moving_square(11), fps=12)
        words = ["reconstruct", source, "-o", target, "--model", tiny_folder, "--json"]
        assert main([str(word) for word in [*words, "--scale", 4]]) == 0
        out, err = capsys.readouterr()
        assert err == f"videoar: {source}: the first 9 of 11 frames are used (1 + 4n)\n"
        document = json.loads(out)
        assert document["timings"].keys() == {"load", "reconstruct", "total"}
        facts = {name: document[name] for name in ("num_frames", "height", "width", "fps")}
        assert facts == {"num_frames": 9, "height": 4 * SIZE, "width": 4 * SIZE, "fps": 12}
        # 3 latent frames of 1 + 4 tokens of 8 bits.
        assert document["bits_per_pixel"] == pytest.approx(3 * 5 * 8 / (9 * SIZE * SIZE))
        decoded, fps = read_video(target)
        assert (decoded.shape, fps) == ((9, 4 * SIZE, 4 * SIZE, 3), 12)
        original, _ = read_video(source, size=(SIZE, SIZE), num_frames=9)
        # The file is compressed, so this is the printed quality only nearly.
        quality = cli_reconstruct.psnr(original, decoded[:, 1::4, 1::4])
        assert quality == pytest.approx(document["psnr"], abs=0.5)

    def test_streaming_equals_the_whole_clip(self, tiny_folder):
        model = pipeline.VideoAR.from_pretrained(tiny_folder)
        sizes = model.config.transformer.sizes
        clip = moving_square(9)[:, 4:20, 8:24]
        parts = list(cli_reconstruct.reconstruct(model.tokenizer, clip, sizes))
        assert [len(part) for part in parts] == [1, 4, 4]
        video = cli_reconstruct.to_float(clip)[None]
        latents = model.tokenizer.quantize(model.tokenizer.encode(video), sizes).reconstruction
        whole = cli_reconstruct.to_uint8(model.tokenizer.decode(latents))[0]
        difference = np.concatenate(parts).astype(int) - whole
        assert np.abs(difference).max() <= 1

    def test_a_picture_stays_one(self, tiny_folder, tmp_path, capsys):
        source, target = tmp_path / "in.png", tmp_path / "out.png"
        write_video(source, moving_square(1))
        words = ["reconstruct", source, "-o", target, "--model", tiny_folder]
        assert main([str(word) for word in words]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert out.startswith(f"{target}: 1 frames of {SIZE}x{SIZE}, PSNR ")
        assert read_video(target)[0].shape == (1, SIZE, SIZE, 3)

    @pytest.mark.parametrize(
        ("frames", "status", "message"),
        [
            (6, 2, "num_frames: must be 1 + 4n, got 6; nearest: 5 or 9"),
            (9, 1, "9 frames from 0 asked for, 5 are there"),
        ],
    )
    def test_bad_frame_counts(self, tiny_folder, tmp_path, capsys, frames, status, message):
        source = write_video(tmp_path / "in.gif", moving_square(5))
        words = ["reconstruct", source, "-o", tmp_path / "a.gif", "--num-frames", frames]
        assert main([str(word) for word in [*words, "--model", tiny_folder]]) == status
        assert message in capsys.readouterr().err
        assert not (tmp_path / "a.gif").exists()

    def test_another_rate(self, tiny_folder, tmp_path, capsys, monkeypatch):
        source, target = tmp_path / "in.mp4", tmp_path / "a.gif"
        write_video(source, moving_square(25), fps=60)
        words = ["reconstruct", source, "-o", target, "--model", tiny_folder, "--json"]
        words = [str(word) for word in words]
        with monkeypatch.context() as patch:
            patch.setattr(cli_reconstruct, "load_tokenizer", None)  # before anything is loaded
            assert main(words) == 2
        message = "fps: 0.001 to 50 can be written to a.gif, got 60"
        assert capsys.readouterr().err.startswith(f"videoar: error: {message}")
        assert main([*words, "--fps", "12"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["num_frames"], document["fps"]) == (5, 12)
        decoded, _ = read_video(target)
        assert len(decoded) == 5

    def test_no_such_input(self, tiny_folder, tmp_path, capsys):
        words = ["reconstruct", "no.mp4", "-o", str(tmp_path / "a.mp4"), "--model", tiny_folder]
        assert main([str(word) for word in words]) == 1
        assert capsys.readouterr().err == "videoar: error: no.mp4: does not exist\n"

    def test_psnr(self):
        zeros = np.zeros((2, 4, 4, 3), np.uint8)
        assert cli_reconstruct.psnr(zeros, zeros) == float("inf")
        assert cli_reconstruct.psnr(zeros, zeros + 255) == pytest.approx(0)
        assert cli_reconstruct.psnr(zeros + 255, zeros + 254) == pytest.approx(48.13, abs=0.01)


class TestInspect:
    @staticmethod
    def facts(capsys, *words: object) -> dict:
        assert main(["inspect", "--json", *(str(word) for word in words)]) == 0
        return json.loads(capsys.readouterr().out)

    def test_videoar_l(self, capsys):
        facts = self.facts(capsys, "--preset", "videoar-l", "--dtype", "bfloat16")
        assert round(facts["transformer"]["parameters"] / 1e6) == 921
        assert facts["transformer"]["layers"] == 24
        clip = facts["clip"]
        assert (clip["steps"], clip["tokens"], clip["num_frames"]) == (30, 650, 17)
        assert clip["scales"][-1] == [8, 8]
        parameters = sum(facts[part]["parameters"] for part in ("transformer", "tokenizer"))
        assert facts["memory"]["weight_bytes"] == 2 * parameters
        # Keys and values of 24 layers of 1536 values, two rows of 1 + 650 tokens.
        assert facts["memory"]["cache_bytes"] == 2 * 24 * 1536 * 2 * 651 * 2

    def test_the_largest_preset_needs_no_weights(self, capsys):
        facts = self.facts(capsys, "--preset", "videoar-4b")
        assert 4e9 < facts["transformer"]["parameters"] < 5e9
        assert facts["memory"]["device_bytes"] > 2**28

    def test_slots_and_frames(self, capsys):
        one = self.facts(capsys, "--preset", "digits")
        many = self.facts(capsys, "--preset", "digits", "--slots", 3, "--num-frames", 33)
        assert many["clip"]["tokens"] == 9 * one["clip"]["tokens"] / 5
        assert many["clip"]["steps"] == 9 * one["clip"]["steps"] / 5
        # The cache is a ring: more frames take no more of it.
        assert many["memory"]["cache_bytes"] == 3 * one["memory"]["cache_bytes"]

    def test_the_weights_of_a_folder_are_not_read(self, tiny_folder, tmp_path, capsys):
        for name in ("model_index.json", "transformer", "video_tokenizer"):
            source = tiny_folder / name
            (tmp_path / name).parent.mkdir(exist_ok=True)
            if source.is_dir():
                (tmp_path / name).mkdir()
                source, name = source / "config.json", f"{name}/config.json"
            (tmp_path / name).write_bytes(source.read_bytes())
        assert main(["inspect", "--model", str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert "17 frames of 16x16, 8 a second" in out
        assert "10 steps (5 latent frames, 2 scales), 25 tokens" in out

    def test_bad_frame_count(self, capsys):
        assert main(["inspect", "--preset", "digits", "--num-frames", "18"]) == 2
        assert "nearest: 17 or 21" in capsys.readouterr().err


class TestDemo:
    def test_writes_three_files(self, tiny_folder, tmp_path, capsys):
        words = ["demo", "--model", str(tiny_folder), "--out", str(tmp_path / "new")]
        assert main(words) == 0
        out = capsys.readouterr().out
        assert all(f"{prompt}: " in out for prompt in cli_demo.PROMPTS)
        height, width = 3 * (2 * 17 + 1), 3 * (3 * 17 + 1)
        frames, fps = read_video(tmp_path / "new" / "demo.gif")
        assert (frames.shape, fps) == ((17, height, width, 3), 8)
        frames, _ = read_video(tmp_path / "new" / "demo.mp4")
        assert frames.shape == (17, height + 1, width, 3)
        sheet, _ = read_video(tmp_path / "new" / "demo.png")
        assert sheet.shape[2] == 9 * (2 * SIZE + 2) + 2

    def test_prompts_are_varied(self):
        words = [prompt.split() for prompt in cli_demo.PROMPTS]
        assert len(words) >= 6
        for column in (1, 2):
            assert len({prompt[column] for prompt in words}) == len(words)

    def test_tile(self):
        clips = [np.full((2, 3, 4, 3), 50 * i, np.uint8) for i in range(1, 4)]
        grid = cli_demo.tile(clips, columns=2)
        assert grid.shape == (2, 9, 11, 3)
        assert (grid[:, 1:4, 1:5] == 50).all()
        assert (grid[:, 1:4, 6:10] == 100).all()
        assert (grid[:, 5:8, 1:5] == 150).all()
        assert (grid == 24).sum() == grid.size - 3 * clips[0].size

"""Curves, heat maps and samples: what is read, what is drawn where, and what is refused."""

import json

import numpy as np
import pytest

from videoar.runtime.errors import MediaError
from videoar.runtime.media import read_video
from videoar.training import curves, figures
from videoar.training.curves import plot_curves, read_stages, smooth
from videoar.training.pictures import plot_bits, plot_samples, read_bits, strip

matplotlib = pytest.importorskip("matplotlib", reason="the extra `train` brings it")


def write_log(folder, lines, torn=""):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "log.jsonl").write_text(text + torn)


@pytest.fixture
def run(tmp_path):
    """Two stages, the second by name begun first; a remark, a repeated step and a torn end."""
    image = [{"step": s, "time": 100.0 + s, "loss": 2.0 - s / 50, "norm": 0.1} for s in (0, 20, 40)]
    write_log(tmp_path / "image", [*image, {"step": 40, "note": "perceptual: off"}])
    table = [[0.9, 0.8], [0.7, 0.6]]
    clip = [
        {"step": s, "time": 300.0 + s, "loss": 1.0, "bits_1": 0.9, "bits_2": 0.5} for s in (0, 20)
    ]
    clip += [{"step": 20, "time": 500.0, "loss": 0.5, "bits_1": 0.8, "bits_2": 0.6, "bits": table}]
    write_log(tmp_path / "clip", clip, torn='{"step": 40, "lo')
    return tmp_path


def test_stages_are_read_in_the_order_of_training(run):
    first, second = read_stages(run)
    assert (first.name, second.name) == ("image", "clip")
    assert [line["step"] for line in first.lines] == [0, 20, 40]
    assert (first.steps, second.steps) == (41, 21)
    # A step that was done again counts as it was done last.
    assert [line["loss"] for line in second.lines] == [1.0, 0.5]


def test_curves_hold_every_number(run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, output: drawn.append(figure))
    result = plot_curves(run, tmp_path / "c.png")
    assert result["panels"] == ["loss", "bit accuracy by scale", "gradient norm"]
    assert result["stages"]["clip"]["loss"] == 0.5
    axes = {a.get_title(): a for a in drawn[0].axes}
    assert axes.keys() == set(result["panels"])
    loss = [line.get_xydata().tolist() for line in axes["loss"].lines if len(line.get_xdata())]
    assert [[0, 2.0], [20, 1.6], [40, 1.2]] in loss
    # The second stage goes on behind the 41 steps of the first.
    assert [[41, 1.0], [61, 0.5]] in loss
    bits = axes["bit accuracy by scale"]
    assert [text.get_text() for text in bits.get_legend().get_texts()] == ["1", "2"]
    assert axes["gradient norm"].get_yscale() == "log"
    for panel in axes.values():
        assert panel.get_xlabel() == "step"
        assert panel.get_ylabel()


def test_curves_are_a_picture(run, tmp_path):
    plot_curves(run, tmp_path / "new" / "c.png")
    frames, _ = read_video(tmp_path / "new" / "c.png")
    assert frames.shape[0] == 1
    assert frames.shape[2] == 1000
    assert len(np.unique(frames)) > 20
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["c.png"]


def test_smoothing():
    slope = np.linspace(3, 7, 500)
    np.testing.assert_allclose(smooth(slope), slope)
    noise = np.random.default_rng(0).normal(size=2000)
    assert smooth(noise).std() < 0.3 * noise.std()
    assert smooth(np.array([1.0])) == [1.0]


@pytest.mark.parametrize("text", ['{"step": 0}\nbroken\n{"step": 1}\n', '[1]\n{"step": 1}\n'])
def test_broken_logs(tmp_path, text):
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"log.jsonl: line [12] is no line of a log"):
        read_stages(tmp_path)


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        plot_curves(tmp_path / "nowhere", tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"no log.jsonl with a line in it"):
        plot_curves(tmp_path, tmp_path / "c.png")
    write_log(tmp_path, [{"step": 0, "loss": 1.0}])
    with pytest.raises(ValueError, match=r"c.jpg: .png is needed"):
        plot_curves(tmp_path, tmp_path / "c.jpg")
    with pytest.raises(ValueError, match=r"no line of its logs has bit accuracies"):
        read_bits(tmp_path)


def test_bits_of_a_run_and_of_an_evaluation(run, tmp_path):
    found = read_bits(run)
    assert found["bits"].tolist() == [[0.9, 0.8], [0.7, 0.6]]
    assert found["title"] == "clip, step 20"
    path = tmp_path / "bits.json"
    path.write_text(json.dumps({"bits": [[0.5, 1.0]], "sizes": [[1, 1], [4, 4]], "num": 9}))
    result = plot_bits(path, tmp_path / "b.png")
    assert result["title"] == "9 clips"
    assert (tmp_path / "b.png").stat().st_size > 1000


def test_heat_maps_carry_their_numbers(run, tmp_path, monkeypatch):
    drawn = []
    pictures = "videoar.training.pictures.save_figure"
    monkeypatch.setattr(pictures, lambda figure, output: drawn.append(figure))
    plot_bits(run, tmp_path / "b.png")
    axes = drawn[0].axes[0]
    texts = {t.get_position(): t.get_text() for t in axes.texts}
    assert texts == {(0, 0): "90.0", (1, 0): "80.0", (0, 1): "70.0", (1, 1): "60.0"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("scale", "latent frame")


@pytest.mark.parametrize("text", ["no json", "{}", '{"bits": [1, 2]}', '{"bits": [[2.0]]}', "[]"])
def test_bad_bits(tmp_path, text):
    (tmp_path / "bits.json").write_text(text)
    with pytest.raises(ValueError, match=r"bits.json: "):
        plot_bits(tmp_path / "bits.json", tmp_path / "b.png")


def test_strips_are_evenly_spaced():
    clip = np.arange(17, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 5, 3), np.uint8)
    picture = strip(clip, 5)
    assert picture.shape == (4, 5 * 6 - 1, 3)
    assert picture[0, ::6, 0].tolist() == [0, 4, 8, 12, 16]
    assert picture[0, 5::6, 0].tolist() == [255] * 4
    assert strip(clip[:2], 6).shape == (4, 11, 3)


def test_samples(tmp_path):
    clip = np.random.default_rng(0).integers(0, 255, (9, 16, 16, 3), dtype=np.uint8)
    rows = [("step 100", [clip, clip]), ("step 200", [clip, clip])]
    result = plot_samples(rows, ["left", "right"], tmp_path / "s.png", frames=3)
    assert result["rows"] == ["step 100", "step 200"]
    frames, _ = read_video(tmp_path / "s.png")
    assert frames.shape[2] == 1060
    with pytest.raises(ValueError, match="a clip for each of 1 prompts"):
        plot_samples(rows, ["left"], tmp_path / "s.png")
    with pytest.raises(ValueError, match="frames: at least 1"):
        plot_samples(rows, ["left", "right"], tmp_path / "s.png", frames=0)


def test_without_matplotlib(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MediaError, match=r"videoar\[train\]"):
        figures.new_figure(1, 1)

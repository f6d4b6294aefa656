"""Models described by TOML files: what follows from what, and errors that name file and field."""

from pathlib import Path

import pytest

from videoar.runtime.errors import CheckpointError
from videoar.runtime.model_file import read_model_file
from videoar.runtime.model_folder import save_model
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.presets import PRESETS, preset
from videoar.runtime.text import byte_tokenizer, word_tokenizer

SHIPPED = Path(__file__).parents[2] / "configs" / "models"


def write(folder: Path, text: str) -> Path:
    path = folder / "model.toml"
    path.write_text(text)
    return path


def test_an_empty_file_is_its_base(tmp_path: Path) -> None:
    assert preset(write(tmp_path, "")) == PRESETS["digits"]
    for name in PRESETS:
        assert preset(str(write(tmp_path, f'base = "{name}"'))) == PRESETS[name]


def test_what_follows_from_the_values_given(tmp_path: Path) -> None:
    text = """
    height = 96
    width = 160
    num_frames = 33
    fps = 12
    guidance = "constant:2"
    temperature = 0.8
    text_tokenizer = "bytes"
    [transformer]
    width = 512
    heads = 4
    layers = 3
    [tokenizer]
    latent_dim = 12
    """
    model = preset(write(tmp_path, text))
    assert (model.height, model.width, model.num_frames, model.fps) == (96, 160, 33, 12)
    assert (model.guidance, model.temperature) == ("constant:2", 0.8)
    own = model.transformer
    assert (own.heads, own.kv_heads, own.head_dim, own.layers) == (4, 4, 128, 3)
    assert sum(own.rope_sections) == 64
    base = PRESETS["digits"].transformer
    assert own.mlp_width / own.width == pytest.approx(base.mlp_width / base.width, rel=0.1)
    assert own.latent_dim == model.tokenizer.latent_dim == 12
    assert own.max_frames == 9
    assert own.sizes[-1] == (6, 10)
    assert own.condition == "text"
    assert (own.vocab_size, own.max_text) == (257, 64)


def test_heads_alone_keep_the_width(tmp_path: Path) -> None:
    base = PRESETS["videoar-l"].transformer
    text = f'base = "videoar-l"\n[transformer]\nheads = {base.heads // 2}\nkv_heads = 2'
    own = preset(write(tmp_path, text)).transformer
    assert own.width == base.width
    assert own.mlp_width == base.mlp_width
    assert (own.kv_heads, own.head_dim) == (2, 2 * base.head_dim)


def test_texts_for_a_base_of_classes_and_classes_for_one_of_texts(tmp_path: Path) -> None:
    path = write(tmp_path, 'base = "videoar-l"\ntext_tokenizer = "words/tokenizer.json"')
    (tmp_path / "words").mkdir()
    word_tokenizer(["a", "dog"]).save(str(tmp_path / "words" / "tokenizer.json"))
    found = read_model_file(path)
    assert found.config.transformer.condition == "text"
    assert found.config.transformer.vocab_size == 4
    assert found.text_tokenizer.encode("a dog").ids == [2, 3]
    classes = write(tmp_path, '[transformer]\ncondition = "class"\nvocab_size = 11')
    own = preset(classes).transformer
    assert (own.condition, own.vocab_size, own.max_text) == ("class", 11, 1)
    assert read_model_file(classes).text_tokenizer is None


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_files_are_models(path: Path) -> None:
    assert preset(path) not in PRESETS.values()


def test_a_model_of_a_file_generates(tmp_path: Path) -> None:
    text = """
    height = 32
    width = 48
    num_frames = 5
    text_tokenizer = "bytes"
    [transformer]
    layers = 1
    width = 64
    heads = 2
    mlp_width = 64
    [tokenizer]
    channels = 16
    """
    model = VideoAR.preset(write(tmp_path, text))
    result = model.generate("Überall Wörter")
    assert result.frames.shape == (1, 5, 32, 48, 3)
    save_model(tmp_path / "saved", model)
    again = VideoAR.from_pretrained(tmp_path / "saved").generate("Überall Wörter", seed=result.seed)
    assert (again.frames == result.frames).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layers = 3", "layers: unknown"),
        ('base = "digit"', "base: no 'digit', .*did you mean 'digits'"),
        ("transformer = 3", "transformer: an object is needed, got int 3"),
        ("[transformer]\nlayer = 3", r"transformer\.layer: unknown field; did you mean 'layers'"),
        ("[transformer]\nlayers = 0", r"transformer\.layers: "),
        ('[transformer]\nwidth = "big"', r"transformer\.width: "),
        ("[transformer]\nwidth = 100\nheads = 3", r"transformer\.width: 100 is no multiple of 3"),
        ("[tokenizer]\nlatent_dims = 3", r"tokenizer\.latent_dims: unknown"),
        ("height = 60", "height: "),
        ("num_frames = 16", "num_frames: "),
        ("num_frames = 17\n[transformer]\nmax_frames = 5", r"transformer\.max_frames: follows"),
        ("fps = 0", "fps: 1 to 1000, got 0"),
        ('guidance = "steep"', "guidance: "),
        ("temperature = -1.0", "temperature: "),
        ('base = "videoar-l"\n[transformer]\ncondition = "text"', "text_tokenizer: missing"),
        ('[transformer]\ncondition = "class"', r"transformer\.vocab_size: missing"),
        (
            'base = "videoar-l"\ntext_tokenizer = "bytes"\n[transformer]\ncondition = "class"',
            "text_",
        ),
        (
            'text_tokenizer = "bytes"\n[transformer]\nvocab_size = 9',
            r"vocab_size: .* has 257, got 9",
        ),
        ("base = ", "no readable TOML"),
    ],
)
def test_errors_name_file_and_field(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as error:
        preset(path)
    assert str(error.value).startswith(f"{path}: ")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.toml: does not exist"):
        preset(tmp_path / "nowhere.toml")
    path = write(tmp_path, 'text_tokenizer = "nowhere.json"')
    with pytest.raises(CheckpointError, match=r"nowhere\.json: does not exist"):
        VideoAR.preset(path)
    byte_tokenizer().save(str(tmp_path / "cut.json"))
    cut = tmp_path / "cut.json"
    cut.write_text(cut.read_text()[:50])
    with pytest.raises(CheckpointError, match=r"cut\.json: no readable tokenizer"):
        preset(write(tmp_path, 'text_tokenizer = "cut.json"'))

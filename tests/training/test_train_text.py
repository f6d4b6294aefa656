"""Text tokenizers of one's own captions, and a model of one's own from a folder to a clip."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from videoar.runtime.cli import main
from videoar.runtime.text import encode_prompt
from videoar.training.train_text import MIN_VOCABULARY, folder_captions, train_text_tokenizer

CAPTIONS = [
    f"A {colour} dog runs along the beach, {n}" for n in range(9) for colour in ("red", "ok")
]

MODEL = """
height = 32
width = 48
num_frames = 5
text_tokenizer = "text/tokenizer.json"

[transformer]
layers = 1
width = 32
heads = 1
mlp_width = 64
max_text = 24

[tokenizer]
channels = 16
latent_dim = 8
decoder_blocks = [1, 1, 1, 1]
"""


def tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.id_to_token(i) for i in tokenizer.encode(text).ids]


def test_captions_take_fewer_tokens_than_bytes_and_nothing_is_unknown() -> None:
    tokenizer = train_text_tokenizer(CAPTIONS, 280)
    assert tokenizer.get_vocab_size() == 280
    assert tokenizer.token_to_id("<bos>") == 0
    assert len(tokens(tokenizer, CAPTIONS[0])) <= len(CAPTIONS[0]) / 3
    for text in ("Ein Fluß in 東京 🎬", "a red dog\n"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text.lower()
    assert tokens(tokenizer, "A RED DOG") == tokens(tokenizer, "a red dog")
    assert Tokenizer.from_str(tokenizer.to_str()).encode(CAPTIONS[1]).ids == (
        tokenizer.encode(CAPTIONS[1]).ids
    )


def test_the_start_token_cannot_be_spelled() -> None:
    tokenizer = train_text_tokenizer(CAPTIONS, 280)
    assert encode_prompt(tokenizer, "<bos>", 16).count(0) == 1


def test_the_vocabulary_ends_where_no_pair_comes_twice() -> None:
    assert train_text_tokenizer(["abc", "abc"], 4096).get_vocab_size() == MIN_VOCABULARY + 2
    assert train_text_tokenizer(CAPTIONS, MIN_VOCABULARY).get_vocab_size() == MIN_VOCABULARY


def test_bad_input(tmp_path: Path, mixed: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size: at least 257, got 256"):
        train_text_tokenizer(CAPTIONS, 256)
    with pytest.raises(ValueError, match="captions: there are none"):
        train_text_tokenizer([], 300)
    with pytest.raises(ValueError, match=r"captions\.jsonl: does not exist"):
        folder_captions([mixed, tmp_path])
    (tmp_path / "captions.jsonl").write_text('{"file": "a.mp4", "class": 3}\n')
    with pytest.raises(ValueError, match=r"captions\.jsonl: no captions in it"):
        folder_captions([tmp_path])


def test_a_model_of_ones_own_from_captions_to_a_clip(
    mixed: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """With words that no preset knows, in a size that no preset has."""
    clips = tmp_path / "clips"
    clips.mkdir()
    lines = []
    for path in sorted(mixed.glob("videos/*.mp4")):
        (clips / path.name).write_bytes(path.read_bytes())
        caption = f"Möwen über dem Meer, Take {path.stem}"
        lines.append(json.dumps({"file": path.name, "caption": caption}))
    (clips / "captions.jsonl").write_text("\n".join(lines))
    (tmp_path / "model.toml").write_text(MODEL)
    monkeypatch.chdir(tmp_path)

    def videoar(command: str) -> str:
        assert main(command.split()) == 0
        return capsys.readouterr().out

    out = videoar("train text-tokenizer --data clips --vocab-size 270 --out text")
    assert "captions    5\n" in out
    assert "entries     270\n" in out
    longest = int(out.partition("at least ")[2].split()[0])
    assert 4 < longest <= 24
    fast = "--set stages[0].steps=1 --set stages[1].steps=1 --set workers=0 --preset model.toml"
    small = "--set stages[0].shapes[0].batch=2 --set stages[1].shapes[0].batch=2"
    start = "--set stages[0].continuous_steps=0"
    videoar(f"train tokenizer --data clips --out tok {start} {fast} {small}")
    videoar("train cache --data clips --tokenizer tok --out tokens --preset model.toml")
    videoar(f"train transformer --cache tokens --tokenizer tok --out ar {fast} {small}")
    videoar("train export --tokenizer tok --transformer ar --out mine --preset model.toml")
    videoar("generate MÖWEN --model mine -o clip.mp4 --seed 1")
    assert (tmp_path / "clip.mp4").stat().st_size > 0
    assert "width 32, 1 heads" in videoar("inspect --model mine")
    config = (tmp_path / "model.toml").read_text().replace("heads = 1", "heads = 2")
    (tmp_path / "model.toml").write_text(config)
    again = f"train transformer --cache tokens --tokenizer tok --out ar {fast} {small}"
    assert main(again.split()) == 2
    assert "model.transformer.head" in capsys.readouterr().err

"""A model of your own as a TOML file that says what differs from a preset.

    base = "digits"                           # a preset; what the file leaves out is its
    height = 96
    width = 160
    num_frames = 33
    fps = 12
    text_tokenizer = "text/tokenizer.json"    # beside this file; or "bytes"

    [transformer]                             # fields of TransformerConfig
    layers = 12
    width = 512
    heads = 8

    [tokenizer]                               # fields of TokenizerConfig
    channels = 64

Wherever a preset is named, such a file can be named instead: its name ends with .toml.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videoar.runtime.build_config import build_config, kind_name, plain_values
from videoar.runtime.config import ModelConfig, TokenizerConfig, TransformerConfig
from videoar.runtime.errors import CheckpointError
from videoar.runtime.presets import axis_sections, plain_preset
from videoar.runtime.schedule import default_sizes
from videoar.runtime.text import byte_tokenizer, open_text_tokenizer
from videoar.runtime.toml_file import read_toml

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BYTES = "bytes"
# Text tokens of a model whose base takes none, or knows few words.
_MAX_TEXT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Top:
    """What a file holds beside its tables; None: the base's."""

    base: str = "digits"
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    fps: int | None = None
    guidance: str | None = None
    temperature: float | None = None
    text_tokenizer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """What a model file describes.

    Attributes:
        config: the model.
        base: the preset it began with.
        text_tokenizer: of the file's own; None: the base's, or there are no texts.
    """

    config: ModelConfig
    base: str
    text_tokenizer: Tokenizer | None


def read_model_file(path: str | Path) -> ModelFile:
    """The model that a TOML file describes.

    Raises:
        ValueError: no such file, an unknown field, or values that make no model; names the file
            and the field.
        CheckpointError: the text tokenizer cannot be read.
    """
    path = Path(path)
    values = read_toml(path)
    try:
        return _build(values, path.parent)
    except CheckpointError:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _build(values: dict[str, Any], folder: Path) -> ModelFile:
    tables = {name: values.pop(name, {}) for name in ("tokenizer", "transformer")}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ValueError(f"{name}: an object is needed, got {kind_name(table)}")
    top = build_config(_Top, values)
    base = plain_preset(top.base, field="base")
    merged = plain_values(base.tokenizer) | tables["tokenizer"]
    tokenizer = build_config(TokenizerConfig, merged, "tokenizer.")
    text = _text_tokenizer(top.text_tokenizer, folder)
    height = base.height if top.height is None else top.height
    width = base.width if top.width is None else top.width
    own = dict(tables["transformer"])
    _derive_condition(own, base.transformer, text)
    _derive_shape(own, base.transformer)
    own.setdefault("latent_dim", tokenizer.latent_dim)
    grid = tokenizer.latent_size(height, width)
    if grid != base.transformer.sizes[-1]:
        own.setdefault("sizes", [list(size) for size in default_sizes(*grid)])
    if top.num_frames is not None:
        if "max_frames" in own:
            raise ValueError("transformer.max_frames: follows from num_frames, give one of them")
        own["max_frames"] = tokenizer.latent_frames(top.num_frames)
    merged = plain_values(base.transformer) | own
    config = ModelConfig(
        tokenizer=tokenizer,
        transformer=build_config(TransformerConfig, merged, "transformer."),
        height=height,
        width=width,
        fps=base.fps if top.fps is None else top.fps,
        guidance=base.guidance if top.guidance is None else top.guidance,
        temperature=base.temperature if top.temperature is None else top.temperature,
    )
    return ModelFile(config=config, base=top.base, text_tokenizer=text)


def _text_tokenizer(name: str | None, folder: Path) -> Tokenizer | None:
    if name is None:
        return None
    return byte_tokenizer() if name == BYTES else open_text_tokenizer(folder / name)


def _derive_condition(own: dict[str, Any], base: TransformerConfig, text: Tokenizer | None) -> None:
    """Fill in what texts or classes imply."""
    condition = own.setdefault("condition", base.condition if text is None else "text")
    if condition == "class":
        if text is not None:
            raise ValueError("text_tokenizer: the model is conditioned on classes")
        if base.condition != "class" and "vocab_size" not in own:
            raise ValueError("transformer.vocab_size: missing field, the number of classes")
        own.setdefault("max_text", 1)
    elif text is not None:
        entries = max(text.get_vocab().values()) + 1
        if own.setdefault("vocab_size", entries) < entries:
            got = own["vocab_size"]
            raise ValueError(f"transformer.vocab_size: text_tokenizer has {entries}, got {got}")
        own.setdefault("max_text", _MAX_TEXT)
    elif base.condition != "text":
        raise ValueError('text_tokenizer: missing field, a tokenizer.json or "bytes"')


def _derive_shape(own: dict[str, Any], base: TransformerConfig) -> None:
    """Fill in what another width or number of heads implies."""
    counts = [own.get(name, getattr(base, name)) for name in ("width", "heads", "head_dim")]
    if not all(isinstance(count, int) and count >= 1 for count in counts):
        return  # build_config says what is wrong
    width, heads, _ = counts
    if "heads" in own:
        own.setdefault("kv_heads", heads)
    if "width" in own or "heads" in own:
        if "head_dim" not in own and width % heads:
            raise ValueError(f"transformer.width: {width} is no multiple of {heads} heads")
        own.setdefault("head_dim", width // heads)
    if "width" in own:
        own.setdefault("mlp_width", max(64, round(base.mlp_width / base.width * width / 64) * 64))
    head_dim = own.get("head_dim", base.head_dim)
    if head_dim != base.head_dim and head_dim % 2 == 0:
        own.setdefault("rope_sections", list(axis_sections(head_dim)))

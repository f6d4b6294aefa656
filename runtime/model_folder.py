"""A whole model as a checkpoint folder (DESIGN promise 6).

model_index.json     frame size, rate and default sampling; which components there are
transformer/         config.json + safetensors
video_tokenizer/     config.json + safetensors
text_tokenizer/      tokenizer.json (text-conditional models)
"""

from __future__ import annotations

from importlib import resources
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from videoar.runtime.checkpoint import (
    read_config,
    read_model_index,
    read_weights,
    write_component,
    write_model_index,
)
from videoar.runtime.config import ModelConfig, TokenizerConfig, TransformerConfig
from videoar.runtime.errors import CheckpointError
from videoar.runtime.model_file import read_model_file
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.presets import is_model_file
from videoar.runtime.text import byte_tokenizer, open_text_tokenizer
from videoar.runtime.transformer import Transformer
from videoar.runtime.video_tokenizer import VideoTokenizer

if TYPE_CHECKING:
    # Models of classes need no tokenizer of texts.
    from tokenizers import Tokenizer

Module = TypeVar("Module", bound=nn.Module)

SHIPPED = ("digits",)
INDEX_FIELDS = {"height": int, "width": int, "fps": int, "guidance": str, "temperature": float}


def resolve_folder(name: str | Path) -> Path:
    """A checkpoint folder, or the shipped model of that name."""
    if str(name) in SHIPPED and not Path(name).exists():
        return Path(str(resources.files("videoar.assets"))) / str(name)
    return Path(name)


def load_model(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> VideoAR:
    """See `VideoAR.from_pretrained`. Everything is checked before a weight is used."""
    folder = resolve_folder(folder)
    config = read_model_config(folder)
    text_tokenizer = None
    if config.transformer.condition == "text":
        text_tokenizer = read_text_tokenizer(folder, config.transformer)
    with torch.device("meta"):
        transformer = Transformer(config.transformer)
        tokenizer = VideoTokenizer(config.tokenizer)
    _load(folder / "video_tokenizer", tokenizer, dtype, device)
    _load(folder / "transformer", transformer, dtype, device)
    return VideoAR(config, transformer, tokenizer, text_tokenizer)


def load_tokenizer(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> VideoTokenizer:
    """The video tokenizer alone, from a model's folder or from a `video_tokenizer` folder."""
    return _load_alone(folder, "video_tokenizer", TokenizerConfig, VideoTokenizer, dtype, device)


def load_transformer(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Transformer:
    """The transformer alone, from a model's folder or from a `transformer` folder."""
    return _load_alone(folder, "transformer", TransformerConfig, Transformer, dtype, device)


def _load_alone(
    folder: str | Path,
    component: str,
    config_type: type,
    module_type: type[Module],
    dtype: torch.dtype,
    device: torch.device | str,
) -> Module:
    folder = resolve_folder(folder)
    if (folder / component).exists():
        folder = folder / component
    config = read_config(folder, config_type, component=component)
    with torch.device("meta"):
        module = module_type(config)
    _load(folder, module, dtype, device)
    return module.eval().requires_grad_(False)


def read_model_config(folder: str | Path) -> ModelConfig:
    """The configuration of a model's folder.

    Raises:
        CheckpointError: a missing, unknown or impossible field, naming file and field.
    """
    folder = Path(folder)
    index = read_model_index(folder)
    path = folder / "model_index.json"
    values = {name: _field(index, name, kind, path) for name, kind in INDEX_FIELDS.items()}
    for name in index.keys() - INDEX_FIELDS.keys() - {"format", "components"}:
        raise CheckpointError(f"{path}: {name}: unknown field")
    transformer = read_config(folder / "transformer", TransformerConfig, component="transformer")
    wanted = {"transformer", "video_tokenizer"}
    wanted |= {"text_tokenizer"} if transformer.condition == "text" else set()
    if set(index["components"]) != wanted:
        raise CheckpointError(
            f"{path}: components: {sorted(wanted)} needed, got {sorted(index['components'])}"
        )
    tokenizer = read_config(
        folder / "video_tokenizer", TokenizerConfig, component="video_tokenizer"
    )
    try:
        return ModelConfig(tokenizer=tokenizer, transformer=transformer, **values)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _field(index: dict[str, Any], name: str, kind: type, path: Path) -> Any:
    if name not in index:
        raise CheckpointError(f"{path}: {name}: missing")
    value = index[name]
    number = kind is float and isinstance(value, int)
    if isinstance(value, bool) or not (isinstance(value, kind) or number):
        raise CheckpointError(f"{path}: {name}: expected {kind.__name__}, got {value!r}")
    try:
        return kind(value)
    except OverflowError:
        raise CheckpointError(f"{path}: {name}: out of range") from None


def _load(folder: Path, module: nn.Module, dtype: torch.dtype, device: torch.device | str) -> None:
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    weights = read_weights(folder, expected, dtype=dtype, device=device)
    module.load_state_dict(weights, assign=True)


def read_text_tokenizer(folder: Path, config: TransformerConfig) -> Tokenizer:
    """The text tokenizer of a model's folder.

    Raises:
        CheckpointError: missing, broken, or with tokens that the model has no embedding for.
    """
    path = folder / "text_tokenizer" / "tokenizer.json"
    tokenizer = open_text_tokenizer(path)
    highest = max(tokenizer.get_vocab().values())
    if highest >= config.vocab_size:
        raise CheckpointError(
            f"{path}: token id {highest} is outside of the model's {config.vocab_size}"
        )
    return tokenizer


def preset_text_tokenizer(name: str | PathLike[str], config: ModelConfig) -> Tokenizer | None:
    """That of a model file or of the shipped model of a preset's name, else plain bytes; None for
    classes.

    Raises:
        ValueError, CheckpointError: the model file, or what it names, cannot be read.
    """
    if config.transformer.condition != "text":
        return None
    if is_model_file(name):
        file = read_model_file(name)
        return file.text_tokenizer or preset_text_tokenizer(file.base, config)
    if name in SHIPPED:
        return read_text_tokenizer(resolve_folder(name), config.transformer)
    return byte_tokenizer()


def save_model(folder: str | Path, model: VideoAR, dtype: torch.dtype | None = None) -> None:
    """Write `model` as a checkpoint folder; floating tensors as `dtype` where it is given.

    Raises:
        CheckpointError: the folder could not be written.
    """
    folder = Path(folder)
    transformer, tokenizer = model.transformer, model.tokenizer
    components = {"transformer": {}, "video_tokenizer": {}}
    write_component(
        folder / "transformer",
        "transformer",
        model.config.transformer,
        transformer.state_dict(),
        dtype=dtype,
    )
    save_tokenizer(folder / "video_tokenizer", tokenizer, dtype)
    if model.text_tokenizer is not None:
        components["text_tokenizer"] = {}
        (folder / "text_tokenizer").mkdir(exist_ok=True)
        model.text_tokenizer.save(str(folder / "text_tokenizer" / "tokenizer.json"))
    values = {name: getattr(model.config, name) for name in INDEX_FIELDS}
    write_model_index(folder, {"components": components, **values})


def save_tokenizer(
    folder: str | Path, tokenizer: VideoTokenizer, dtype: torch.dtype | None = None
) -> None:
    """Write a video tokenizer as a component folder."""
    write_component(
        folder, "video_tokenizer", tokenizer.config, tokenizer.state_dict(), dtype=dtype
    )

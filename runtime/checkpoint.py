"""Component folders of a checkpoint: `config.json` beside safetensors, read strictly.

A checkpoint is `model_index.json` and a folder for each component. No pickle is ever read.
"""

from videoar.runtime.checkpoint_json import read_config, read_model_index, write_model_index
from videoar.runtime.checkpoint_read import read_weights
from videoar.runtime.checkpoint_write import write_component

__all__ = [
    "read_config",
    "read_model_index",
    "read_weights",
    "write_component",
    "write_model_index",
]

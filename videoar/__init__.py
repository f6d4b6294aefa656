"""VideoAR (arXiv 2601.05966): autoregressive video generation by next frame and next scale.

Importing this package is cheap: each public name loads its module at its first use.
"""

from importlib import import_module

__version__ = "0.1.0"

_MODULE_OF = {
    "VideoAR": "videoar.runtime.pipeline",
    "VideoResult": "videoar.runtime.pipeline",
    "Engine": "videoar.runtime.engine",
    "Handle": "videoar.runtime.handle",
    "PRESETS": "videoar.runtime.presets",
    "TransformerConfig": "videoar.runtime.config",
    "TokenizerConfig": "videoar.runtime.config",
    "ChunkSchedule": "videoar.runtime.schedule",
    "CheckpointError": "videoar.runtime.errors",
    "MediaError": "videoar.runtime.errors",
    "CapacityError": "videoar.runtime.errors",
    "NumericalError": "videoar.runtime.errors",
    "Cancelled": "videoar.runtime.errors",
    "EngineClosed": "videoar.runtime.errors",
    "HookError": "videoar.runtime.errors",
}

# Type checkers take this name as true; importing typing for it would double the import time.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from videoar.runtime.config import TokenizerConfig as TokenizerConfig
    from videoar.runtime.config import TransformerConfig as TransformerConfig
    from videoar.runtime.engine import Engine as Engine
    from videoar.runtime.errors import Cancelled as Cancelled
    from videoar.runtime.errors import CapacityError as CapacityError
    from videoar.runtime.errors import CheckpointError as CheckpointError
    from videoar.runtime.errors import EngineClosed as EngineClosed
    from videoar.runtime.errors import HookError as HookError
    from videoar.runtime.errors import MediaError as MediaError
    from videoar.runtime.errors import NumericalError as NumericalError
    from videoar.runtime.handle import Handle as Handle
    from videoar.runtime.pipeline import VideoAR as VideoAR
    from videoar.runtime.pipeline import VideoResult as VideoResult
    from videoar.runtime.presets import PRESETS as PRESETS
    from videoar.runtime.schedule import ChunkSchedule as ChunkSchedule


def __getattr__(name: str) -> object:
    """Load a public name; an unknown one raises `AttributeError`."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'videoar' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return ["__version__", *_MODULE_OF]

"""The commands that this package adds to `videoar` (entry-point group `videoar.commands`).

Each function is called with the subparsers of `videoar`, adds its parser there and sets the
default `run`, a function of the parsed arguments.
"""

from videoar.training.cli_eval import add_eval
from videoar.training.cli_train import add_train

__all__ = ["add_eval", "add_train"]

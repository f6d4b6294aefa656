"""Computing by our own settings inside a program that has changed torch's for its own work."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import TypeVar

import torch

Function = TypeVar("Function", bound=Callable)


def isolated(function: Function) -> Function:
    """`function` without the caller's autocast, and with the CPU as its default device.

    Both belong to a thread, so the caller's come back behind the call. The default dtype belongs to
    the process: nothing in the runtime relies on it.
    """

    @wraps(function)
    def run(*args, **kwargs):
        with ExitStack() as stack:
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            return function(*args, **kwargs)

    return run

"""The typed errors of the runtime. Bad arguments are plain `ValueError`s that name the field."""


class CheckpointError(RuntimeError):
    """A checkpoint folder is missing, incomplete, damaged or of another architecture."""


class MediaError(RuntimeError):
    """A file is no readable video or image, or media could not be written."""


class CapacityError(RuntimeError):
    """A plan does not fit: carries the bytes needed and the bytes available.

    Args:
        message: what does not fit.
        needed: bytes the plan asks for.
        available: bytes there are.
    """

    def __init__(self, message: str, *, needed: int, available: int) -> None:
        super().__init__(f"{message} (needs {needed:,} bytes, {available:,} available)")
        self.needed = needed
        self.available = available


class NumericalError(RuntimeError):
    """NaN or infinity where a model must give a number: that request ends, others go on."""


class Cancelled(RuntimeError):  # noqa: N818 - the caller asked for it
    """The request was cancelled by its caller, or its handle was dropped."""


class EngineClosed(RuntimeError):  # noqa: N818 - a state, as in queue.ShutDown
    """The engine was closed before the request ended, or before it was submitted."""


class HookError(RuntimeError):
    """A request's `on_step` raised, which ended the request; `__cause__` is what it raised."""

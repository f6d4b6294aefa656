"""Batches made ahead of time by worker processes, in order whatever their number."""

import sys
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from videoar.runtime.errors import MediaError
from videoar.training.sources import Source


class _Steps(Dataset):
    """A source as torch's loader wants it: step in, batch out."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, step: int) -> dict[str, Any]:
        try:
            return self.source.batch(step)
        except MediaError as error:
            # Raised in a worker it would carry that process's traceback in its message.
            return {"error": str(error)}


class Loader(Source):
    """A source whose next batches are made by worker processes meanwhile.

    A worker makes whole batches, so they are those of the source itself. Asking for another step
    than the next one starts the workers again from there. An exception in a worker, and Ctrl-C,
    end all workers before they go on to the caller; killed, they end with their parent.

    Args:
        source: must be picklable where processes are not forked.
        workers: processes; 0 makes each batch when it is asked for.
        ahead: batches that each worker makes in advance.

    Attributes:
        failures: why each file that could not be decoded so far could not, by path; each is also
            told on stderr, once.
    """

    def __init__(self, source: Source, workers: int = 0, ahead: int = 2) -> None:
        if workers < 0 or ahead < 1:
            raise ValueError(f"workers: at least 0, ahead: at least 1, got {workers} and {ahead}")
        self.source, self.workers, self.ahead = source, workers, ahead
        self.failures: dict[str, str] = {}
        self._next: int | None = None
        self._iterator: Iterator[dict[str, Any]] | None = None

    def prepare(self) -> None:
        self.source.prepare()

    def batch(self, step: int) -> dict[str, Any]:
        try:
            batch = self._made(step) if self.workers else self.source.batch(step)
        except BaseException:
            self.close()
            raise
        for path, reason in batch.pop("failed", ()):
            if path not in self.failures:
                tqdm.write(f"left out: {path}: {reason}", file=sys.stderr)
                self.failures[path] = reason
        return batch

    def _made(self, step: int) -> dict[str, Any]:
        if self._iterator is None or step != self._next:
            self._stop()
            self._iterator = iter(
                DataLoader(
                    _Steps(self.source),
                    batch_size=None,
                    sampler=count(step),
                    num_workers=self.workers,
                    prefetch_factor=self.ahead,
                    collate_fn=_unchanged,
                    # Else the workers' seed would be drawn from the global generator.
                    generator=torch.Generator(),
                )
            )
        self._next = step + 1
        batch = next(self._iterator)
        if "error" in batch:
            raise MediaError(batch["error"])
        return batch

    def _stop(self) -> None:
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            # A traceback may hold the iterator, whose end would wait for that.
            iterator._shutdown_workers()

    def close(self) -> None:
        """End the workers; a later `batch` starts new ones."""
        self._stop()
        self.source.close()


def _unchanged(batch: dict[str, Any]) -> dict[str, Any]:
    return batch

"""Keys and values of text prefixes, computed once: prompts repeat, and the empty one always does.

A prefix is prefilled alone, so its numbers do not depend on what it was asked for with.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch

from videoar.runtime.cache import CacheLayout, StaticCache
from videoar.runtime.config import TransformerConfig
from videoar.runtime.sampling import prefill_text
from videoar.runtime.transformer import Transformer

# Texts kept for a slot; a class is one token, so there all classes are kept.
_TEXTS_PER_SLOT = 4


class PrefixStore:
    """A fixed number of prefilled prefixes; the one not used for longest makes room.

    Attributes:
        prefill: computes one prefix into a cache of one row; a graph may take its place.

    Raises:
        CapacityError: it does not fit into the device's memory.
    """

    def __init__(
        self,
        model: Transformer,
        slots: int,
        max_text: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.prefill: Callable[[Sequence[int], StaticCache], None] = partial(prefill_text, model)
        self.places: OrderedDict[tuple[int, ...], int] = OrderedDict()
        self.count = prefix_count(model.config, slots)
        self.free = list(range(self.count))
        self.cache = StaticCache(
            model.config, CacheLayout.of_text(max_text), self.count, dtype, device
        )

    def write(self, tokens: tuple[int, ...], row: StaticCache) -> None:
        """Put the keys and values of `tokens` at the front of `row`, a cache of one row."""
        length = len(tokens)
        place = self._place(tokens)
        row.data[:, :, 0, :, :length] = self.cache.data[:, :, place, :, :length]

    def _place(self, tokens: tuple[int, ...]) -> int:
        if tokens in self.places:
            self.places.move_to_end(tokens)
            return self.places[tokens]
        place = self.free.pop() if self.free else self.places.popitem(last=False)[1]
        try:
            self.prefill(tokens, self.cache.rows(place, 1))
        except BaseException:
            self.free.append(place)
            raise
        self.places[tokens] = place
        return place


def prefix_count(config: TransformerConfig, slots: int) -> int:
    """How many prefixes an engine with `slots` keeps."""
    return config.embeddings if config.condition == "class" else 1 + _TEXTS_PER_SLOT * slots


def prefix_bytes(config: TransformerConfig, slots: int, max_text: int, dtype: torch.dtype) -> int:
    """Bytes of a `PrefixStore`."""
    return CacheLayout.of_text(max_text).num_bytes(config, prefix_count(config, slots), dtype)

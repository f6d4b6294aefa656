"""Which tiles can be tuned: the pure functions that choose them, and what each number may be.

A launcher asks one function of its module for its tiles. `forced` puts another in its place for the
length of a block, so a candidate runs through the same launcher as ever.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videoar.benchmarks.kernel_case import Case

Choice = Mapping[int, int]
"""Numbers of a tile that are set, by their place in it."""

KERNELS = "videoar.kernels."


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunable:
    """One function that chooses tiles.

    Attributes:
        op: operation of `benchmarks/kernel_cases`.
        kernel: in words.
        module, function: where the launcher looks it up.
        fields: names of the numbers that it returns.
        axes: by place, the values to try.
        backward: tuned on the cases with a backward pass; else on those without.
        form: in the names of its cases, where an operation has several kernels; "": all.
        part: which of several tiles that the function returns.
        derive: numbers that follow from the others, from tiles and the function's arguments.
    """

    op: str
    kernel: str
    module: str
    function: str
    fields: tuple[str, ...]
    axes: Choice | Mapping[int, tuple[int, ...]]
    backward: bool = False
    form: str = ""
    part: int | None = None
    derive: Callable[[list[int], tuple[int, ...]], list[int]] | None = None

    def serves(self, case: "Case") -> bool:
        """Whether the tiles are tuned on this case."""
        fits = case.op == self.op and self.form in case.name
        return fits and ("forward+backward" in case.name) == self.backward

    def changed(self, chosen: Any, choice: Choice, arguments: tuple[int, ...]) -> Any:
        """What the function returned, with the numbers of a choice in it."""
        tiles = list(chosen if self.part is None else chosen[self.part])
        for place, value in choice.items():
            tiles[place] = value
        if self.derive is not None and choice:
            tiles = self.derive(tiles, arguments)
        if self.part is None:
            return _like(chosen, tiles)
        inner = _like(chosen[self.part], tiles)
        return (*chosen[: self.part], inner, *chosen[self.part + 1 :])


def _like(chosen: tuple[int, ...], tiles: list[int]) -> tuple[int, ...]:
    return type(chosen)(*tiles) if hasattr(chosen, "_fields") else tuple(tiles)


@contextmanager
def forced(tunable: Tunable, choice: Choice) -> Iterator[list[tuple[int, ...]]]:
    """Let the launcher use a choice inside the block; gives the list of tiles that it took."""
    module = import_module(KERNELS + tunable.module)
    original = getattr(module, tunable.function)
    taken: list[tuple[int, ...]] = []

    def choose(*arguments: int) -> Any:
        tiles = tunable.changed(original(*arguments), choice, arguments)
        taken.append(tuple(tiles if tunable.part is None else tiles[tunable.part]))
        return tiles

    setattr(module, tunable.function, choose)
    try:
        yield taken
    finally:
        setattr(module, tunable.function, original)


def _rms_backward(tiles: list[int], arguments: tuple[int, ...]) -> list[int]:
    """Rows of a program, as `_backward_tiles` counts them."""
    from videoar.kernels.rms_norm import MAX_PARTIALS

    blocks = -(-arguments[0] // tiles[0])
    return [*tiles[:3], -(-blocks // MAX_PARTIALS) * tiles[0]]


def _a_map_a_lane(tiles: list[int], arguments: tuple[int, ...]) -> list[int]:
    """Warps of a program that has as many lanes as maps."""
    return [tiles[0], tiles[0] // arguments[0]]


def _programs(tiles: list[int], arguments: tuple[int, ...]) -> list[int]:
    """Programs of an elementwise launch."""
    rows, width = arguments
    return [*tiles[:2], -(-rows // tiles[0]) * -(-width // tiles[1])]


_ATTENTION = ("block_m", "block_n", "num_warps", "num_stages")
_CHUNK_AXES = MappingProxyType({0: (16, 32, 64, 128), 1: (32, 64, 128), 2: (4, 8), 3: (1, 2, 3, 4)})

TUNABLES = (
    Tunable(
        op="chunk_attention",
        kernel="forward",
        module="chunk_attention_triton",
        function="chunk_attention_tiles",
        fields=_ATTENTION,
        axes=_CHUNK_AXES,
    ),
    *(
        Tunable(
            op="chunk_attention",
            kernel=kernel,
            module="chunk_attention_backward",
            function="backward_tiles",
            fields=_ATTENTION,
            axes=_CHUNK_AXES,
            backward=True,
            part=part,
        )
        for part, kernel in enumerate(("gradient of q", "gradients of k and v"))
    ),
    Tunable(
        op="cached_attention",
        kernel="split",
        module="cached_attention_triton",
        function="cached_attention_tiles",
        fields=("block_m", "block_n", "splits", "num_warps", "num_stages"),
        axes={0: (16, 32, 64, 128), 1: (32, 64, 128), 2: (1, 2, 4, 8, 16), 3: (4, 8), 4: (2, 3, 4)},
    ),
    Tunable(
        op="qk_norm_rope",
        kernel="forward, cache write",
        module="qk_norm_rope_triton",
        function="qk_norm_rope_tiles",
        fields=("block_t", "block_p", "num_warps"),
        axes={0: (1, 2, 4, 8, 16), 2: (1, 2, 4, 8)},
    ),
    Tunable(
        op="next_scale",
        kernel="forward",
        module="next_scale_triton",
        function="next_scale_tiles",
        fields=("block_n", "block_d", "num_warps"),
        axes={0: (16, 32, 64, 128), 1: (8, 16, 32), 2: (1, 2, 4, 8)},
    ),
    Tunable(
        op="bsq_quantize",
        kernel="sums",
        module="bsq_quantize_triton",
        function="bsq_quantize_tiles",
        fields=("block_n", "block_d", "num_warps"),
        axes={0: (16, 32, 64, 128), 1: (4, 8, 16), 2: (2, 4, 8)},
        form="sums",
    ),
    Tunable(
        op="bsq_quantize",
        kernel="lanes",
        module="bsq_quantize_lanes",
        function="bsq_quantize_lanes_tiles",
        fields=("block", "num_warps"),
        axes={0: (32, 64, 128)},
        form="lanes",
        derive=_a_map_a_lane,
    ),
    Tunable(
        op="rms_norm",
        kernel="forward",
        module="rms_norm",
        function="_tiles",
        fields=("BLOCK_M", "BLOCK_C", "num_warps"),
        axes={0: (1, 2, 4), 2: (1, 2, 4, 8, 16)},
    ),
    Tunable(
        op="rms_norm",
        kernel="backward",
        module="rms_norm",
        function="_backward_tiles",
        fields=("BLOCK_M", "BLOCK_C", "num_warps", "rows_per_program"),
        axes={0: (1, 2, 4), 2: (2, 4, 8, 16)},
        backward=True,
        derive=_rms_backward,
    ),
    Tunable(
        op="swiglu",
        kernel="forward",
        module="swiglu",
        function="_tiles",
        fields=("BLOCK_M", "BLOCK_F", "programs"),
        axes={1: (512, 1024, 2048, 4096)},
        derive=_programs,
    ),
)

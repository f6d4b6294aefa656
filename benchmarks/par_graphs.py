"""PAR on a GPU: a graph for every kind of step, replayed for every step of that kind.

All that changes from step to step is read from the device, so the four graphs of a guided clip
serve its 323 steps.
"""

import torch

from videoar.benchmarks.par_model import ParTransformer
from videoar.benchmarks.par_state import Kind, ParState, decode_step, first_steps
from videoar.runtime.graphs import GraphSet

# Those of most rows first: they need most of the memory that all share.
_CAPTURE_ORDER = (Kind.GROUP, Kind.BRIDGE, Kind.SINGLE, Kind.CLASS)


class ParGraphs:
    """Runs steps as graphs on a stream of its own."""

    def __init__(self, model: ParTransformer) -> None:
        self.model, self.device = model, model.norm.weight.device
        self.stream = torch.cuda.Stream(self.device)
        self.graphs = GraphSet(self.stream)
        self.captured: set[tuple[int, bool, bool]] = set()

    def prepare(self, state: ParState) -> None:
        """Capture what a clip needs, once; changes step, codes and flags of `state`."""
        form = _form(state)
        if form in self.captured:
            return
        # Weights and state were written on other streams.
        torch.cuda.synchronize(self.device)
        steps = first_steps(self.model.config)
        for kind in (kind for kind in _CAPTURE_ORDER if kind in steps):
            with torch.cuda.stream(self.stream):
                state.step.fill_(steps[kind])

            def call(kind: Kind = kind) -> None:
                decode_step(self.model, state, kind)

            self.graphs.capture((kind, *form), call, state.buffers())
        self.captured.add(form)

    def step(self, state: ParState, kind: Kind) -> None:
        """Replay a step."""
        self.graphs.replay((kind, *_form(state)), state.buffers())

    def close(self) -> None:
        """Free the graphs."""
        torch.cuda.synchronize(self.device)
        self.graphs.close()
        self.captured.clear()


def _form(state: ParState) -> tuple[int, bool, bool]:
    """What a graph holds fixed: rows, and which parts of the sampling are computed."""
    return len(state.classes), state.filtered, state.greedy

"""Who runs PAR in the suite: this runtime, eager, compiled, and its bare products."""

from videoar.benchmarks.par import Par
from videoar.benchmarks.par_eager import EagerPar
from videoar.benchmarks.par_floor import BareSteps, own_products
from videoar.benchmarks.par_sampling import ParSampling
from videoar.benchmarks.par_state import ParState
from videoar.benchmarks.suite_contenders import Run
from videoar.benchmarks.suite_turns import Laps, Turns

SAMPLING = ParSampling()


def sampled_steps(num_steps: int, stride: int) -> range:
    """Every `stride`-th step, from the middle of the first stride on; 1: all steps."""
    return range(min(stride, num_steps) // 2, num_steps, stride)


class OurPar:
    """This runtime, whole clips, as many together as there are slots."""

    compile_s = None

    def __init__(self, par: Par) -> None:
        self.par, self.calls = par, 0
        self.device = par.transformer.embed_tokens.weight.device
        self.stream = par.graphs and par.graphs.stream
        state = self._start()
        for step in range(par.config.group + 2):
            par.step(state, step)

    def _start(self) -> ParState:
        numbers = range(self.calls, self.calls + self.par.slots)
        self.calls = numbers.stop
        classes = [number % self.par.config.classes for number in numbers]
        return self.par.start(classes, range(self.par.slots), SAMPLING)

    def run(self) -> Turns[Run]:
        steps, state = self.par.config.num_steps, self._start()
        laps = Laps(self.device, self.stream)
        for step in range(steps):
            self.par.step(state, step)
            laps.mark()
            yield from laps.rest((step + 1) / steps)
        self.par.codes(state)
        return Run(step_s=tuple(laps.seconds()), steps=steps)


class OtherPar:
    """The eager code, or the compiled one, on a sample of the steps at their true cache lengths."""

    compile_s = None

    def __init__(self, way: EagerPar, batch: int, stride: int) -> None:
        self.way, self.batch = way, batch
        self.steps = sampled_steps(way.config.num_steps, stride)
        self.device = way.head.device
        self.way.start(self._classes(), SAMPLING)
        for step in range(way.config.group + 2):
            self.way.step(step)

    def _classes(self) -> list[int]:
        return [number % self.way.config.classes for number in range(self.batch)]

    def run(self) -> Turns[Run]:
        self.way.start(self._classes(), SAMPLING)
        steps, laps = self.way.config.num_steps, Laps(self.device)
        for step in self.steps:
            if len(self.steps) < steps:
                self.way.place(step)
                laps.begin()
            self.way.step(step)
            laps.mark()
            yield from laps.rest((step + 1) / steps)
        return Run(step_s=tuple(laps.seconds()), steps=steps)


class BarePar:
    """The matrix products of a sample of the steps, by the runtime's own linear layers."""

    compile_s = None

    def __init__(self, par: Par, stride: int) -> None:
        weight, self.par = par.transformer.embed_tokens.weight, par
        self.device = weight.device
        self.steps = sampled_steps(par.config.num_steps, stride)
        self.graphs = par.graphs and par.graphs.graphs
        rows = par.slots * (1 + SAMPLING.guided)
        self.products = BareSteps(
            own_products(par.transformer),
            par.config.step_lengths,
            rows,
            weight.dtype,
            weight.device,
            self.graphs,
        )

    def run(self) -> Turns[Run]:
        steps = self.par.config.num_steps
        laps = Laps(self.device, self.graphs and self.graphs.stream)
        for step in self.steps:
            self.products.step(step)
            laps.mark()
            yield from laps.rest((step + 1) / steps)
        return Run(step_s=tuple(laps.seconds()), steps=steps)

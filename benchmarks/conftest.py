"""Options, the session's `Suite`, and the table and JSON of what was not run.

`pytest benchmarks --benchmark-only` runs what the device can do in minutes. See docs/benchmarks.md.
"""

import json
import math
import shlex
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

_OPTIONS = {
    "--presets": "models, with commas: digits, videoar-l, -xl, -4b, par-1x, -4x, -16x",
    "--batches": "clips decoded together, with commas; the default of a GPU is 1,8,64",
    "--ways": "with commas: eager, compiled, bare; this runtime (videoar) is always there",
}
_ROUNDS, _SHORT_ROUNDS = 3, 25
_SUITE = pytest.StashKey[object]()
_HEADS = ("model", "batch", "way", "part", "reason")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("videoar", "videoar's suite")
    for name, text in _OPTIONS.items():
        group.addoption(name, default=None, help=text)
    group.addoption("--suite-device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    group.addoption("--suite-dtype", choices=("bfloat16", "float32"), default="bfloat16")
    text = f"of clips, at most ({_ROUNDS}; where they are short {_SHORT_ROUNDS} within 5 s)"
    group.addoption("--rounds", type=int, metavar="N", help=text)
    text = "eager, compiled and bare PAR are timed at every N-th step (CPU: 8, GPU: 1, all)"
    group.addoption("--par-stride", type=int, metavar="N", help=text)
    text = "begin nothing more after so many (default selection on a CPU: 570)"
    group.addoption("--suite-seconds", type=float, metavar="S", help=text)


def _suite(config: pytest.Config) -> object:
    """The `Suite` of the session, made from the options once."""
    from videoar.benchmarks.suite import Suite
    from videoar.benchmarks.suite_select import Selection

    if _SUITE in config.stash:
        return config.stash[_SUITE]
    import torch

    option = config.getoption
    device = option("--suite-device") or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--suite-device cuda: torch sees no CUDA device")
    try:
        selection = Selection.of(
            device,
            models=_words(option("--presets")),
            batches=_numbers(option("--batches")),
            ways=_words(option("--ways")),
        )
    except ValueError as error:
        raise pytest.UsageError(f"--{error}") from None
    for name in ("--rounds", "--par-stride"):
        if option(name) is not None and option(name) < 1:
            raise pytest.UsageError(f"{name}: at least 1, got {option(name)}")
    seconds = option("--suite-seconds")
    if seconds is not None and not 0 < seconds < math.inf:
        raise pytest.UsageError(f"--suite-seconds: expected above 0, got {seconds}")
    if seconds is None and device == "cpu" and not selection.requested:
        seconds = 570.0
    suite = Suite(
        device=device,
        dtype_name=option("--suite-dtype"),
        selection=selection,
        rounds=option("--rounds") or _ROUNDS,
        short_rounds=option("--rounds") or _SHORT_ROUNDS,
        stride=option("--par-stride") or (8 if device == "cpu" else 1),
        seconds=seconds,
    )
    for model, batch, way, part, reason in selection.left_out():
        suite.note(model, part, reason, batch=batch, way=way, requested=False)
    config.stash[_SUITE] = suite
    return suite


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str | None) -> list[int] | None:
    words = _words(text)
    for word in words or ():
        if not word.isdecimal():
            raise ValueError(f"batches: expected numbers, got {word!r}")
    return None if words is None else [int(word) for word in words]


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> object:
    """The `videoar.benchmarks.suite.Suite` of this session."""
    return _suite(request.config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """A bad option ends the session before anything is imported."""
    _suite(session.config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`case` is every case of the selection, `kernel` every case of the operations."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", _suite(metafunc.config).selection.cases(), ids=str)
    if "kernel" in metafunc.fixturenames:
        cases = metafunc.module.cases(_suite(metafunc.config))
        metafunc.parametrize("kernel", cases, ids=lambda case: f"{case.op}: {case.name}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """What cannot run is a skip with its reason, or a failure where it was asked for."""
    from videoar.benchmarks.suite import CannotRunError

    try:
        return (yield)
    except CannotRunError as error:
        if error.requested:
            pytest.fail(f"asked for, and cannot run: {error}", pytrace=False)
        pytest.skip(str(error))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """What was not run, and why."""
    suite = config.stash.get(_SUITE, None)
    if suite is None or not suite.not_run:
        return
    terminalreporter.section("not run")
    rows = [_HEADS, *([str(row[name]) for name in _HEADS] for row in suite.not_run)]
    *widths, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        terminalreporter.write_line("  ".join([*cells, row[-1]]))


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list, output_json: dict
) -> None:
    """Add what belongs to the whole run."""
    suite = config.stash.get(_SUITE, None)
    if suite is None:
        return
    output_json |= _whole_run(config, suite)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """pytest-benchmark writes nothing where nothing ran: the reasons are written here."""
    config = session.config
    suite, path = config.stash.get(_SUITE, None), config.getoption("benchmark_json", None)
    if suite is None or path is None or not suite.not_run or config._benchmarksession.benchmarks:
        return
    date = datetime.now(timezone.utc).isoformat()
    document = {"datetime": date, "benchmarks": [], **_whole_run(config, suite)}
    Path(path).write_text(json.dumps(document, indent=4) + "\n")


def _whole_run(config: pytest.Config, suite: object) -> dict[str, object]:
    words = [str(word) for word in config.invocation_params.args]
    command = f"pytest {shlex.join(words)}"
    return {"not_run": suite.not_run, "suite": {**suite.document(), "command": command}}

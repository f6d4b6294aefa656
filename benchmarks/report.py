"""The benchmark suite as one report: JSON, Markdown tables, two plots, a comparison.

Run as `python -m videoar.benchmarks.report --out DIR [-- arguments for pytest]`. It runs
`pytest benchmarks --benchmark-only`, or reads what that wrote (`--json`). The last line of stdout
is the report's JSON. Exit status: 0, also where this machine cannot run something (the table says
why); 1 where something asked for by name did not run, a benchmark failed, or `--compare` finds
something slower; 2 where there is nothing to report. See docs/benchmarks.md.
"""

import argparse
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from videoar.benchmarks.kernels import save
from videoar.benchmarks.report_compare import (
    Tolerance,
    compare,
    difference_table,
    largest_move,
    slower,
)
from videoar.benchmarks.report_document import build
from videoar.benchmarks.report_plots import draw
from videoar.benchmarks.report_tables import markdown, readme_block

JSON, MARKDOWN, SUITE = "report.json", "report.md", "suite.json"
_REPORT, _SUITE_JSON = f"the {JSON} of a report", "the JSON of the suite"
FOLDER = Path(__file__).resolve().parent
# As in pyproject.toml, which an installed package does not have.
_PATTERNS = (
    *("-o", "python_files=bench_*.py", "-o", "python_functions=bench_*"),
    "--import-mode=importlib",
)


def run_suite(path: Path, arguments: Sequence[str]) -> int:
    """Run the suite in a process of its own, its output on this one's.

    Args:
        path: of the JSON that it writes.
        arguments: for pytest; `--benchmark-only` and the JSON are given already.

    Returns:
        pytest's exit status.
    """
    command = [sys.executable, "-m", "pytest", FOLDER.name, "--benchmark-only", "-q", *_PATTERNS]
    command += [f"--benchmark-json={path.resolve()}", *arguments]
    return subprocess.run(command, cwd=FOLDER.parent, check=False).returncode


def asked_for(document: dict[str, Any]) -> list[str]:
    """What was asked for by name and did not run."""
    return [
        f"{one.get('model', one.get('name'))}, {one.get('part')}: {one['reason']}"
        for one in document["not_run"]
        if one.get("requested")
    ]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; what stands behind `--` is for pytest."""
    tolerance = Tolerance()
    parser = argparse.ArgumentParser(prog="videoar.benchmarks.report", description=__doc__)
    parser.add_argument("--out", type=Path, help=f"folder of {JSON}, {MARKDOWN} and the plots")
    parser.add_argument("--json", type=Path, help="of a suite's run, instead of running it")
    parser.add_argument("--table", type=Path, help=f"print the README's table of a {JSON}, only")
    parser.add_argument("--compare", type=Path, help=f"an older {JSON}; exit 1 if slower")
    text = "what a difference must exceed to count, in percent of the old"
    parser.add_argument("--percent", type=float, default=tolerance.percent, help=text)
    text = "and in milliseconds"
    parser.add_argument("--floor-ms", type=float, default=tolerance.floor_ms, help=text)
    text = "and, for a ratio, as a number"
    parser.add_argument("--ratio-floor", type=float, default=tolerance.ratio_floor, help=text)
    parser.add_argument("pytest", nargs="*", help="behind --: arguments for pytest")
    options = parser.parse_args(arguments)
    if options.table is None and options.out is None:
        parser.error("--out: expected a folder")
    for name in ("percent", "floor_ms", "ratio_floor"):
        if not 0 <= getattr(options, name) < math.inf:
            text = f"expected 0 or more, got {getattr(options, name)}"
            parser.error(f"--{name.replace('_', '-')}: {text}")
    for word in options.pytest:
        if word.startswith("--benchmark-json"):
            parser.error(f"{word}: the suite's JSON is {SUITE} in the folder of --out")
    return options


def suite_of(options: argparse.Namespace) -> tuple[dict[str, Any] | None, int]:
    """The suite's JSON, if there is one, and its exit status."""
    if options.json is not None:
        return _object_of(options.json, "--json", ("benchmarks",), _SUITE_JSON), 0
    path = options.out / SUITE
    path.unlink(missing_ok=True)
    status = run_suite(path, options.pytest)
    written = path.exists() and path.stat().st_size
    return json.loads(path.read_text()) if written else None, status


def command_of(options: argparse.Namespace, arguments: Sequence[str]) -> str | None:
    """What ran the suite, for whoever wants to repeat it; None where only its JSON is known."""
    if options.json is not None:
        command = json.loads(options.json.read_text()).get("suite", {}).get("command")
        # Where the file was is of no use to others.
        return command and re.sub(r" --benchmark-json[= ]\S+", "", command)
    return shlex.join(["python", "-m", "videoar.benchmarks.report", *arguments])


def report(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Run or read the suite, write everything, print the tables and the JSON."""
    options.out.mkdir(parents=True, exist_ok=True)
    older = None if options.compare is None else older_report(options.compare)
    suite, status = suite_of(options)
    if suite is None or not (suite["benchmarks"] or suite.get("not_run")):
        text = f"no benchmark ran; pytest's exit status is {status}"
        print(f"videoar.benchmarks.report: {text}", file=sys.stderr)
        return 2
    date = suite.get("datetime") or datetime.now(timezone.utc).isoformat()
    with _reading(options.json or options.out / SUITE, "--json", _SUITE_JSON):
        document = build(suite, command_of(options, arguments), date)
    plots, reasons = draw(document, options.out)
    document["plots"] = [path.name for path in plots]
    document["no_plots"] = reasons
    save(options.out / JSON, document)
    text = markdown(document)
    failed, unlike = [], False
    if older is not None:
        try:
            lines, failed = comparison(options, older, document)
        except ValueError as error:  # it must not cost what was measured
            lines, failed, unlike = [str(error)], [str(error)], True
        text += "\n## Compared with the older report\n\n" + "\n".join(lines) + "\n"
    (options.out / MARKDOWN).write_text(text)
    print(text)
    for line in (*reasons, *failed, *asked_for(document)):
        print(f"videoar.benchmarks.report: {line}", file=sys.stderr)
    print(json.dumps(document), flush=True)
    if unlike:
        return 2
    return 1 if status or failed or asked_for(document) else 0


def older_report(path: Path) -> dict[str, Any]:
    """What to compare with.

    Raises:
        ValueError: the file is no report that another one can be compared with.
    """
    older = _object_of(path, "--compare", ("entries", "ratios", "hardware"), _REPORT)
    with _reading(path, "--compare", _REPORT):
        found = compare(older, older, Tolerance())
        difference_table(found)
        largest_move(found)
    return older


@contextmanager
def _reading(path: Path, option: str, what: str) -> Iterator[None]:
    """Say of which file it is that something is not as it should be."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        text = f"not {what} ({type(error).__name__}: {error})"
        raise ValueError(f"{option} {path}: {text}") from None


def _object_of(path: Path, option: str, keys: Sequence[str], what: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{option} {path}: {error}") from None
    if not isinstance(found, dict) or not set(keys) <= found.keys():
        raise ValueError(f"{option} {path}: not {what}")
    return found


def comparison(
    options: argparse.Namespace, older: dict[str, Any], document: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """The table against the older report, and what fails."""
    tolerance = Tolerance(
        percent=options.percent, floor_ms=options.floor_ms, ratio_floor=options.ratio_floor
    )
    found = compare(older, document, tolerance)
    lines = difference_table(found)
    if (most := largest_move(found)) is not None:
        lines += ["", f"The ratio that moved most: `{most.name}`, {most.new / most.old - 1:+.1%}."]
    return lines, [f"slower: {one.name}, {one.old:.6g} to {one.new:.6g}" for one in slower(found)]


def main(arguments: list[str] | None = None) -> int:
    """The exit status is that of the file's head."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parse(given)
    try:
        if options.table is not None:
            document = _object_of(options.table, "--table", ("entries", "ratios"), _REPORT)
            with _reading(options.table, "--table", _REPORT):
                text = readme_block(document)
            print(text, end="")
            return 0
        return report(options, given)
    except (OSError, ValueError) as error:
        print(f"videoar.benchmarks.report: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""The JSON of a report: the entries of a suite's run, the named ratios, and what was not run.

Everything comes from that run: device, versions and commit are those of the entries, not those of
the process that reads them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from videoar.benchmarks.report_measured import Measured, kind_of
from videoar.benchmarks.report_ratios import NAMED, ratio_of

FORMAT = 1


def build(suite: Mapping[str, Any], command: str | None, date: str) -> dict[str, Any]:
    """The report's JSON from that of the suite.

    Args:
        suite: as pytest-benchmark wrote it.
        command: that ran the suite; None: not known.
        date: ISO, of the run.

    Raises:
        ValueError: a benchmark without the fields of an entry.
    """
    entries = [Measured.of(benchmark) for benchmark in suite["benchmarks"]]
    run = suite.get("suite", {})
    names = ("device", "threads", "dtype", "versions", "commit")
    facts = {name: _only(getattr(e, name) for e in entries) or run.get(name) for name in names}
    return {
        "format": FORMAT,
        "date": date,
        "hardware": hardware_of(facts["device"], facts["threads"]),
        **facts,
        "command": command,
        "limits": run.get("limits"),
        "ceilings": run.get("ceilings"),
        "models": models_of(entries),
        "ratios": {named.name: ratio_of(entries, named) for named in NAMED},
        "disturbed": disturbed(entries),
        "entries": [asdict(entry) for entry in entries],
        "not_run": list(suite.get("not_run", ())),
    }


def disturbed(entries: Sequence[Measured], factor: float = 1.5) -> list[str]:
    """The entries of which one round took more than `factor` times as long as another."""
    return [
        entry.name
        for entry in entries
        if entry.samples and max(entry.samples) > factor * min(entry.samples)
    ]


def entries_of(document: Mapping[str, Any]) -> list[Measured]:
    """The entries of a report's JSON."""
    return [Measured.from_dict(facts) for facts in document["entries"]]


def _only(values: Any) -> Any:
    """The one value that all agree on, else the list of them."""
    different: list[Any] = []
    for value in values:
        if value is not None and value not in different:
            different.append(value)
    return different if len(different) > 1 else (different or [None])[0]


def hardware_of(device: str | None, threads: int | None) -> str:
    """Name of the GPU, or of the processor and its threads."""
    if device is None:
        return "hardware not known"
    if kind_of(device) == "cuda" or not threads:
        return device
    return f"{device.removeprefix('CPU ')}, {threads} thread{'s' * (threads != 1)}"


def models_of(entries: Sequence[Measured]) -> dict[str, dict[str, int | None]]:
    """Parameters and steps of a clip for every model that is a preset."""
    from videoar.benchmarks.par import PAR_PRESETS, describe
    from videoar.runtime.plan import parameter_counts
    from videoar.runtime.presets import PRESETS

    facts: dict[str, dict[str, int | None]] = {}
    for name in dict.fromkeys(entry.model for entry in entries):
        if name in PAR_PRESETS:
            sizes = describe(PAR_PRESETS[name])
            facts[name] = {"parameters": sizes["parameters"], "steps": sizes["steps"]}
        elif name in PRESETS:
            transformer = PRESETS[name].transformer
            facts[name] = {
                "parameters": parameter_counts(PRESETS[name])["transformer"],
                "steps": transformer.max_frames * len(transformer.sizes),
            }
    return facts

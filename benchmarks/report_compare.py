"""What became slower between two reports of one device.

A difference counts only where it exceeds both a percentage and an absolute floor: a percentage
alone trips over microseconds, a floor alone over minutes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from videoar.benchmarks.report_document import entries_of
from videoar.benchmarks.report_measured import OURS, find
from videoar.benchmarks.report_ratios import NAMED
from videoar.benchmarks.report_tables import NONE, table


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What a difference must exceed, both of them.

    Attributes:
        percent: of the old time, and of the old ratio.
        floor_ms: milliseconds of a time.
        ratio_floor: of a ratio.
    """

    percent: float = 10.0
    floor_ms: float = 0.05
    ratio_floor: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One number of two reports.

    Attributes:
        name: of the entry or ratio.
        old, new: seconds or ratio; None: not in that report.
        unit: "s" or "x".
        verdict: "slower", "faster", "same", "gone", "new".
    """

    name: str
    old: float | None
    new: float | None
    unit: str
    verdict: str


def compare(
    old: Mapping[str, Any], new: Mapping[str, Any], tolerance: Tolerance
) -> list[Difference]:
    """All entries and ratios of both.

    Raises:
        ValueError: the reports are of different hardware, or have nothing in common.
    """
    if old["hardware"] != new["hardware"]:
        raise ValueError(
            f"--compare: times of {old['hardware']} say nothing about {new['hardware']}"
        )
    made = [*_times(old, new, tolerance), *_ratios(old, new, tolerance)]
    if all(None in (one.old, one.new) for one in made):
        raise ValueError("--compare: the reports have no entry in common")
    return made


def _times(
    old: Mapping[str, Any], new: Mapping[str, Any], tolerance: Tolerance
) -> Iterator[Difference]:
    before = {entry.key: entry for entry in entries_of(old)}
    after = {entry.key: entry for entry in entries_of(new)}
    for key in {**before, **after}:
        entry = before.get(key) or after[key]
        seconds = [side[key].seconds if key in side else None for side in (before, after)]
        name = f"{entry.model} {entry.way} {entry.part} batch {entry.batch}, {entry.name}"
        yield _difference(name, *seconds, "s", tolerance.floor_ms / 1e3, tolerance.percent, False)


def _ratios(
    old: Mapping[str, Any], new: Mapping[str, Any], tolerance: Tolerance
) -> Iterator[Difference]:
    dtypes = [_ratio_dtypes(side) for side in (old, new)]
    for name, one in new["ratios"].items():
        before = old["ratios"].get(name, {}).get("value")
        if None not in (kinds := [side.get(name) for side in dtypes]) and kinds[0] != kinds[1]:
            before = None
        values = (before, one["value"])
        if values == (None, None):
            continue
        floor, percent = tolerance.ratio_floor, tolerance.percent
        yield _difference(name, *values, "x", floor, percent, one["at_least"])


def _ratio_dtypes(document: Mapping[str, Any]) -> dict[str, str | None]:
    """What the ratios by name were computed in; a ratio of another dtype is another ratio."""
    entries = entries_of(document)
    found = {named.name: find(entries, named.model, OURS, named.part) for named in NAMED}
    return {name: entry.dtype for name, entry in found.items() if entry is not None}


def _difference(
    name: str,
    old: float | None,
    new: float | None,
    unit: str,
    floor: float,
    percent: float,
    more_is_better: bool,
) -> Difference:
    if old is None or new is None:
        verdict = "new" if old is None else "gone"
    elif abs(new - old) <= floor or abs(new - old) <= percent / 100 * old:
        verdict = "same"
    else:
        verdict = "faster" if (new > old) == more_is_better else "slower"
    return Difference(name=name, old=old, new=new, unit=unit, verdict=verdict)


def slower(differences: list[Difference]) -> list[Difference]:
    """Those that fail a comparison."""
    return [one for one in differences if one.verdict == "slower"]


def largest_move(differences: list[Difference]) -> Difference | None:
    """The ratio that moved most, in percent of the old one."""
    moved = [one for one in differences if one.unit == "x" and None not in (one.old, one.new)]
    return max(moved, key=lambda one: abs(one.new / one.old - 1), default=None)


def difference_table(differences: list[Difference]) -> list[str]:
    """Every number of both reports, side by side."""
    rows = []
    for one in differences:
        values = [NONE if x is None else f"{x:.6g} {one.unit}" for x in (one.old, one.new)]
        known = None not in (one.old, one.new)
        rows.append(
            (one.name, *values, f"{one.new / one.old - 1:+.1%}" if known else NONE, one.verdict)
        )
    return table(("what", "old", "new", "change", "verdict"), rows)

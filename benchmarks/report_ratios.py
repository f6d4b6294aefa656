"""The ratios that a report always has: VideoAR over PAR, and this runtime over other ways.

The two are never mixed, but for the one that says so. A ratio is the median over the rounds in
which both sides were timed; its extremes are those of the single rounds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from videoar.benchmarks.report_measured import OURS, WAYS, Measured, find, kind_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A ratio that a report always has, measured or not.

    Attributes:
        name: its key.
        model, part: of the entry that it is read from, by this runtime and batch 1.
        top, bottom: the two times, `OURS` or an opponent of the entry.
        meaning: in words.
        targets: by kind of device, "cpu" or "cuda".
        at_least: whether the target is a lower bound.
    """

    name: str
    model: str
    part: str
    top: str
    bottom: str
    meaning: str
    targets: Mapping[str, float] = field(default_factory=dict)
    at_least: bool = True


def _others(model: str, part: str, key: str, targets: Mapping[str, Mapping]) -> list[Named]:
    """The runtime against each other way, for one model."""
    return [
        Named(
            name=f"{key}_vs_{way}",
            model=model,
            part=part,
            top=way,
            bottom=OURS,
            meaning=f"{model}, {part}: {way} over this runtime",
            targets=targets.get(way, {}),
        )
        for way in WAYS[1:]
    ]


_BOTH = {
    OURS: "both on this runtime",
    "compiled": "both compiled",
    "eager": "both eager",
    "bare": "their bare matrix products",
}


def _par(way: str, targets: Mapping[str, float]) -> Named:
    """PAR over VideoAR, both in one way."""
    own = way == OURS
    return Named(
        name="videoar_l_vs_par_4x" + ("" if own else f"_{way}"),
        model="videoar-l",
        part="transformer",
        top="par-4x" if own else f"par-4x {way}",
        bottom=way,
        meaning=f"transformer: par-4x over videoar-l, {_BOTH[way]}",
        targets=targets,
    )


def _bare(model: str, key: str) -> Named:
    return Named(
        name=f"{key}_over_bare",
        model=model,
        part="transformer",
        top=OURS,
        bottom="bare",
        meaning=f"{model}, transformer: this runtime over its bare matrix products",
        targets={"cpu": 1.15},
        at_least=False,
    )


NAMED = (
    _par(OURS, {"cpu": 4.2, "cuda": 8.0}),
    _par("compiled", {}),
    _par("eager", {}),
    _par("bare", {}),
    Named(
        name="videoar_l_vs_par_4x_mixed",
        model="videoar-l",
        part="transformer",
        top="par-4x eager",
        bottom=OURS,
        meaning="transformer: eager par-4x over videoar-l on this runtime; model and runtime mixed",
        targets={"cuda": 40.0},
    ),
    _bare("videoar-l", "videoar_l"),
    _bare("par-4x", "par_4x"),
    *_others(
        "videoar-l", "transformer", "videoar_l", {"eager": {"cpu": 1.2}, "compiled": {"cuda": 1.3}}
    ),
    *_others("videoar-l", "clip", "videoar_l_clip", {"eager": {"cpu": 1.35}}),
    *_others("par-4x", "transformer", "par_4x", {}),
)


def ratio_of(entries: Sequence[Measured], named: Named) -> dict[str, Any]:
    """A named ratio; `value` None with a reason where it was not measured.

    Keys: `value`, `low`, `high` (extremes of the rounds), `rounds`, `paired` (both times are of the
    same rounds), `meaning`, `target`, `at_least`, `met`, `reason`.
    """
    entry = find(entries, named.model, OURS, named.part)
    pairs = [] if entry is None else _pairs(entry, named)
    value, paired = (median(pairs), True) if pairs else (_unpaired(entries, named), False)
    device = (entry or entries[0]).device if entries else None
    target = named.targets.get(kind_of(device))
    met = None
    if None not in (value, target):
        met = value >= target if named.at_least else value <= target
    return {
        "value": value,
        "low": min(pairs, default=None),
        "high": max(pairs, default=None),
        "rounds": len(pairs) or None,
        "paired": paired if value is not None else None,
        "meaning": named.meaning,
        "target": target,
        "at_least": named.at_least,
        "met": met,
        "reason": "" if value is not None else _reason(entries, named),
    }


def _series(entry: Measured, name: str) -> Sequence[float]:
    return entry.samples if name == OURS else entry.opponents.get(name, {}).get("samples") or ()


def _pairs(entry: Measured, named: Named) -> list[float]:
    """The ratio in every round that has both: what stands at one place is of one round."""
    top, bottom = _series(entry, named.top), _series(entry, named.bottom)
    return [one / other for one, other in zip(top, bottom, strict=False)]


def _unpaired(entries: Sequence[Measured], named: Named) -> float | None:
    """Of the medians of two entries, timed one after the other."""
    sides = [_entry_of(entries, named, side) for side in (named.top, named.bottom)]
    return None if None in sides else sides[0].seconds / sides[1].seconds


def _entry_of(entries: Sequence[Measured], named: Named, side: str) -> Measured | None:
    """The entry that a side names: "eager", "par-4x", "par-4x eager"."""
    if side in (*WAYS, "bare"):
        return find(entries, named.model, side, named.part)
    model, _, way = side.partition(" ")
    return find(entries, model, way or OURS, named.part)


def _reason(entries: Sequence[Measured], named: Named) -> str:
    entry = find(entries, named.model, OURS, named.part)
    if entry is None:
        return f"{named.model}, {named.part} was not timed at batch 1"
    there = {OURS, *entry.opponents}
    missing = [side for side in (named.top, named.bottom) if side not in there]
    return f"not timed beside {named.model}: {', '.join(missing) or 'in the same rounds'}"

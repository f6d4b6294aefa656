"""A report as Markdown: Table 3 with our columns, ratios, every entry, and what was not run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from videoar.benchmarks.report_document import entries_of
from videoar.benchmarks.report_measured import OURS, WAYS, Measured, find
from videoar.benchmarks.report_published import PUBLISHED

NONE = "-"
README_PARTS = ("transformer", "decoder", "clip")


def markdown(document: Mapping[str, Any]) -> str:
    """The whole report."""
    entries = entries_of(document)
    parts = {
        "Table 3 of arXiv 2601.05966, and what was measured here": table_3(document, entries),
        "Ratios": ratio_table(document["ratios"]),
        "Entries": entry_table(entries),
        "Not run": not_run_table(document["not_run"]),
        "Plots": [f"![{name}]({name})" for name in document["plots"]] + document["no_plots"],
    }
    lines = ["# Benchmark report", "", provenance(document)]
    for title, table in parts.items():
        lines += ["", f"## {title}", "", *table]
    return "\n".join(lines) + "\n"


def provenance(document: Mapping[str, Any]) -> str:
    """Device, versions, commit, date and command in one line; how steady the machine was."""
    versions = document.get("versions")
    torch = versions.get("torch") if isinstance(versions, Mapping) else None
    facts = [
        document["hardware"],
        _words(document["dtype"]),
        f"torch {torch or 'not known'}",
        f"commit {_short(document['commit'])}",
        document["date"][:10],
        f"`{document['command'] or 'command not known'}`",
    ]
    count, total = len(document["disturbed"]), len(document["entries"])
    noise = f" Not a quiet machine: in {count} of {total} entries rounds differ by more than half."
    return ", ".join(facts) + "." + noise * bool(count) + _pace(document.get("ceilings"))


def _pace(ceilings: Mapping[str, Sequence[float]] | None) -> str:
    """Between what bounds a copy's bandwidth and a product's rate moved while the suite ran."""
    if not ceilings or ceilings["bandwidth"][0] == ceilings["bandwidth"][1]:
        return ""
    low, high = (f"{value / 1e9:.1f}" for value in ceilings["bandwidth"])
    slow, fast = (f"{value / 1e12:.3f}" for value in ceilings["rate"])
    return f" Meanwhile copies ran at {low} to {high} GB/s, products at {slow} to {fast} TFLOP/s."


def table_3(document: Mapping[str, Any], entries: Sequence[Measured]) -> list[str]:
    """Published lines as published; ours with the way, and times the limit."""
    heads = (
        *("model", "params", "gFVD", "steps", "s a clip: steps", "with decoding"),
        *("times the limit: steps", "with decoding", "way", "hardware"),
    )
    rows: list[tuple[object, ...]] = [
        (
            *(one.model, one.parameters, one.gfvd, one.steps),
            *(NONE, f"{one.seconds:.2f} (not stated)", NONE, NONE, NONE, one.hardware),
        )
        for one in PUBLISHED
    ]
    groups = dict.fromkeys((e.model, e.way, e.batch) for e in entries if e.part in README_PARTS)
    for model, way, batch in groups:
        facts = document["models"].get(model, {})
        parts = [find(entries, model, way, part, batch) for part in ("transformer", "clip")]
        parts = [None if one is None else _clip(one, batch) for one in parts]
        steps = parts[0].steps if parts[0] is not None else facts.get("steps")
        rows.append(
            (
                *(model, _count(facts.get("parameters")), NONE, steps or NONE),
                *(NONE if one is None else f"{one.seconds:.3f}" for one in parts),
                *(_times(one) for one in parts),
                *(f"{way}, batch {batch}", f"measured; {document['hardware']}"),
            )
        )
    return table(heads, rows)


def _clip(entry: Measured, batch: int | None) -> Measured:
    """The entry a clip: time and limit of a batch over its clips."""
    limit = entry.limit_s and entry.limit_s / (batch or 1)
    return replace(entry, seconds=entry.seconds / (batch or 1), limit_s=limit)


def ratio_table(ratios: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every named ratio with its spread and target, or the reason why it is missing."""
    rows = []
    for name, one in ratios.items():
        if one["value"] is None:
            rows.append((f"`{name}`", one["meaning"], f"not measured: {one['reason']}", NONE, NONE))
            continue
        spread = NONE if one["low"] is None else f"{one['low']:.2f} .. {one['high']:.2f}"
        target = NONE
        if one["target"] is not None:
            bound = "at least" if one["at_least"] else "at most"
            target = f"{bound} {one['target']}: {'met' if one['met'] else 'missed'}"
        value = f"{one['value']:.2f}" + ("" if one["paired"] else " (not interleaved)")
        rows.append((f"`{name}`", one["meaning"], value, spread, target))
    return table(("ratio", "meaning", "value", "rounds", "target"), rows)


def entry_table(entries: Sequence[Measured]) -> list[str]:
    """A line for every entry, with the others' times over it."""
    heads = ("model", "way", "part", "batch", "median", "rounds", "limit", "times the limit")
    rows = [
        (
            *(e.model, e.way, e.part, e.batch or NONE, _time(e.seconds), len(e.samples) or NONE),
            *(_time(e.limit_s), _times(e)),
            *(_opponents(e), _timed(e)),
        )
        for e in entries
    ]
    return table((*heads, "others over it", "timed"), rows)


def _opponents(entry: Measured) -> str:
    stated = {name: one.get("ratio") for name, one in entry.opponents.items()}
    known = [f"{name} {ratio:.2f}" for name, ratio in stated.items() if ratio is not None]
    return ", ".join(known) or NONE


def _timed(entry: Measured) -> str:
    notes = [entry.timed or ""]
    if entry.scaled:
        notes.append(f"{entry.scaled['timed']} of {entry.scaled['of']} steps timed, then scaled")
    if entry.limit_s is None and entry.limit_note:
        notes.append(f"no limit: {entry.limit_note}")
    return "; ".join(note for note in notes if note) or NONE


def not_run_table(not_run: Sequence[Mapping[str, Any]]) -> list[str]:
    """What could not run and why, batches in one line; one line in all where everything ran."""
    if not not_run:
        return ["Everything that was selected ran."]
    names = ("model", "part", "way", "requested")
    lines: dict[tuple[Any, ...], tuple[list[Any], str]] = {}
    for one in not_run:
        # Behind the colon stand details of the batch.
        key = (*(one.get(name) for name in names), one["reason"].partition(":")[0])
        lines.setdefault(key, ([], one["reason"]))[0].append(one.get("batch"))
    rows = [
        (*map(_words, key[:2]), _words(batches), _words(key[2]), reason, "yes" if key[3] else "no")
        for key, (batches, reason) in lines.items()
    ]
    return table(("model", "part", "batch", "way", "reason", "asked for by name"), rows)


def readme_block(document: Mapping[str, Any]) -> str:
    """The README's measured table: this runtime, and how many times as long the others take.

    A pure function of the report's JSON, so that a test can hold the README to the file.
    """
    entries = [
        entry
        for entry in entries_of(document)
        if entry.way == OURS and entry.part in README_PARTS and entry.batch == 1
    ]
    heads = ("batch 1", "steps", "s", "times the limit", "over bare products")
    rows = [
        (
            f"`{entry.model}`, {entry.part}",
            (entry.part != "decoder" and entry.steps) or NONE,
            f"{entry.seconds:.3g}",
            _times(entry),
            _inverse(entry, "bare"),
            *(_over(entry, way) for way in WAYS[1:]),
        )
        for entry in entries
    ]
    others = tuple(f"`{way}` takes" for way in WAYS[1:])
    lines = [provenance(document), "", *table((*heads, *others), rows)]
    if text := _against_par(document["ratios"]):
        lines += ["", text]
    return "\n".join(lines) + "\n"


def _against_par(ratios: Mapping[str, Mapping[str, Any]]) -> str:
    """The speed-up over PAR in every way that was measured, in a sentence."""
    names = {way: "videoar_l_vs_par_4x" + f"_{way}" * (way != OURS) for way in WAYS}
    found = {way: ratios[name] for way, name in names.items() if ratios[name]["value"] is not None}
    if not found:
        return ""
    texts = []
    for way, one in found.items():
        low, high = one["low"], one["high"]
        spread = "" if low is None else f" ({low:.2f} .. {high:.2f})"
        texts.append(f"{one['value']:.2f}{spread} by `{way}`")
    return (
        f"PAR-4x takes times VideoAR-L's, transformer only, both the same way: {', '.join(texts)}."
    )


def _over(entry: Measured, name: str) -> str:
    ratio = entry.opponents.get(name, {}).get("ratio")
    return NONE if ratio is None else f"{ratio:.2f}x"


def _inverse(entry: Measured, name: str) -> str:
    ratio = entry.opponents.get(name, {}).get("ratio")
    return NONE if not ratio else f"{1 / ratio:.2f}"


def _times(entry: Measured | None) -> str:
    times = None if entry is None else entry.times_limit
    return NONE if times is None else f"{times:.2f}"


def _time(seconds: float | None) -> str:
    """Four digits in the largest unit that has one in front of the point."""
    if seconds is None:
        return NONE
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.4g} {unit}"
    return f"{seconds * 1e6:.4g} us"


def _count(parameters: int | None) -> str:
    if parameters is None:
        return NONE
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:,.1f} M"


def _words(value: Any) -> str:
    if value is None:
        return NONE
    return ", ".join(map(_words, value)) if isinstance(value, (list, tuple)) else str(value)


def _short(commit: Any) -> str:
    if not isinstance(commit, str):
        return _words(commit) if commit else "not known"
    return commit[:7] + "+" * commit.endswith("+")


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table; numbers and words alike."""
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]

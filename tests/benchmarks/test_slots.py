"""Slots together against one by one: the table, its ratios, and what is decoded how."""

import json
from dataclasses import replace
from statistics import median

import pytest

from videoar.benchmarks import slots
from videoar.runtime.cpu_layers import one_call
from videoar.runtime.executor import ModelExecutor
from videoar.runtime.modules import DTYPES
from videoar.runtime.presets import PRESETS


def test_table_and_json(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = PRESETS["digits"]
    small = replace(digits.transformer, layers=1, max_frames=2, sizes=((1, 1), (4, 4)))
    monkeypatch.setitem(PRESETS, "digits", replace(digits, transformer=small))
    if not one_call(small, DTYPES["float32"]):
        pytest.skip("no packed panels on this processor")
    batches, decode = [], ModelExecutor._decode

    def spied(executor: ModelExecutor, group: list[int], on_scale: object) -> float:
        batches.append(len(group))
        return decode(executor, group, on_scale)

    monkeypatch.setattr(ModelExecutor, "_decode", spied)
    words = ["--slots", "3", "--dtype", "float32", "--rounds", "2"]
    assert slots.main(words) == 0
    # A round untimed and two timed, of two latent frames each.
    assert (batches.count(3), batches.count(1)) == (3 * 2, 3 * 2 * 3)
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    (row,) = document["rows"]
    assert (row["slots"], row["together"]) == (3, 3)
    for part, samples in row["samples_ms"].items():
        pairs = zip(samples["one by one"], samples["together"], strict=True)
        assert row["ratios"][part] == pytest.approx(median(a / b for a, b in pairs))
    both = (row["samples_ms"][part]["together"] for part in ("steps", "clip"))
    for steps, clip in zip(*both, strict=True):
        assert 0 < steps < clip


def test_where_they_cannot_be(capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr("videoar.runtime.plan.one_call", lambda config, dtype: False)
    with pytest.raises(SystemExit) as caught:
        slots.main(["--slots", "2"])
    assert caught.value.code == 2
    assert "slots are decoded one by one here" in capsys.readouterr().err

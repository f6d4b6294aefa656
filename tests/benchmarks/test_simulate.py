"""Simulation: predictions are those of the cost card, and scale as the arithmetic says."""

import json
from dataclasses import replace

import pytest
import torch

from videoar.benchmarks import simulate, simulate_check
from videoar.benchmarks.simulate_points import Point, Shares, axes_of, fleet, predict
from videoar.runtime import plan
from videoar.runtime.cli import main as videoar_main
from videoar.runtime.limits import H200
from videoar.runtime.presets import PRESETS

BF16 = torch.bfloat16
SMALL = Point.of("digits")


@pytest.mark.parametrize("slots", [1, 3])
def test_the_prediction_is_the_cost_card(slots, capsys):
    arguments = ["inspect", "--cost", "--preset", "videoar-4b", "--device", "h200", "--json"]
    assert videoar_main([*arguments, "--dtype", "bfloat16", "--slots", str(slots)]) == 0
    card = json.loads(capsys.readouterr().out)
    point = Point.of("videoar-4b", slots=slots)
    one = predict(point, H200)
    assert one.seconds == pytest.approx(card["seconds"])
    assert one.transformer_s == pytest.approx(card["clip"]["transformer"]["seconds"])
    assert one.decoder_s == pytest.approx(card["clip"]["decoder"]["seconds"])
    assert one.clips_per_second == pytest.approx(card["clips_per_second"])
    assert one.total_bytes == card["plan"]["total"]
    assert one.fits == card["plan"]["fits"]


def test_a_preset_point_has_the_preset_config():
    for name, config in PRESETS.items():
        point = Point.of(name)
        assert point.config == config
        assert point.seen == config.transformer.max_frames - 1


def test_with_a_window_every_frame_behind_it_costs_the_same():
    short, middle, long = (
        predict(Point.of("videoar-4b", num_frames=count, window=2), H200).transformer_s
        for count in (17, 33, 49)
    )
    assert long - middle == pytest.approx(middle - short)


def test_without_one_they_cost_more_and_more():
    short, middle, long = (
        predict(Point.of("videoar-4b", num_frames=count), H200) for count in (17, 33, 49)
    )
    assert long.transformer_s - middle.transformer_s > 1.05 * (
        middle.transformer_s - short.transformer_s
    )
    # The decoder carries a fixed state, and the memory of the cache grows with the window.
    assert long.decoder_s - middle.decoder_s == pytest.approx(middle.decoder_s - short.decoder_s)
    assert long.memory["cache"] > middle.memory["cache"] > short.memory["cache"]


def test_slots_share_the_weights(monkeypatch):
    one, eight = (Point.of("videoar-l", slots=slots) for slots in (1, 8))
    gpu = [predict(point, H200) for point in (one, eight)]
    assert gpu[1].transformer_s < 4 * gpu[0].transformer_s
    monkeypatch.setattr(plan, "MOST_ROWS", 128)
    cpu = [predict(point, H200, device="cpu") for point in (one, eight)]
    # One after the other, as many rows as one of them has.
    assert cpu[1].transformer_s == pytest.approx(8 * cpu[0].transformer_s)
    assert cpu[1].clips_per_second == pytest.approx(cpu[0].clips_per_second)


def test_shares_stretch_their_part():
    limit = predict(SMALL, H200)
    half = predict(SMALL, H200, shares=Shares(transformer=0.5, decoder=0.25))
    assert half.transformer_s == pytest.approx(2 * limit.transformer_s)
    assert half.text_s == pytest.approx(2 * limit.text_s)
    assert half.decoder_s == pytest.approx(4 * limit.decoder_s)
    with pytest.raises(ValueError, match="share of the decoder"):
        Shares(decoder=0)


def test_every_axis_holds_the_base():
    base = Point.of("videoar-4b")
    for name, points in axes_of(base).items():
        assert len({str(point) for point in points}) == len(points), name
        if "window of" not in name:
            assert [p for p in points if predict_key(p) == predict_key(base)], name


def predict_key(point):
    return replace(point, window=point.seen)


def test_a_fleet_rounds_up_and_refuses_what_does_not_fit():
    one = predict(Point.of("videoar-4b"), H200)
    rate = one.clips_per_second
    small, exact, large = (fleet([one], rate * count)[0].devices for count in (0.5, 3, 3.01))
    assert (small, exact, large) == (1, 3, 4)
    many = predict(Point.of("videoar-4b", slots=16), H200)
    assert not many.fits
    assert fleet([many], rate)[0].devices is None


def test_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert simulate.main(["--preset", "digits", "--out", str(tmp_path)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert document == json.loads((tmp_path / "simulation.json").read_text())
    assert (tmp_path / "simulation.md").read_text().splitlines() == lines
    assert (tmp_path / "simulation.png").read_bytes().startswith(b"\x89PNG")
    (base,) = (row for row in document["axes"]["slots"] if row["slots"] == 1)
    assert base["seconds"] == pytest.approx(predict(SMALL, H200).seconds)
    assert document["check"] is None
    assert "computed, not measured" in "\n".join(lines)


@pytest.mark.parametrize(
    "arguments",
    [["--device", "abacus"], ["--preset", "digit"], ["--height", "65"], ["--num-frames", "16"]],
)
def test_bad_arguments_name_the_field(arguments, capsys):
    assert simulate.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert arguments[0].strip("-").replace("-", "_")[:6] in captured.err.replace("-", "_")


# The check against measurements.


def test_two_points_give_share_and_seconds_of_a_pass():
    fit = simulate_check.Fit.through((1.0, 10, 1 / 0.5 + 10 * 0.1), (4.0, 5, 4 / 0.5 + 5 * 0.1))
    assert fit.share == pytest.approx(0.5)
    assert fit.pass_s == pytest.approx(0.1)
    assert fit.seconds(3.0, 7) == pytest.approx(6.7)


def test_a_fit_has_no_negative_parts():
    # Twice the limit in three times the seconds: passes would have to take negative ones.
    fit = simulate_check.Fit.through((1.0, 10, 2.0), (2.0, 10, 6.0))
    assert (fit.share, fit.pass_s) == (0.5, 0.0)
    # Nothing to tell the two apart by.
    fit = simulate_check.Fit.through((1.0, 10, 2.0), (2.0, 20, 4.0))
    assert (fit.share, fit.pass_s) == (0.5, 0.0)


def test_the_check_finds_a_machine_that_is_as_predicted():
    """Times made of known shares and passes are predicted exactly, others with their error."""
    points = simulate_check.GROUPS["digits"]
    measured = {}
    for point in points:
        cost = predict(point, H200, dtype=BF16, device="cpu")
        for part, share in (("transformer", 0.25), ("decoder", 0.5)):
            passes = simulate_check.passes_of(point, part)
            measured[point, part] = getattr(cost, f"{part}_s") / share + 1e-3 * passes
    measured[points[2], "decoder"] *= 2
    rows, fits = simulate_check.compare(measured, points, H200, BF16, "cpu")
    assert fits["transformer"].share == pytest.approx(0.25)
    assert fits["decoder"].pass_s == pytest.approx(1e-3)
    ratios = {(row.point, row.part): row.ratio for row in rows}
    assert ratios.pop((points[2], "decoder")) == pytest.approx(0.5)
    assert list(ratios.values()) == pytest.approx([1.0] * len(ratios))
    assert [row.calibrates for row in rows[:3]] == [True, True, False]


def test_a_point_runs_with_its_window_and_size():
    """Two rounds of the smallest points, on this machine; times are not judged."""
    points = (Point.of("digits", num_frames=5), Point.of("digits", num_frames=9, window=1))
    rows, fits = simulate_check.run(points, H200, torch.float32, "cpu", 1)
    assert [row.part for row in rows] == ["transformer"] * 2 + ["decoder"] * 2
    assert all(row.measured_s > 0 for row in rows)
    assert set(fits) == {"transformer", "decoder"}

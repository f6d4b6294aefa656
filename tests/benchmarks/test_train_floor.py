"""The training floor: its shares from known times, its work that of the step."""

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from videoar.benchmarks import train_floor, train_parts
from videoar.runtime.presets import PRESETS

DIGITS = PRESETS["digits"]
TINY = replace(
    DIGITS, transformer=replace(DIGITS.transformer, layers=1, max_frames=2, sizes=((1, 1), (4, 4)))
)


def flops(call):
    """Of the matrix products and convolutions that torch sees."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.fixture(scope="module", params=train_floor.PARTS)
def step(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "digits", TINY)
        return train_floor.training_step("digits", request.param, 2)


def test_shares_from_known_times():
    samples = {
        "step": [100.0, 220.0, 100.0],
        "forward and backward": [80.0, 160.0, 90.0],
        "bare, channels first": [70.0, 90.0, 75.0],
        "bare, channels last": [60.0, 110.0, 50.0],
    }
    assert train_floor.floor_of(samples) == "bare, channels last"
    assert train_floor.shares(samples) == {
        "step": pytest.approx(0.5),
        "forward and backward": pytest.approx(0.6875),
    }


def test_the_floors_do_the_step_s_products(step):
    for name, run in step.floors().items():
        assert flops(run) == step.flops, name


def test_the_step_does_hardly_any_others(step):
    """Attention on a CPU is a kernel of ours and not counted; resampling in the quantiser is."""
    own = flops(step.backward)
    assert step.flops <= own < 1.1 * step.flops


def test_a_step_learns_and_forward_and_backward_does_not(step):
    before = [p.clone() for p in step.model.parameters()]
    step.backward()
    assert all(map(torch.equal, before, step.model.parameters()))
    assert all(p.grad is None for p in step.model.parameters())
    step.step()
    assert not all(map(torch.equal, before, step.model.parameters()))


def test_linear_and_convolution_flops():
    linear = train_parts.Call((10, 4), (6, 4), (), True)
    assert linear.flops == 3 * 2 * 10 * 4 * 6
    conv = train_parts.Call((2, 3, 9, 9), (5, 3, 3, 3), (2, 0), False)
    assert conv.flops == 2 * 2 * (2 * 4 * 4) * 5 * 3 * 9


def test_a_run(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(PRESETS, "digits", TINY)
    out = tmp_path / "floor.json"
    words = ["--batch", "2", "--clips", "1", "--rounds", "1", "--json-out", str(out)]
    assert train_floor.main(words) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads(out.read_text()) == document
    for part in train_floor.PARTS:
        samples = document[part]["samples_ms"]
        share = samples[document[part]["floor"]][0] / samples["step"][0]
        assert document[part]["share_of_bare"]["step"] == pytest.approx(share)


def test_bad_words(capsys):
    with pytest.raises(SystemExit):
        train_floor.main(["--rounds", "0"])
    assert "--rounds: expected an integer of at least 1" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"^part: one of"):
        train_floor.training_step("digits", "decoder", 1)

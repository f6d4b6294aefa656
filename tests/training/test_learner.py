"""Steps of a learner and of a run: accumulation, clipping, bad numbers, and several networks."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from videoar.runtime.errors import CheckpointError
from videoar.training.learner import Learner, OptimConfig
from videoar.training.run import Run, train
from videoar.training.state import read_state


def make_line(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def make_batch(draw: int, size: int = 4) -> Tensor:
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(draw))


def test_first_step_by_hand() -> None:
    """Adam's first step is the rate in the gradient's direction, whatever the gradient's size."""
    module = make_line()
    before = module.weight.detach().clone(), module.bias.detach().clone()
    optim = OptimConfig(steps=10, learning_rate=0.1, warmup=0, weight_decay=0.5, clip=1.0)
    learner = Learner(module, optim)
    module.weight.grad, module.bias.grad = torch.full((2, 3), 3.0), torch.full((2,), -4.0)
    assert learner.step(0) == pytest.approx((6 * 9 + 2 * 16) ** 0.5)
    torch.testing.assert_close(module.weight, before[0] * (1 - 0.1 * 0.5) - 0.1)
    torch.testing.assert_close(module.bias, before[1] + 0.1)
    # The first average lies nine tenths of the way to the new weights.
    torch.testing.assert_close(learner.ema["bias"], before[1] + 0.09)
    assert module.weight.grad is None


def test_clipping_scales_the_moments() -> None:
    module = make_line()
    learner = Learner(module, OptimConfig(steps=10, clip=0.5, betas=(0.9, 0.95)))
    module.weight.grad, module.bias.grad = torch.zeros(2, 3), torch.tensor([3.0, 4.0])
    learner.step(0)
    moments = learner.state()["optimizer.exp_avg.bias"]
    torch.testing.assert_close(moments, torch.tensor([0.3, 0.4]) * 0.1, rtol=1e-4, atol=0)


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    def fit(name: str, accumulate: int) -> tuple[nn.Linear, list[dict[str, float]]]:
        module = make_line()
        optim = OptimConfig(steps=4, warmup=0, learning_rate=0.1, accumulate=accumulate)

        def loss_of(draw: int) -> tuple[Tensor, dict[str, float]]:
            size = 3 // accumulate
            draws = range(draw * size, (draw + 1) * size)
            x = torch.cat([make_batch(i) for i in draws])
            return (module(x) - x[:, :2]).square().mean(), {}

        train(Run(tmp_path / name, module, optim, name), loss_of, log_every=1)
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        return module, [json.loads(line) for line in lines]

    (one, lines), (three, others) = fit("one", 1), fit("three", 3)
    torch.testing.assert_close(one.weight, three.weight, rtol=1e-4, atol=1e-6)
    # Adam would not see a wrong scale, the norm does.
    for name in ("loss", "norm"):
        expected = [line[name] for line in lines]
        assert [line[name] for line in others] == pytest.approx(expected, rel=1e-4, abs=2e-6)


def test_a_bad_gradient_changes_nothing(tmp_path: Path) -> None:
    """A finite loss may have an infinite gradient: it must not reach the weights or the state."""
    module = make_line()
    run = Run(tmp_path, module, OptimConfig(steps=4), "bad", save_every=1)

    def loss_of(draw: int) -> tuple[Tensor, dict[str, float]]:
        output = module(make_batch(draw)).square().sum()
        return ((output - output.detach()).abs() ** 0.5 if draw == 2 else output), {}

    with pytest.raises(FloatingPointError, match=r"gradient norm is \w+ at step 2"):
        train(run, loss_of)
    assert all(value.isfinite().all() for value in module.state_dict().values())
    saved = read_state(tmp_path)
    assert torch.equal(saved["model.weight"], module.weight)


def test_the_batch_of_a_bad_loss_is_named(tmp_path: Path) -> None:
    module = make_line()
    run = Run(tmp_path, module, OptimConfig(steps=4, accumulate=3), "bad")

    def loss_of(draw: int) -> tuple[Tensor, dict[str, float]]:
        return module(make_batch(draw)).sum() * (float("nan") if draw == 7 else 1), {}

    with pytest.raises(FloatingPointError, match=r"loss is nan at step 2 \(batch 7\)"):
        train(run, loss_of)


def test_master_weights_are_float32() -> None:
    with pytest.raises(ValueError, match=r"weight: .*float32.*bfloat16"):
        Learner(make_line().bfloat16(), OptimConfig(steps=1))
    with pytest.raises(ValueError, match="accumulate"):
        OptimConfig(steps=1, accumulate=0)


def test_each_network_has_its_own_settings(tmp_path: Path) -> None:
    """Two networks on the sum of two losses train as they do alone."""

    def loss(module: nn.Linear, draw: int) -> Tensor:
        x = make_batch(draw)
        return (module(x) - x[:, 1:]).square().mean()

    first = OptimConfig(steps=5, learning_rate=0.1, warmup=0)
    second = OptimConfig(steps=5, learning_rate=0.01, warmup=0, betas=(0.5, 0.9), weight_decay=0)
    alone = [make_line(0), make_line(1)]
    for module, optim, name in zip(alone, (first, second), "ab", strict=True):
        run = Run(tmp_path / name, module, optim, name)
        train(run, lambda draw, module=module: (loss(module, draw), {}))
    together = [make_line(0), make_line(1)]
    other = Learner(together[1], second, average=False)
    run = Run(tmp_path / "both", together[0], first, "both", others={"other": other})
    train(run, lambda draw: (loss(together[0], draw) + loss(together[1], draw), {}))
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.weight, b.weight)
    saved = read_state(tmp_path / "both")
    assert torch.equal(saved["other.model.weight"], together[1].weight)
    assert "other.optimizer.exp_avg_sq.bias" in saved
    assert not any(name.startswith("other.ema") for name in saved)


def test_a_state_with_other_parts_is_refused(tmp_path: Path) -> None:
    optim = OptimConfig(steps=1)
    others = {"other": Learner(make_line(), optim, average=False)}
    Run(tmp_path / "two", make_line(), optim, "two", others=others).save()
    Run(tmp_path / "one", make_line(), optim, "one").save()
    with pytest.raises(CheckpointError, match=r"\['other'\], this run has \[\]"):
        Run(tmp_path / "two", make_line(), optim, "two")
    with pytest.raises(CheckpointError, match=r"\[\], this run has \['other'\]"):
        Run(tmp_path / "one", make_line(), optim, "one", others=others)
    wrong = {"other": Learner(nn.Linear(4, 2), optim, average=False)}
    with pytest.raises(CheckpointError, match="another model"):
        Run(tmp_path / "two", make_line(), optim, "two", others=wrong)

"""The discriminator, the adversarial losses on known numbers, and LeCAM's penalty."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from videoar.training.adversarial import (
    Adversary,
    GanConfig,
    LeCam,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)
from videoar.training.discriminator import Discriminator


def make_video(batch: int = 2, frames: int = 5, size: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, frames, size, size, generator=generator) * 2 - 1


@pytest.mark.parametrize(
    ("frames", "expected"), [(1, (1, 4, 6)), (5, (1, 4, 6)), (9, (2, 4, 6)), (17, (3, 4, 6))]
)
def test_a_logit_for_every_patch(frames: int, expected: tuple[int, ...]) -> None:
    video = torch.zeros(2, 3, frames, 32, 48)
    assert Discriminator(16)(video).shape == (2, *expected)


def widen(net: Discriminator) -> Discriminator:
    """Larger weights than the initial ones, so that a wrong path shows."""
    for conv in (*net.convs, net.head):
        nn.init.normal_(conv.weight, 0, 0.2)
    return net


def test_against_plain_3d_convolutions() -> None:
    net, video = widen(Discriminator(16, layers=2)), make_video(frames=9)
    x = video
    for i, conv in enumerate(net.convs):
        x = F.conv3d(x, conv.weight, conv.bias, stride=2 if i < 2 else 1, padding=1)
        if i:
            norm = net.norms[i - 1].norm
            frames = [F.group_norm(f, 16, norm.weight, norm.bias, 1e-6) for f in x.unbind(2)]
            x = torch.stack(frames, 2)
        x = F.leaky_relu(x, 0.2)
    expected = F.conv3d(x, net.head.weight, net.head.bias, padding=1)[:, 0]
    torch.testing.assert_close(net(video), expected, rtol=1e-4, atol=1e-4)


def test_an_image_meets_a_2d_discriminator() -> None:
    """On one frame only the middle slice of each kernel counts."""
    net, image = widen(Discriminator(16, layers=2)), make_video(frames=1)
    expected = net(image)
    for conv in (*net.convs, net.head):
        nn.init.normal_(conv.weight[:, :, ::2], 0, 9)
    assert torch.equal(net(image), expected)
    assert not torch.allclose(net(make_video(frames=2))[:, 0], expected[:, 0], atol=1e-2)


def test_gradients_of_two_frames_in_bf16() -> None:
    """Where torch's own 3D convolution gives wrong ones on a CPU."""
    net, video = Discriminator(32, layers=2), make_video(1, 5, 64)
    found = []
    for low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = net(video).square().mean()
        found.append(torch.autograd.grad(loss, net.convs[-1].weight)[0])
    assert (found[1] - found[0]).norm() < 0.1 * found[0].norm()


def test_a_sample_is_judged_by_itself() -> None:
    net, video = Discriminator(16), make_video(3)
    torch.testing.assert_close(net(video)[1:2], net(video[1:2]))


def test_a_patch_sees_54_pixels() -> None:
    """Without the norms, which see everything, as their statistics do."""
    net = Discriminator(16)
    net.norms = nn.ModuleList(nn.Identity() for _ in net.norms)
    video = torch.zeros(1, 3, 1, 128, 128, requires_grad=True)
    net(video)[0, 0, 8, 8].backward()
    rows = video.grad.abs().sum(dim=(0, 1, 2, 4)).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 54


def test_order_of_the_frames_matters() -> None:
    net, video = Discriminator(16), make_video()
    assert not torch.allclose(net(video), net(video.flip(2)), atol=1e-4)


def test_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 0.5, -0.5])
    # (0 + 0.5 + 2) / 3 and (0 + 1 + 1.5 + 0.5) / 4.
    assert discriminator_loss(real, fake, "hinge").item() == pytest.approx(2.5 / 3 + 0.75)
    assert generator_loss(fake, "hinge").item() == pytest.approx(0.75)
    real, fake = torch.tensor([0.0, math.log(3)]), torch.tensor([0.0])
    # log(1 + e^0) = log 2, log(1 + 1/3) = log 4/3.
    expected = (math.log(2) + math.log(4 / 3)) / 2 + math.log(2)
    assert discriminator_loss(real, fake, "nonsaturating").item() == pytest.approx(expected)
    fake = torch.tensor([-math.log(3)])
    assert generator_loss(fake, "nonsaturating").item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("kind", ["hinge", "nonsaturating"])
def test_directions_of_the_gradients(kind: str) -> None:
    real = torch.tensor([-2.0, 0.0, 0.9], requires_grad=True)
    fake = torch.tensor([-0.9, 0.0, 2.0], requires_grad=True)
    discriminator_loss(real, fake, kind).backward()
    assert (real.grad < 0).all()
    assert (fake.grad > 0).all()
    fake.grad = None
    generator_loss(fake, kind).backward()
    assert (fake.grad < 0).all()
    sure = torch.tensor([1.5], requires_grad=True)
    discriminator_loss(sure, -sure, kind).backward()
    assert (sure.grad == 0).all() == (kind == "hinge")


def test_lecam_by_hand() -> None:
    lecam = LeCam(0.9)
    lecam.update(torch.tensor([3.0, 1.0]), torch.tensor([-1.0]))
    # After one step the corrected averages are that step's means: a_R = 2, a_F = -1.
    real = torch.tensor([1.0, -2.0], requires_grad=True)
    fake = torch.tensor([0.0, 4.0], requires_grad=True)
    penalty = lecam(real, fake)
    # Real: (1 + 1)^2 and 0; reconstructed: (2 - 0)^2 and 0; means of two each.
    assert penalty.item() == pytest.approx(2 + 2)
    penalty.backward()
    assert real.grad.tolist() == pytest.approx([2.0, 0.0])
    assert fake.grad.tolist() == pytest.approx([-2.0, 0.0])
    lecam.update(torch.tensor([5.0]), torch.tensor([1.0]))
    # (0.9 * 0.1 * 2 + 0.1 * 5) / (1 - 0.9^2), and the same of -1 and 1.
    assert (lecam.real / lecam.total).item() == pytest.approx(0.68 / 0.19, rel=1e-5)
    assert (lecam.fake / lecam.total).item() == pytest.approx(0.01 / 0.19, rel=1e-4)


def test_lecam_is_part_of_the_state() -> None:
    state = Adversary(GanConfig(weight=1, channels=16)).state_dict()
    assert {"lecam.real", "lecam.fake", "lecam.total"} <= state.keys()


def test_adaptive_weight_by_hand() -> None:
    last = torch.tensor([3.0, 4.0], requires_grad=True)
    loss, adversarial = (last * torch.tensor([6.0, 8.0])).sum(), last.sum() * 2
    # |(6, 8)| = 10 and |(2, 2)| = sqrt(8).
    expected = 10 / 8**0.5
    weight = adaptive_weight(loss, adversarial, last)
    assert weight.item() == pytest.approx(expected, rel=1e-5)
    assert not weight.requires_grad
    assert last.grad is None
    assert adaptive_weight(loss, adversarial * 0, last).item() == 1e4


def test_the_two_sides_get_their_own_gradients() -> None:
    torch.manual_seed(0)
    adversary = Adversary(GanConfig(weight=1, channels=16))
    real, fake = make_video(), make_video(seed=1).requires_grad_()
    adversary.generator_loss(fake).backward()
    assert fake.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in adversary.parameters())
    fake.grad = None
    loss, values = adversary.discriminator_loss(real, fake)
    loss.backward()
    assert fake.grad is None
    assert all(p.grad is not None for p in adversary.parameters())
    assert set(values) == {"disc", "disc_real", "disc_fake", "lecam"}


@pytest.mark.parametrize("kind", ["hinge", "nonsaturating"])
def test_it_learns_to_tell_blurred_from_sharp(kind: str) -> None:
    torch.manual_seed(0)
    adversary = Adversary(GanConfig(weight=1, channels=16, loss=kind, rate=1e-3, lecam=0.01))
    optimizer = torch.optim.AdamW(adversary.parameters(), lr=1e-3, betas=(0.5, 0.9))
    for step in range(15):
        real = make_video(seed=step)
        loss, values = adversary.discriminator_loss(
            real, F.avg_pool3d(real, (1, 3, 3), 1, (0, 1, 1))
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert values["disc_real"] > 0.9
    assert values["disc_fake"] > 0.9
    # And its gradient leads a blurred video to a better verdict.
    fake = F.avg_pool3d(real, (1, 3, 3), 1, (0, 1, 1)).requires_grad_()
    before = adversary.generator_loss(fake)
    before.backward()
    with torch.no_grad():
        assert adversary.generator_loss(fake - 0.02 * fake.grad.sign()) < before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "wasserstein"}, "loss"),
        ({"weight": -1.0}, "weight"),
        ({"start": -1}, "start"),
        ({"lecam": -0.1}, "lecam"),
        ({"lecam_decay": 1.0}, "lecam_decay"),
        ({"betas": (0.5, 1.0)}, "betas"),
        ({"channels": 0}, "channels"),
        ({"channels": 24}, "channels"),
        ({"layers": 0}, "layers"),
        ({"rate": 0.0}, "rate"),
    ],
)
def test_bad_settings(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}:"):
        GanConfig(**values)


def test_bad_networks() -> None:
    with pytest.raises(ValueError, match="channels"):
        Discriminator(24)
    with pytest.raises(ValueError, match="layers"):
        Discriminator(layers=0)
    with pytest.raises(ValueError, match="at least 8"):
        Discriminator(16)(torch.zeros(1, 3, 1, 4, 32))

"""Bitwise cross-entropy against the two-class cross-entropy in float64."""

import math

import pytest
import torch

from videoar.kernels.bitwise_cross_entropy import (
    _tiles,
    bitwise_cross_entropy,
    bitwise_cross_entropy_ref,
)

TRITON = CPP = True
pytestmark = pytest.mark.usefixtures("poisoned")


def brute(logits, bits):
    """-log of the softmax of each bit's two logits, `[..., d]`."""
    loss = torch.empty(bits.shape, dtype=torch.float64)
    for token in range(bits[..., 0].numel()):
        row = logits.reshape(-1, logits.shape[-1])[token].tolist()
        for j, bit in enumerate(bits.reshape(-1, bits.shape[-1])[token].tolist()):
            pair = row[2 * j], row[2 * j + 1]
            high = max(pair)
            log_sum = high + math.log(sum(math.exp(v - high) for v in pair))
            loss.view(-1, bits.shape[-1])[token, j] = log_sum - pair[int(bit)]
    return loss


def random_case(shape=(3, 5), num_bits=17):
    return 5 * torch.randn(*shape, 2 * num_bits), torch.rand(*shape, num_bits) < 0.5


@pytest.mark.parametrize(("shape", "num_bits"), [((1,), 1), ((17,), 63), ((2, 5), 130), ((), 4)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_is_the_two_class_cross_entropy(shape, num_bits, dtype, device):
    logits, bits = random_case(shape, num_bits)
    expected = brute(logits, bits)
    arguments = logits.to(device), bits.to(device, dtype)
    each = bitwise_cross_entropy(*arguments, reduction="none")
    assert each.dtype == torch.float32
    torch.testing.assert_close(each.cpu().double(), expected, rtol=1e-5, atol=1e-6)
    mean = bitwise_cross_entropy(*arguments).cpu().double()
    torch.testing.assert_close(mean, expected.mean(), rtol=1e-5, atol=1e-6)


# e^20000 overflows to infinity, whose reciprocal is the 0 that belongs there.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_extreme_logits_stay_finite(device):
    x = torch.tensor([[-1e4, 1e4], [1e4, -1e4]], device=device).requires_grad_()
    bits = torch.tensor([[True], [True]], device=device)
    loss = bitwise_cross_entropy(x, bits, reduction="none")
    assert loss.tolist() == [[0.0], [2e4]]
    loss.sum().backward()
    assert x.grad.tolist() == [[0.0, 0.0], [1.0, -1.0]]


def test_head_inside(device):
    hidden, weight = torch.randn(2, 7, 63, device=device), torch.randn(34, 63, device=device) / 8
    _, bits = random_case((2, 7))
    expected = brute((hidden.double() @ weight.double().T).cpu(), bits).mean()
    loss = bitwise_cross_entropy(hidden, bits.to(device), weight)
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=1e-5, atol=1e-6)


def test_mask_leaves_tokens_out(device):
    logits, bits = random_case()
    mask = torch.rand(3, 5) < 0.6
    mask[0, 0] = True
    arguments = logits.to(device), bits.to(device)
    expected = brute(logits, bits)
    mean = bitwise_cross_entropy(*arguments, mask=mask.to(device)).cpu().double()
    torch.testing.assert_close(mean, expected[mask].mean(), rtol=1e-5, atol=1e-6)
    each = bitwise_cross_entropy(*arguments, mask=mask.to(device), reduction="none").cpu()
    assert (each[~mask] == 0).all()
    torch.testing.assert_close(each[mask].double(), expected[mask], rtol=1e-5, atol=1e-6)


def test_no_token_counts(device):
    logits, bits = (t.to(device) for t in random_case())
    loss = bitwise_cross_entropy(
        logits.requires_grad_(), bits, mask=torch.zeros(3, 5, dtype=torch.bool, device=device)
    )
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_half_hidden_gives_a_float32_loss(device, half):
    hidden = torch.randn(6, 63, device=device).to(half)
    weight = (torch.randn(34, 63, device=device) / 8).to(half)
    _, bits = random_case((6,))
    loss = bitwise_cross_entropy(hidden, bits.to(device), weight)
    expected = brute((hidden.double() @ weight.double().T).cpu(), bits).mean()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=1e-2, atol=0)


def test_gradcheck():
    _, bits = random_case((2, 3), 2)
    hidden = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, True], [True, True, False]])

    def loss(hidden, weight):
        return bitwise_cross_entropy_ref(hidden, bits, weight, mask=mask)

    assert torch.autograd.gradcheck(loss, (hidden, weight))


def test_gradient_is_probability_minus_bit(device):
    logits, bits = random_case()
    x = logits.to(device).requires_grad_()
    bitwise_cross_entropy(x, bits.to(device)).backward()
    pairs = logits.double().unflatten(-1, (-1, 2))
    probability = pairs.softmax(-1)[..., 1]
    expected = (probability - bits.double()) / bits.numel()
    got = x.grad.cpu().double().unflatten(-1, (-1, 2))
    torch.testing.assert_close(got[..., 1], expected, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(got[..., 0], -expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("shape", "num_bits"), [((17,), 63), ((2, 65), 48), ((3,), 1100)])
def test_loss_and_gradient_match_float64(shape, num_bits, masked, reduction, device, assert_near):
    logits, bits = (t.to(device) for t in random_case(shape, num_bits))
    mask = None
    if masked:
        mask = (torch.rand(shape) < 0.6).to(device)
        mask[-1] = True  # the mean over no token has no relative error
    results = []
    for x, operation in (
        (logits, bitwise_cross_entropy),
        (logits.double(), bitwise_cross_entropy_ref),
    ):
        loss = operation(x.requires_grad_(), bits, mask=mask, reduction=reduction)
        weights = torch.linspace(1, 2, loss.numel(), dtype=loss.dtype, device=device)
        (grad,) = torch.autograd.grad(loss, x, weights.view(loss.shape))
        results.append((loss, grad))
    for got, expected in zip(*results, strict=True):
        assert_near(got, expected)


def test_small_losses_keep_their_digits(device):
    x = torch.tensor([[0.0, z] for z in (2, 8, 16, 30, 80)], device=device)
    loss = bitwise_cross_entropy(x, torch.ones(5, 1).bool().to(device), reduction="none")
    expected = torch.log1p(torch.exp(-x.double()[:, 1:])).cpu()
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=2e-6, atol=0)


def test_strided_logits_and_bits(device, assert_near):
    logits, bits = (t.to(device) for t in random_case((17, 2), 63))
    views = [
        (logits[:, 0], bits[:, 1]),
        (logits[..., 1:125], bits[..., 1:]),
        (logits[..., ::2][..., :62], bits[..., ::2][..., :31]),
    ]
    for x, targets in views:
        targets = targets[..., : x.shape[-1] // 2]
        leaf = x.detach().requires_grad_()
        loss = bitwise_cross_entropy(leaf, targets)
        wide = x.detach().double().requires_grad_()
        expected = bitwise_cross_entropy_ref(wide, targets)
        assert_near(loss, expected)
        expected.backward()
        assert_near(torch.autograd.grad(loss, leaf)[0], wide.grad)


def test_gradient_has_the_dtype_of_the_logits(device, half):
    logits, bits = (t.to(device) for t in random_case())
    x = logits.to(half).requires_grad_()
    bitwise_cross_entropy(x, bits).backward()
    wide = x.detach().double().requires_grad_()
    bitwise_cross_entropy_ref(wide, bits).backward()
    assert x.grad.dtype == half
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("masked", [False, True])
def test_no_tokens(reduction, masked, device):
    x = torch.zeros(0, 8, device=device).requires_grad_()
    bits = torch.zeros(0, 4, device=device).bool()
    mask = torch.zeros(0, device=device).bool() if masked else None
    loss = bitwise_cross_entropy(x, bits, mask=mask, reduction=reduction)
    expected = bitwise_cross_entropy_ref(x, bits, mask=mask, reduction=reduction)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert x.grad.shape == (0, 8)


@pytest.mark.parametrize(("tokens", "num_bits"), [(0, 4), (3, 0)])
def test_the_mean_of_no_bits_is_zero(tokens, num_bits, device):
    hidden = torch.zeros(tokens, 5, device=device).requires_grad_()
    weight = torch.ones(2 * num_bits, 5, device=device).requires_grad_()
    bits = torch.zeros(tokens, num_bits, device=device).bool()
    for operation in (bitwise_cross_entropy, bitwise_cross_entropy_ref):
        loss = operation(hidden, bits, weight)
        assert loss.tolist() == 0
        for grad in torch.autograd.grad(loss, (hidden, weight)):
            assert (grad == 0).all()


@pytest.mark.parametrize("d", [1, 17, 48, 64, 1024, 1025])
@pytest.mark.parametrize("rows", [1, 17, 4096])
def test_tiles_cover_the_bits(rows, d):
    BLOCK_M, BLOCK_D, programs = _tiles(rows, d)
    assert BLOCK_M * BLOCK_D == 1024
    assert programs == -(-rows // BLOCK_M) * -(-d // BLOCK_D)


def test_kernel_refuses_what_it_cannot_serve(triton_device):
    x = torch.zeros(2, 8, dtype=torch.float64, device=triton_device)
    with pytest.raises(ValueError, match=r"^bits: expected on .* as x, got on meta"):
        bitwise_cross_entropy(x, torch.zeros(2, 4, device="meta").bool())
    with pytest.raises(ValueError, match=r"^x: .*float64"):
        bitwise_cross_entropy(x, torch.zeros(2, 4, device=triton_device).bool())


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"x": torch.zeros(3, 8).long()}, "x"),
        ({"x": torch.zeros(3, 7)}, "x"),
        ({"bits": torch.zeros(3, 5).bool()}, "bits"),
        ({"bits": torch.zeros(3, 4)}, "bits"),
        ({"weight": torch.zeros(8, 9)}, "weight"),
        ({"weight": torch.zeros(7, 8)}, "weight"),
        ({"weight": torch.zeros(8, 8).int()}, "weight"),
        ({"weight": torch.zeros(8, 8, device="meta")}, "weight"),
        ({"bits": torch.zeros(3, 4, device="meta").bool()}, "bits"),
        ({"mask": torch.zeros(3, device="meta").bool()}, "mask"),
        ({"mask": torch.zeros(4).bool()}, "mask"),
        ({"mask": torch.zeros(3)}, "mask"),
        ({"reduction": "sum"}, "reduction"),
    ],
)
def test_refuses(change, name):
    arguments = {"x": torch.zeros(3, 8), "bits": torch.zeros(3, 4).bool(), **change}
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        bitwise_cross_entropy(**arguments)

"""Bit packing: order of the bits, the sign bit, round trips, refusals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from videoar import _C
from videoar.kernels.pack_bits import (
    MAX_WORDS,
    _check_count,
    pack_bits,
    pack_bits_ref,
    unpack_bits,
    unpack_bits_ref,
)

TRITON = CPP = True
pytestmark = pytest.mark.usefixtures("poisoned")
LEADING = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def random_bits(leading: tuple[int, ...], d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*leading, d, generator=generator) < 0.5


@given(leading=LEADING, d=st.integers(1, 130), seed=st.integers(0, 2**32), uint8=st.booleans())
def test_round_trip(leading, d, seed, uint8):
    bits = random_bits(leading, d, seed)
    words = pack_bits(bits.to(torch.uint8) if uint8 else bits)
    assert words.dtype == torch.int32
    assert words.shape == (*leading, -(-d // 32))
    assert torch.equal(unpack_bits(words, d), bits)


@given(d=st.integers(1, 130), seed=st.integers(0, 2**32))
def test_words_are_little_endian_numbers(d, seed):
    bits = random_bits((), d, seed)
    number = sum(int(bit) << i for i, bit in enumerate(bits.tolist()))
    words = [word % 2**32 for word in pack_bits(bits).tolist()]
    assert sum(word << (32 * i) for i, word in enumerate(words)) == number


@given(words=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=4))
def test_round_trip_of_words(words):
    packed = torch.tensor(words, dtype=torch.int32)
    assert torch.equal(pack_bits(unpack_bits(packed, 32 * len(words))), packed)


@pytest.mark.parametrize("position", [0, 1, 30, 31, 32, 47, 63, 64])
def test_one_bit(position, device):
    bits = torch.zeros(65, dtype=torch.bool, device=device)
    bits[position] = True
    expected = [0, 0, 0]
    expected[position // 32] = -(2**31) if position % 32 == 31 else 2 ** (position % 32)
    words = pack_bits(bits)
    assert words.tolist() == expected
    assert words.device.type == device.type
    assert torch.equal(unpack_bits(words, 65), bits)


def first_difference(a, b):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    return (a != b).nonzero()[:1].tolist()


@pytest.mark.parametrize("d", [1, 17, 32, 48, 63, 64, 130])
@pytest.mark.parametrize("leading", [(), (1,), (17,), (2, 65)])
def test_is_its_twin(leading, d, device):
    bits = random_bits(leading, d, d).to(device)
    words = pack_bits(bits)
    assert first_difference(words, pack_bits_ref(bits)) == []
    noise = torch.randint(-(2**31), 2**31, words.shape, dtype=torch.int32).to(device)
    assert first_difference(unpack_bits(noise, d), unpack_bits_ref(noise, d)) == []


def test_kernel_counts_words_in_32_bits():
    words = torch.empty(1, dtype=torch.int32, device="meta")
    _check_count("bits", words.expand(MAX_WORDS))
    with pytest.raises(ValueError, match=rf"^bits: expected at most {MAX_WORDS} words"):
        _check_count("bits", words.expand(MAX_WORDS + 1))


def test_any_nonzero_byte_is_one(device):
    bits = torch.tensor([0, 2, 255, 0, 1], dtype=torch.uint8, device=device)
    assert pack_bits(bits).tolist() == [0b10110]


def test_bits_past_d_are_ignored(device):
    words = torch.tensor([-1], dtype=torch.int32, device=device)
    assert unpack_bits(words, 3).tolist() == [True] * 3


def test_strided_input(device):
    bits = random_bits((6,), 66, 0).to(device)
    for strided in (bits.T, bits[:, 3:40], bits[::2, ::2]):
        words = pack_bits(strided)
        assert torch.equal(words, pack_bits_ref(strided))
        spread = words.repeat_interleave(2, -1)[..., ::2]
        assert torch.equal(unpack_bits(spread, strided.shape[-1]), strided)


@pytest.mark.parametrize("leading", [(0,), (0, 3), (3, 0)])
def test_empty_leading_axes(leading, device):
    words = pack_bits(torch.zeros(*leading, 48, dtype=torch.bool, device=device))
    assert words.shape == (*leading, 2)
    assert unpack_bits(words, 48).shape == (*leading, 48)


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (torch.zeros(3), "float32"),
        (torch.zeros(3, dtype=torch.int32), "int32"),
        (torch.zeros(2, 0, dtype=torch.bool), r"\[2, 0\]"),
        (torch.tensor(True), r"\[\]"),
    ],
)
def test_pack_refuses(bits, message):
    with pytest.raises(ValueError, match=message):
        pack_bits(bits)


@pytest.mark.parametrize(
    ("words", "d", "message"),
    [
        (torch.zeros(1), 3, "float32"),
        (torch.zeros(1, dtype=torch.int32), 0, "got 0"),
        (torch.zeros(1, dtype=torch.int32), 33, r"\[\.\.\., 2\]"),
        (torch.zeros(2, dtype=torch.int32), 32, r"\[\.\.\., 1\]"),
        (torch.tensor(1, dtype=torch.int32), 1, r"got \[\]"),
    ],
)
def test_unpack_refuses(words, d, message):
    with pytest.raises(ValueError, match=message):
        unpack_bits(words, d)


def test_many_tokens_agree_on_every_cpu(on_every_cpu):
    """Enough bits for several threads; one word of every token is not full."""
    bits = random_bits((30_000,), 43, 0)
    expected = pack_bits_ref(bits)
    for words in on_every_cpu(lambda: pack_bits(bits)):
        assert torch.equal(words, expected)
    for unpacked in on_every_cpu(lambda: unpack_bits(expected, 43)):
        assert torch.equal(unpacked, bits)


def test_extension_names_file_line_and_values():
    for call in (_C.pack_bits, _C.unpack_bits):
        with pytest.raises(ValueError, match=r"pack_bits\.cpp:\d+: .*rows -1, num_bits 1"):
            call(0, 0, -1, 1, 1)
        with pytest.raises(ValueError, match=r"pack_bits\.cpp:\d+: .*bits 0, words 0"):
            call(0, 0, 1, 1, 1)

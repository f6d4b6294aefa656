"""Philox: published known answers, a big-integer twin, and backends equal bit for bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from videoar import _C
from videoar.kernels.dispatch import use_backend
from videoar.kernels.jit import AVAILABLE, jit, tl
from videoar.kernels.philox import (
    philox4x32,
    philox_uniform,
    philox_uniform_ref,
    philox_words,
    uniform_tiles,
)

TRITON = True
pytestmark = pytest.mark.usefixtures("poisoned")
# "philox4x32 10" of Random123's tests/kat_vectors: counter, key, answer.
KNOWN_ANSWERS = {
    "zeros": (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    "ones": (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}
BIG = 2**63 - 1
WORD = st.integers(0, 2**32 - 1)


def philox_of_integers(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """The same formula on Python's unbounded integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1 = (product1 >> 32) ^ c1 ^ k0, product1 % 2**32
        c2, c3 = (product0 >> 32) ^ c3 ^ k1, product0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_known_answers(name, device):
    counter, key, answer = KNOWN_ANSWERS[name]
    words = philox4x32(torch.tensor(counter, device=device), torch.tensor(key, device=device))
    assert words.tolist() == list(answer)


@jit
def words_kernel(in_ptr, out_ptr):
    """Counter and key in six int64, answer in four."""
    c0, c1 = tl.load(in_ptr).to(tl.uint32), tl.load(in_ptr + 1).to(tl.uint32)
    c2, c3 = tl.load(in_ptr + 2).to(tl.uint32), tl.load(in_ptr + 3).to(tl.uint32)
    k0, k1 = tl.load(in_ptr + 4).to(tl.uint32), tl.load(in_ptr + 5).to(tl.uint32)
    c0, c1, c2, c3 = philox_words(c0, c1, c2, c3, k0, k1)
    tl.store(out_ptr, c0.to(tl.int64))
    tl.store(out_ptr + 1, c1.to(tl.int64))
    tl.store(out_ptr + 2, c2.to(tl.int64))
    tl.store(out_ptr + 3, c3.to(tl.int64))


@pytest.mark.skipif(not AVAILABLE, reason="Triton runs on Linux only")
@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_known_answers_in_a_kernel(name):
    counter, key, answer = KNOWN_ANSWERS[name]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    words = torch.full((4,), -1, device=device)
    words_kernel[(1,)](torch.tensor(counter + key, device=device), words)
    assert words.tolist() == list(answer)


@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_matches_unbounded_integers(counter, key):
    words = philox4x32(torch.tensor(counter), torch.tensor(key))
    assert tuple(words.tolist()) == philox_of_integers(counter, key)


def test_keys_broadcast():
    counters = torch.randint(2**32, (5, 3, 4))
    keys = torch.randint(2**32, (5, 1, 2))
    words = philox4x32(counters, keys)
    for row in range(5):
        for column in range(3):
            expected = philox4x32(counters[row, column], keys[row, 0])
            assert words[row, column].tolist() == expected.tolist(), (row, column)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 0x123456789ABCDEF0, BIG, -1, -(2**63)])
@pytest.mark.parametrize("frame", [0, 7, 2**31, 2**32 - 1])
def test_every_uniform_is_its_coordinates_first_word(seed, frame):
    uniforms = philox_uniform(torch.tensor([seed]), frame, scale=5, num_tokens=3, num_bits=4)
    key = (seed % 2**32, (seed >> 32) % 2**32)
    for token in range(3):
        for bit in range(4):
            word = philox_of_integers((frame, 5, token, bit), key)[0]
            assert uniforms[0, token, bit].item() == (word >> 8) / 2**24, (token, bit)


@pytest.mark.parametrize("num_tokens", [0, 1, 17, 63, 130])
@pytest.mark.parametrize("num_bits", [0, 1, 33, 48])
@pytest.mark.parametrize("frames", [0, 2**32 - 1, torch.tensor([0, 11, 2**32 - 1])])
def test_cpp_equals_reference(num_tokens, num_bits, frames):
    arguments = (torch.tensor([0, BIG, -5]), frames, 9, num_tokens, num_bits)
    with use_backend("cpp"):
        uniforms = philox_uniform(*arguments)
    expected = philox_uniform_ref(*arguments)
    assert uniforms.shape == (3, num_tokens, num_bits)
    assert uniforms.dtype == torch.float32
    different = (uniforms != expected).nonzero().tolist()
    assert not different, f"first difference at [row, token, bit] {different[0]}"


def test_strided_seeds_and_frames():
    seeds, frames = torch.arange(12)[::3], torch.arange(8, dtype=torch.int32)[::2]
    uniforms = philox_uniform(seeds, frames, 0, 5, 6)
    assert torch.equal(uniforms, philox_uniform_ref(seeds.clone(), frames.clone(), 0, 5, 6))


def test_enough_numbers_for_several_threads():
    seeds = torch.arange(7)
    assert torch.equal(
        philox_uniform(seeds, 3, 2, 130, 48), philox_uniform_ref(seeds, 3, 2, 130, 48)
    )


def test_no_rows():
    empty = torch.empty(0, dtype=torch.int64)
    assert philox_uniform(empty, 0, 0, 4, 5).shape == (0, 4, 5)
    assert philox_uniform_ref(empty, 0, 0, 4, 5).shape == (0, 4, 5)


@pytest.mark.parametrize("scale", [1, 2**32 - 1])
@pytest.mark.parametrize(("num_tokens", "num_bits"), [(0, 3), (1, 1), (17, 48), (33, 66)])
def test_device_gives_the_same_numbers(num_tokens, num_bits, scale, device):
    seeds = torch.tensor([3, BIG, 0, -5, 0, -(2**63)])[::2]
    frames = torch.tensor([2**32 - 1, 0, 7])
    for frame in (2**31, frames):
        placed = frame.to(device) if isinstance(frame, torch.Tensor) else frame
        uniforms = philox_uniform(seeds.to(device), placed, scale, num_tokens, num_bits)
        assert uniforms.device.type == device.type
        expected = philox_uniform_ref(seeds, frame, scale, num_tokens, num_bits)
        different = (uniforms.cpu() != expected).nonzero().tolist()
        assert not different, f"first difference at [row, token, bit] {different[0]}"


@pytest.mark.parametrize("num_bits", [0, 1, 33, 48, 64, 2**32])
def test_tiles(num_bits):
    block_l, block_d = uniform_tiles(num_bits)
    assert block_l * block_d == 1024
    assert block_d & (block_d - 1) == 0
    assert block_d >= min(num_bits, 64)


def test_rows_do_not_depend_on_their_neighbours():
    seeds, frames = torch.tensor([5, 6, 7]), torch.tensor([1, 2, 3])
    together = philox_uniform(seeds, frames, 4, 10, 48)
    for row in range(3):
        alone = philox_uniform(seeds[row : row + 1], int(frames[row]), 4, 10, 48)
        assert torch.equal(together[row], alone[0]), row


def test_looks_uniform():
    uniforms = philox_uniform(torch.tensor([42]), 0, 0, 1000, 100).double()
    assert 0 <= uniforms.min() < 1e-3
    assert 1 - 1e-3 < uniforms.max() < 1
    assert abs(uniforms.mean() - 0.5) < 4e-3
    assert abs(uniforms.var() - 1 / 12) < 2e-3


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": torch.zeros(2)}, "seeds"),
        ({"seeds": torch.zeros(2, 1, dtype=torch.int64)}, "seeds"),
        ({"frames": -1}, "frames"),
        ({"frames": 2**32}, "frames"),
        ({"frames": torch.tensor([0, -1])}, "frames"),
        ({"frames": torch.tensor([0])}, "frames"),
        ({"frames": torch.zeros(2)}, "frames"),
        ({"frames": 1.5}, "frames"),
        ({"frames": [0, 1]}, "frames"),
        ({"frames": torch.zeros(2).long().to("meta")}, "frames"),
        ({"scale": -1}, "scale"),
        ({"num_tokens": -1}, "num_tokens"),
        ({"num_bits": -1}, "num_bits"),
    ],
)
def test_bad_arguments(backend, change, message):
    good = {
        "seeds": torch.tensor([0, 1]),
        "frames": 0,
        "scale": 0,
        "num_tokens": 1,
        "num_bits": 1,
    }
    with use_backend(backend), pytest.raises(ValueError, match=message):
        philox_uniform(**{**good, **change})


def test_extension_names_file_line_and_values():
    with pytest.raises(ValueError, match=r"philox\.cpp:\d+: .*rows -3, num_tokens 1"):
        _C.philox_uniform(0, 0, -3, 0, 1, 1, 0)
    with pytest.raises(ValueError, match=r"philox\.cpp:\d+: .*seeds 0"):
        _C.philox_uniform(0, 0, 1, 0, 1, 1, 0)

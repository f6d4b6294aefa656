"""PAR: order of tokens, cache against one pass, sampling, public key names, graphs' bookkeeping."""

import json
import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from videoar.benchmarks import par_graphs, par_measure
from videoar.benchmarks.par import PAR_PRESETS, Par, ParConfig, describe
from videoar.benchmarks.par_cost import clip_steps
from videoar.benchmarks.par_import import import_public
from videoar.benchmarks.par_model import ParTransformer, teacher_forced_logits
from videoar.benchmarks.par_sampling import ParSampling, sample_codes
from videoar.benchmarks.par_state import (
    Kind,
    ParState,
    decode_step,
    first_steps,
    kind_of,
    step_logits,
)
from videoar.kernels.dispatch import use_backend
from videoar.kernels.philox import philox_uniform_ref
from videoar.runtime.errors import CheckpointError, NumericalError
from videoar.runtime.graphs import GraphSet

SMALL = ParConfig(
    layers=2,
    width=32,
    heads=2,
    mlp_width=48,
    codebook=24,
    classes=5,
    num_frames=2,
    grid=(4, 4),
    rope_sections=(2, 3, 3),
)
GROUPS = [1, 4, 16]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def small(group: int = 4, **changes: object) -> ParTransformer:
    """Random weights large enough that every token matters."""
    model = ParTransformer.empty(replace(SMALL, group=group, **changes), torch.float32, "cpu")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(group)
        model.init_weights(std=0.3)
    return model


def random_codes(config: ParConfig, batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.codebook, (batch, config.num_tokens), generator=generator)


def distance(got: Tensor, expected: Tensor) -> float:
    """Largest error over the largest value."""
    return ((got - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("group", "steps"), [(1, 1280), (4, 323), (16, 95)])
def test_presets_have_the_published_steps(group: int, steps: int) -> None:
    config = PAR_PRESETS[f"par-{group}x"]
    sizes = describe(config)
    assert (config.num_steps, sizes["steps"], sizes["video_tokens"]) == (steps, steps, 1280)
    layer = 4 * 1280**2 + 3 * 1280 * 3584 + 2 * 1280
    tables = (2 * 16_384 + 102 + group - 1) * 1280
    assert sizes["parameters"] == 36 * layer + tables + 1280
    kinds = [kind_of(config, step) for step in range(steps)]
    assert kinds[0] is Kind.CLASS
    assert kinds.count(Kind.SINGLE) == group - 1
    assert kinds.count(Kind.BRIDGE) == (group > 1)
    assert len(set(kinds)) == (2 if group == 1 else 4)
    assert {kinds[step] for step in first_steps(config).values()} == set(kinds)


def test_order_of_tokens() -> None:
    """On 4x4 cells the regions are the quarters; a group has the same cell of each."""
    order = SMALL.order().tolist()
    assert order[:8] == [0, 2, 8, 10, 1, 3, 9, 11]
    assert order[8:12] == [4, 6, 12, 14]
    assert order[16:20] == [16, 18, 24, 26]
    assert sorted(order) == list(range(32))
    positions, unplaced = SMALL.input_positions(), SMALL.unplaced()
    assert unplaced.nonzero()[:, 0].tolist() == [0, 5, 6, 7]
    assert positions[1:5].tolist() == [[0, 0, 0], [0, 0, 2], [0, 2, 0], [0, 2, 2]]
    assert positions[8:10].tolist() == [[0, 0, 1], [0, 0, 3]]
    assert positions[-1].tolist() == [1, 3, 2]


@pytest.mark.parametrize("group", GROUPS)
def test_cached_equals_one_pass(group: int) -> None:
    model = small(group)
    config, classes = model.config, torch.tensor([3, 5, 0])
    codes = random_codes(config, 3)
    with torch.inference_mode():
        expected = teacher_forced_logits(model, classes, codes)
        state = ParState.create(config, 3, torch.float32, "cpu", rows_per_request=1)
        state.classes.copy_(classes)
        state.codes.copy_(codes)
        for step, chunk in enumerate(config.schedule.chunks):
            state.step.fill_(step)
            logits, tokens = step_logits(model, state, kind_of(config, step))
            assert tokens.tolist() == list(range(chunk.offset, chunk.offset + chunk.length))
            assert distance(logits, expected[:, tokens]) < 2e-5


@pytest.mark.parametrize("scale", [(1, 1, 1), (1, 1, 10_000)])
def test_triton_draws_the_same_codes(scale: tuple[int, int, int]) -> None:
    """In the interpreter, every kernel of a step as a GPU would run it."""
    theta = 100.0 if scale[2] == 1 else 1e8
    model = small(4, rope_theta=theta, position_scale=scale, num_frames=1, grid=(4, 4))
    par = Par(model, slots=2)
    options = {"guidance": 2.0, "seed": 3, "top_k": 12, "top_p": 0.95}
    expected = par.generate([1, 3], **options)
    with use_backend("triton"):
        assert torch.equal(par.generate([1, 3], **options), expected)


@pytest.mark.parametrize("group", GROUPS)
def test_groups_see_themselves_and_what_is_before(group: int) -> None:
    model = small(group)
    config, codes = model.config, random_codes(model.config, 1)
    classes, chunks = torch.tensor([1]), model.config.schedule.chunks
    ids = config.schedule.chunk_ids()
    before = teacher_forced_logits(model, classes, codes)
    for token in (0, group - 1, group, 2 * group - 1):
        other = codes.clone()
        other[0, token] = (other[0, token] + 1) % config.codebook
        changed = (teacher_forced_logits(model, classes, other) != before).any(-1)[0]
        chunk = int(ids[token])
        assert not changed[ids <= chunk].any()
        if chunk + 1 < len(chunks):
            # Each of the next group's tokens depends on each of this group's.
            assert changed[ids == chunk + 1].all()


def brute_force(model: ParTransformer, class_id: int, seed: int, sampling: ParSampling) -> Tensor:
    """Without a cache, code by code, with numpy's float64."""
    config, codes = model.config, random_codes(model.config, 1, seed=9)
    for step, chunk in enumerate(config.schedule.chunks):
        classes = torch.tensor([class_id, config.classes])
        logits = teacher_forced_logits(model, classes, codes.expand(2, -1)).double().numpy()
        frames = torch.tensor([step])
        uniform = philox_uniform_ref(torch.tensor([seed]), frames, 0, chunk.length, 1)[0, :, 0]
        for i in range(chunk.length):
            cond, uncond = logits[:, chunk.offset + i]
            mixed = uncond + sampling.guidance * (cond - uncond)
            codes[0, chunk.offset + i] = draw(mixed, uniform[i].item(), sampling)
    clip = torch.empty_like(codes)
    clip[:, config.order()] = codes
    return clip.view(1, config.num_frames, *config.grid)


def draw(logits: np.ndarray, uniform: float, sampling: ParSampling) -> int:
    """One code, by sorting."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    p = np.exp((logits[order] - logits.max()) / sampling.temperature)
    p /= p.sum()
    kept = order[np.cumsum(p) - p <= sampling.top_p]
    p = np.zeros_like(logits)
    p[kept] = np.exp((logits[kept] - logits.max()) / sampling.temperature)
    return int(np.searchsorted(np.cumsum(p), uniform * p.sum(), side="right"))


@pytest.mark.parametrize(
    "sampling",
    [
        ParSampling(guidance=2.5),
        ParSampling(guidance=1.0, temperature=0.7),
        ParSampling(guidance=1.5, temperature=0.0),
        ParSampling(guidance=1.5, top_k=5, top_p=0.8),
    ],
)
def test_generate_equals_brute_force(sampling: ParSampling) -> None:
    model = small(4)
    expected = brute_force(model, 2, 11, sampling)
    options = {name: getattr(sampling, name) for name in sampling.__slots__}
    steps = []
    got = Par(model).generate(2, seed=11, on_step=steps.append, **options)
    assert got.dtype == torch.int64
    assert torch.equal(got, expected)
    assert steps == list(range(model.config.num_steps))


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (1, 1.0), (7, 1.0), (0, 0.6), (40, 0.9)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_sampling_equals_brute_force(top_k: int, top_p: float, temperature: float) -> None:
    generator = torch.Generator().manual_seed(top_k)
    logits = 4 * torch.randn(3, 50, 64, generator=generator) - 5
    uniform = torch.rand(3, 50, generator=generator)
    sampling = ParSampling(temperature=temperature, top_k=top_k, top_p=top_p)
    limits = (torch.full((3,), top_k or 64), torch.full((3,), top_p))
    got = sample_codes(
        logits, uniform, torch.full((3,), temperature), *(limits if sampling.filtered else ())
    )
    rows = zip(logits.double().flatten(0, 1).numpy(), uniform.flatten().tolist(), strict=True)
    assert got.flatten().tolist() == [draw(row, u, sampling) for row, u in rows]


def test_sampling_draws_by_probability() -> None:
    """Evenly spaced uniforms hit every code as often as its softmax says."""
    logits, count = torch.tensor([[0.3, -1.0, 2.0, -30.0]]), 20_000
    uniform = ((torch.arange(count) + 0.5) / count)[None]
    codes = sample_codes(logits.expand(1, count, -1), uniform, torch.ones(1))
    shares = torch.bincount(codes[0], minlength=4) / count
    assert torch.allclose(shares, logits[0].softmax(-1), atol=1e-4)
    # What is as likely as the last of the k stays.
    ties = torch.tensor([[1.0, 2.0, 1.0, 0.0]]).expand(1, count, -1)
    limits = (torch.tensor([2]), torch.ones(1))
    assert set(sample_codes(ties, uniform, torch.ones(1), *limits)[0].tolist()) == {0, 1, 2}


def test_results_depend_on_no_neighbour() -> None:
    par = Par(small())
    singles = [par.generate(one, seed=seed) for one, seed in ((1, 7), (4, 8))]
    assert torch.equal(par.generate([1, 4], seed=7), torch.cat(singles))
    assert not torch.equal(singles[0], par.generate(1, seed=9))
    assert not torch.equal(singles[0], par.generate(2, seed=7))
    # In rows of one product, too: the same request in another slot beside another one.
    pair = Par(small(), slots=2)
    first = pair.generate([1, 4], seed=[7, 8])
    assert torch.equal(pair.generate([1, 3], seed=[7, 3])[0], first[0])
    assert torch.equal(pair.generate(1, seed=7)[0], first[0])
    assert pair.generate([1, 4, 0], seed=[7, 8, 9]).shape == (3, 2, 4, 4)


def test_not_finite_logits() -> None:
    par = Par(small())
    expected = par.generate(1)
    par.transformer.embed_class.weight[2] = float("nan")
    with pytest.raises(NumericalError, match="not finite"):
        par.generate(2)
    assert torch.equal(par.generate(1), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_id": 6}, "class_id: expected 0 .. 5, got 6"),
        ({"class_id": 0, "temperature": -1.0}, "temperature: "),
        ({"class_id": 0, "guidance": float("nan")}, "guidance: "),
        ({"class_id": 0, "top_k": 25}, "top_k: expected 0 .. 24, got 25"),
        ({"class_id": 0, "top_p": 0.0}, "top_p: "),
        ({"class_id": [0, 1], "seed": [0]}, "seed: expected 2, got 1"),
        ({"class_id": []}, "class_id: expected at least one class"),
        ({"class_id": 0, "seed": -1}, "seed: expected 0 .. "),
    ],
)
def test_bad_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Par(small()).generate(**options)


def test_costs() -> None:
    config = PAR_PRESETS["par-4x"]
    steps = clip_steps(config)
    weights = describe(config)["parameters"] - (16_384 + 102 + 3 + 73) * 1280
    assert len(steps) == 323
    assert [step.rows for step in steps[:6]] == [2, 2, 2, 2, 8, 8]
    assert sum(step.rows for step in steps) == 2 * 1280
    assert steps[-1].keys == 1280
    assert all(step.weight_bytes == 2 * weights for step in steps)
    assert sum(step.gemm_flops for step in steps) == 2 * weights * 2 * 1280
    assert steps[5].cache_read_bytes == 2 * 36 * 2 * 12 * 1280 * 2
    assert steps[5].attention_flops == 36 * 2 * (4 * 12) * 20 * 64 * 4


# Public checkpoints.


def public_weights(group: int, heads: int = 2, width: int = 32) -> dict[str, Tensor]:
    """Random weights under the public names."""
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "tok_embeddings.weight": (24, width),
        "cls_embedding.embedding_table.weight": (6, width),
        "norm.weight": (width,),
        "output.weight": (24, width),
    }
    if group > 1:
        shapes["spe_tok_embeddings.special_embeddings.weight"] = (group - 1, width)
    for i in range(2):
        shapes |= {
            f"layers.{i}.attention.wqkv.weight": (3 * width, width),
            f"layers.{i}.attention.wo.weight": (width, width),
            f"layers.{i}.feed_forward.w1.weight": (48, width),
            f"layers.{i}.feed_forward.w3.weight": (48, width),
            f"layers.{i}.feed_forward.w2.weight": (width, 48),
            f"layers.{i}.attention_norm.weight": (width,),
            f"layers.{i}.ffn_norm.weight": (width,),
        }
    return {name: 0.3 * torch.randn(s, generator=generator) for name, s in shapes.items()}


def plain_logits(
    weights: dict[str, Tensor], class_id: int, codes: list[int], group: int, side: int, heads: int
) -> Tensor:
    """The public models computed anew: one sequence, float64, rotation by complex numbers.

    Args:
        codes: in the order of the public sequence.

    Returns:
        `[len(codes),V]`: row i predicts code i.
    """
    w = {name: tensor.double() for name, tensor in weights.items()}
    edge = int(group**0.5)
    part = side // edge
    cells = [
        (a * part + i, b * part + j)
        for i in range(part)
        for j in range(part)
        for a in range(edge)
        for b in range(edge)
    ]
    width = w["norm.weight"].numel()
    depth = width // heads
    table = w["tok_embeddings.weight"][torch.tensor(codes)]
    extra = w.get("spe_tok_embeddings.special_embeddings.weight", table[:0])
    start = w["cls_embedding.embedding_table.weight"][class_id : class_id + 1]
    x = torch.cat([start, table[:group], extra, table[group:]])[: len(codes)]
    places = ([None] + cells[:group] + [None] * (group - 1) + cells[group:])[: len(codes)]
    speed = 10000.0 ** (-torch.arange(0, depth // 2, 2, dtype=torch.float64) / (depth // 2))
    turns = torch.zeros(len(x), depth // 2, dtype=torch.complex128)
    for i, cell in enumerate(places):
        if cell is not None:
            angle = torch.cat([cell[0] * speed, cell[1] * speed])
            turns[i] = torch.polar(torch.ones_like(angle), angle)
    # Token i is in group 0 (class), 1 .. (single tokens), then `group` tokens each.
    number = [i if i < group else group + (i - group) // group for i in range(len(x))]
    sees = torch.tensor([[b <= a for b in number] for a in number])

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def rotated(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.view(len(x), heads, depth // 2, 2).contiguous())
        return torch.view_as_real(pairs * turns[:, None]).flatten(2)

    for i in range(2):
        own = {name.removeprefix(f"layers.{i}."): t for name, t in w.items()}
        h = norm(x, own["attention_norm.weight"]) @ own["attention.wqkv.weight"].T
        q, k = rotated(h[:, :width]), rotated(h[:, width : 2 * width])
        v = h[:, 2 * width :].view(len(x), heads, depth)
        scores = torch.einsum("ahd,bhd->hab", q, k) / depth**0.5
        p = scores.masked_fill(~sees, float("-inf")).softmax(-1)
        x = x + torch.einsum("hab,bhd->ahd", p, v).flatten(1) @ own["attention.wo.weight"].T
        h = norm(x, own["ffn_norm.weight"])
        gate, up = h @ own["feed_forward.w1.weight"].T, h @ own["feed_forward.w3.weight"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ own["feed_forward.w2.weight"].T
    return norm(x, w["norm.weight"]) @ w["output.weight"].T


@pytest.mark.parametrize("group", GROUPS)
def test_public_weights_give_the_public_logits(group: int) -> None:
    weights = public_weights(group)
    # What some files carry besides.
    tables = {"freqs_cis": torch.zeros(1), "layers.0.attention.kv_cache.k_cache": torch.zeros(1)}
    config, state_dict = import_public(weights | tables, heads=2, grid=(8, 8))
    assert (config.group, config.layers, config.classes, config.num_tokens) == (group, 2, 5, 64)
    model = ParTransformer(config)
    model.load_state_dict(state_dict)
    codes = random_codes(config, 1)
    expected = plain_logits(weights, 4, codes[0].tolist(), group, side=8, heads=2)
    got = teacher_forced_logits(model, torch.tensor([4]), codes)[0]
    assert distance(got.double(), expected) < 2e-5
    # And decoded with the cache: every greedy code is the likeliest of the plain model.
    par = Par.from_public(weights, heads=2, grid=(8, 8), dtype=torch.float32)
    clip = par.generate(4, guidance=1.0, temperature=0.0).flatten()[config.order()]
    expected = plain_logits(weights, 4, clip.tolist(), group, side=8, heads=2)
    chosen = expected.gather(1, clip[:, None])[:, 0]
    assert (expected.amax(1) - chosen).max() < 1e-4


def test_bad_public_weights() -> None:
    weights = public_weights(4)

    def refused(changes: dict[str, Tensor | None], message: str) -> None:
        changed = {n: t for n, t in (weights | changes).items() if t is not None}
        with pytest.raises(CheckpointError, match=message):
            import_public(changed, heads=2, grid=(4, 4))

    refused({"tok_embeddings.weight": None}, "tok_embeddings.weight: missing; there are cls_emb")
    refused({"tok_embeddings.weight": torch.ones(3)}, r"tok_embeddings.* a matrix, got \[3\]")
    special = "spe_tok_embeddings.special_embeddings.weight"
    refused({special: torch.ones(())}, rf"{special}: expected a matrix, got \[\]")
    refused({special: torch.ones(32)}, rf"{special}: expected a matrix, got \[32\]")
    refused({"norm.weight": torch.ones(32).long()}, "norm.weight: expected floating, got torch.int")
    refused({"norm.weight": np.ones(32)}, "norm.weight: expected a tensor, got ndarray")
    refused({"layers.1.attention.wo.weight": None}, "layers.1.attention.wo.weight: missing")
    refused({"layers.1.attention.bias": torch.zeros(2)}, "layers.1.attention.bias: unknown")
    refused({"output.weight": torch.zeros(3, 32)}, r"output.weight: expected \[24, 32\]")
    refused({"norm.weight": torch.full((32,), torch.inf)}, "norm.weight: a value is not finite")
    with pytest.raises(ValueError, match="heads: "):
        import_public(weights, heads=5, grid=(4, 4))
    with pytest.raises(ValueError, match="group: "):
        import_public(weights, heads=2, grid=(5, 5))


@pytest.mark.parametrize("heads", [0, -2, 2.0])
def test_bad_heads_and_grids_of_public_weights(heads: object) -> None:
    with pytest.raises(ValueError, match=r"^heads: expected at least 1, got"):
        import_public(public_weights(4), heads=heads, grid=(4, 4))
    with pytest.raises(ValueError, match=r"^grid: expected \(h, w\) of at least 1, got"):
        import_public(public_weights(4), heads=2, grid=(4, heads))


def test_public_files_as_they_are() -> None:
    """What training saved is wrapped, and its names may have prefixes."""
    weights = public_weights(4)
    _, expected = import_public(weights, heads=2, grid=(4, 4))
    prefixed = {f"_orig_mod.module.{name}": t for name, t in weights.items()}
    for file in ({"model": weights, "steps": 3}, {"model_ema": prefixed}, {"module": weights}):
        _, got = import_public(file, heads=2, grid=(4, 4))
        assert all(torch.equal(got[name], t) for name, t in expected.items())
    for file, message in (
        ({"model": weights, "model_ema": weights}, "model, model_ema: several sets of weights"),
        ({"model": {}}, "no tensors"),
        ({3: torch.ones(1)}, "expected tensors by name, got 3"),
    ):
        with pytest.raises(CheckpointError, match=message):
            import_public(file, heads=2, grid=(4, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_id": [1.5]}, r"class_id: expected integers, got 1.5"),
        ({"class_id": 1, "seed": [True]}, r"seed: expected integers, got True"),
        ({"class_id": 1, "temperature": 1e39}, r"temperature: expected 0 .. 3.4e\+38, got 1e\+39"),
        ({"class_id": 1, "guidance": 1e39}, r"guidance: expected 0 .. 3.4e\+38, got 1e\+39"),
        ({"class_id": 1, "top_k": 2.5}, r"top_k: expected an integer of 0 or more, got 2.5"),
    ],
)
def test_bad_numbers(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Par(small(4)).generate(**options)


def test_integers_of_numpy() -> None:
    par = Par(small(4))
    got = par.generate(np.array([1, 3]), seed=np.int64(5), top_k=np.int32(4))
    assert torch.equal(got, par.generate([1, 3], seed=5, top_k=4))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("group", -4), ("group", 2.0), ("num_frames", 0), ("layers", 1.5), ("grid", (0, 4))),
        *(("position_scale", (1, 1)), ("position_scale", (1, 0, 1)), ("rope_theta", math.nan)),
    ],
)
def test_bad_sizes(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        replace(SMALL, **{name: value})


# Graphs: on a CPU streams do nothing and a replay calls again, as in test_cuda_executor.py.


class FakeStream:
    def __init__(self, device: object = None) -> None:
        pass

    def synchronize(self) -> None:
        pass


class CallAgain(GraphSet):
    """A graph set whose replay runs the captured call eagerly."""

    def capture(self, name, call, buffers) -> None:
        call()
        call()
        self._captured[name] = (call, {key: t.data_ptr() for key, t in buffers.items()})

    def replay(self, name, buffers) -> None:
        call, expected = self._captured[name]
        assert expected == {key: t.data_ptr() for key, t in buffers.items()}
        call()


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(par_graphs, "GraphSet", CallAgain)


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("group", GROUPS)
def test_four_graphs_serve_every_step(group: int) -> None:
    eager, graphed = Par(small(group), slots=2), Par(small(group), slots=2)
    graphed.graphs = par_graphs.ParGraphs(graphed.transformer)
    options = [{"guidance": 2.0}, {"guidance": 1.0}, {"top_k": 5}, {"guidance": 3.0, "seed": 4}]
    for one in options:
        assert torch.equal(graphed.generate([1, 3], **one), eager.generate([1, 3], **one))
    # With two rows and with one, and with two rows and filters.
    assert len(graphed.graphs.graphs._captured) == 3 * len(first_steps(graphed.config))
    runs = par_measure.measure(graphed, range(2, 5), 1, ParSampling())
    assert {name: len(times) for name, times in runs.items()} == dict.fromkeys(par_measure.FORMS, 1)
    graphed.close()
    assert not graphed.graphs.captured


@pytest.mark.usefixtures("fake_cuda")
def test_a_filtered_clip_may_be_the_first() -> None:
    """Capturing runs the steps, so what they read is there before."""
    eager, graphed = Par(small(4), slots=2), Par(small(4), slots=2)
    graphed.graphs = par_graphs.ParGraphs(graphed.transformer)
    assert torch.equal(graphed.generate([1, 3], top_k=5), eager.generate([1, 3], top_k=5))


@pytest.mark.gpu
@pytest.mark.parametrize("group", GROUPS)
def test_graph_equals_eager_bit_for_bit(group: int) -> None:
    model = small(group, width=128).to("cuda", torch.bfloat16)
    par = Par(model, slots=2)
    for options in ({"guidance": 2.0}, {"guidance": 1.0, "top_k": 5, "top_p": 0.9}):
        got = par.generate([1, 3], seed=5, **options)
        sampling = ParSampling(**options)
        state = par.start([1, 3], [5, 6], sampling)
        with torch.cuda.stream(par.graphs.stream):
            for step in range(par.config.num_steps):
                kind = kind_of(par.config, step)
                decode_step(model, state, kind)
        assert torch.equal(par.codes(state), got)


def test_command_line(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PAR_PRESETS, "par-4x", SMALL)
    words = ["--steps", "3", "--first-step", "4", "--dtype", "float32", "--repeats", "2"]
    assert par_measure.run(words) == 0
    *table, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert document["steps"] == [4, 7]
    assert {len(times) for times in document["samples_ms"].values()} == {2}
    assert document["floor"] in document["samples_ms"]
    costs = clip_steps(SMALL, itemsize=4)[4:7]
    assert document["flops_per_step"] == sum(c.flops for c in costs) / 3
    assert document["floor_ratio"] > 0
    assert sum(line.startswith(("par, ours", "gemms")) for line in table) == 3
    with pytest.raises(SystemExit):
        par_measure.run(["--steps", "12"])
    assert "--steps: expected 1 .. 11" in capsys.readouterr().err

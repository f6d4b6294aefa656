"""The training card: what is kept equals what autograd saves, FLOPs equal those that run."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from videoar.kernels import use_backend
from videoar.kernels.bitwise_cross_entropy import bitwise_cross_entropy
from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.kernels.chunk_attention import chunk_mask
from videoar.runtime.cli import main
from videoar.runtime.cost_tokenizer import tokenizer_memory, tokenizer_step
from videoar.runtime.cost_training import (
    TrainingWork,
    transformer_memory,
    transformer_step,
    visible_pairs,
)
from videoar.runtime.presets import PRESETS
from videoar.runtime.schedule import ChunkSchedule
from videoar.runtime.transformer import Transformer, teacher_forced_logits
from videoar.runtime.video_tokenizer import VideoTokenizer

DIGITS = PRESETS["digits"]
SMALL = replace(DIGITS.transformer, layers=2)
GROUPED = replace(SMALL, heads=4, kv_heads=2)


def work(config, batch=2, **changes):
    return TrainingWork(batch=batch, latent_frames=config.max_frames, text=8, **changes)


def teacher_forced_loss(model, step, half=True):
    """Of random bits behind `step.text` words."""
    config = model.config
    shape = step.batch, step.latent_frames, config.tokens_per_frame, config.latent_dim
    tokens = torch.zeros(step.batch, step.text, dtype=torch.int64)
    lengths = torch.full((step.batch,), step.text)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = teacher_forced_logits(model, tokens, lengths, torch.randn(shape))
    return bitwise_cross_entropy(logits, torch.rand(shape) < 0.5)


def reconstruction_loss(model, batch, frames=17):
    video = torch.rand(batch, 3, frames, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        quantized = bsq_quantize(model.encoder(video).float(), SMALL.sizes, return_losses=True)
        output = model.decoder(quantized.reconstruction).float()
    return F.mse_loss(output, video) + quantized.losses["commitment"]


def saved_bytes(model, run):
    """Bytes that autograd keeps of a forward pass besides the parameters."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes, alive = {}, []

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return sum(sizes.values())


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def kept(memory):
    return memory.copies + memory.activations + memory.attention + memory.head


class TestTransformer:
    @pytest.mark.parametrize("config", [SMALL, GROUPED], ids=["heads", "grouped"])
    def test_kept_is_what_autograd_saves(self, config):
        model = Transformer(config).train()
        step = work(config)
        saved = saved_bytes(model, lambda: teacher_forced_loss(model, step))
        assert kept(transformer_memory(config, parameters(model), step)) == pytest.approx(
            saved, rel=0.02
        )

    def test_triton_saves_the_same(self):
        """In its interpreter, in float32; where there is a GPU, this is about its kernels too."""
        config = replace(SMALL, layers=1, max_frames=2)
        model, step = Transformer(config).train(), work(config, batch=1, itemsize=4)

        def run():
            with use_backend("triton"):
                teacher_forced_loss(model, step, half=False)

        expected = kept(transformer_memory(config, parameters(model), step))
        assert expected == pytest.approx(saved_bytes(model, run), rel=0.03)

    def test_checkpointed_layers_keep_their_inputs(self):
        model, step = Transformer(SMALL).train(), work(SMALL, checkpointing=True)
        model.gradient_checkpointing = True
        memory = transformer_memory(SMALL, parameters(model), step)
        tokens = step.batch * (step.text + 5 * SMALL.tokens_per_frame)
        assert memory.activations == 2 * SMALL.layers * tokens * SMALL.width * 2
        plain = transformer_memory(SMALL, parameters(model), replace(step, checkpointing=False))
        one_layer = (plain.activations + plain.attention) // SMALL.layers
        assert memory.recomputed == one_layer
        assert (memory.attention, plain.recomputed) == (0, 0)

    def test_state_by_hand(self):
        memory = transformer_memory(SMALL, 1000, work(SMALL, processes=3))
        assert (memory.weights, memory.gradients, memory.moments, memory.average) == (
            *(334 * 4, 334 * 4, 2 * 334 * 4, 334 * 4),
        )
        assert memory.state == 4 * 334 * 4

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_products_are_those_that_run(self, checkpointing):
        model = Transformer(SMALL).train()
        model.gradient_checkpointing = checkpointing
        step = work(SMALL, checkpointing=checkpointing)
        with FlopCounterMode(display=False) as counter:
            teacher_forced_loss(model, step).backward()
        counts = counter.get_flop_counts()["Global"]
        ran = sum(n for op, n in counts.items() if str(op).split(".")[-1] in ("mm", "addmm"))
        products = transformer_step(SMALL, parameters(model), step)[0]
        assert (products.name, products.flops) == ("products", ran)

    def test_pairs_are_those_of_the_mask(self):
        step = work(SMALL)
        schedule = ChunkSchedule.video(step.latent_frames, SMALL.sizes)
        assert visible_pairs(SMALL, step) == int(chunk_mask(schedule, step.text).sum())


class TestTokenizer:
    @pytest.mark.parametrize("frames", [17, 1])
    def test_kept_is_what_autograd_saves(self, frames):
        model = VideoTokenizer(DIGITS.tokenizer).train()
        step = TrainingWork(batch=1, latent_frames=DIGITS.tokenizer.latent_frames(frames))
        saved = saved_bytes(model, lambda: reconstruction_loss(model, 1, frames))
        memory = tokenizer_memory(DIGITS.tokenizer, 64, 64, parameters(model), step)
        assert kept(memory) + memory.batch == pytest.approx(saved, rel=0.05)

    def test_convolutions_are_those_that_run(self):
        model = VideoTokenizer(DIGITS.tokenizer).train()
        step = TrainingWork(batch=1, latent_frames=5)
        with FlopCounterMode(display=False) as counter:
            reconstruction_loss(model, 1).backward()
        counts = counter.get_flop_counts()["Global"]
        ran = sum(n for op, n in counts.items() if "convolution" in str(op))
        convolutions = tokenizer_step(DIGITS.tokenizer, 64, 64, parameters(model), step)[0]
        assert convolutions.flops == pytest.approx(ran, rel=0.01)


class TestCard:
    def card(self, capsys, *words: object) -> dict:
        words = ("inspect", "--cost", "--train", "--json", *map(str, words))
        assert main(list(words)) == 0
        return json.loads(capsys.readouterr().out)

    def test_h200(self, capsys):
        card = self.card(capsys, "--preset", "videoar-l", "--device", "h200", "--batch", 16)
        transformer = card["transformer"]
        count = transformer["parameters"]
        assert transformer["memory"]["state"] == 16 * count
        assert transformer["memory"]["peak"] < 141e9 < card["tokenizer"]["memory"]["peak"]
        step = transformer["step"]
        # Six FLOPs a weight and token, and all tokens but the class' pass the head.
        assert step["products"]["flops"] == pytest.approx(6 * count * 16 * 651, rel=0.01)
        assert transformer["seconds"] == sum(part["seconds"] for part in step.values())

    def test_checkpointing_and_processes_need_less(self, capsys):
        words = ("--preset", "videoar-l", "--device", "h200", "--batch", 16)
        plain = self.card(capsys, *words)["transformer"]
        small = self.card(capsys, *words, "--checkpointing", "--processes", 8)["transformer"]
        assert small["memory"]["peak"] < plain["memory"]["peak"] / 2
        assert small["memory"]["weights"] == plain["memory"]["weights"] / 8
        assert small["step"]["products"]["flops"] > 1.2 * plain["step"]["products"]["flops"]

    def test_as_text(self, capsys):
        words = ["inspect", "--cost", "--train", "--preset", "digits"]
        assert main([*words, "--bandwidth", "40", "--flops", "0.4", "--batch", "64"]) == 0
        out = capsys.readouterr().out
        assert "64 clips of 17 frames a step and process, 12 text tokens" in out
        assert out.index("transformer, memory") < out.index("tokenizer, memory")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--train",), "--train: needs --cost"),
            (("--cost", "--train", "--batch", "0"), "--batch"),
            (("--cost", "--train", "--max-text", "13"), "max_text: expected 1 .. 12, got 13"),
            (("--cost", "--train", "--num-frames", "18"), "nearest: 17 or 21"),
        ],
    )
    def test_bad_arguments(self, capsys, words, message):
        limits = ("--bandwidth", "40", "--flops", "1")
        try:
            status = main(["inspect", "--preset", "digits", *limits, *words])
        except SystemExit as stop:
            status = stop.code
        assert status == 2
        assert message in capsys.readouterr().err

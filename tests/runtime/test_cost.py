"""The cost card: counts equal those of the operations that run, limits those of PAPER.md."""

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from videoar import _C
from videoar.runtime import cli_cost, limits, plan
from videoar.runtime.cli import main
from videoar.runtime.config import TransformerConfig
from videoar.runtime.cost import Limits, StepCost, Work, clip_steps, prefill_cost, step_gemms
from videoar.runtime.cost_decoder import clip_convs, conv_flops, decoder_convs, decoder_levels
from videoar.runtime.fast_decoder import FastDecoder
from videoar.runtime.limits import H200
from videoar.runtime.modules import random_modules
from videoar.runtime.presets import PRESETS
from videoar.runtime.sampling import decode_frame, prepare
from videoar.runtime.video_tokenizer import VideoTokenizer

L, XL = PRESETS["videoar-l"], PRESETS["videoar-xl"]
DIGITS = PRESETS["digits"].tokenizer
SMALL_3D = replace(L.tokenizer, channels=8, norm_groups=4, latent_dim=8)
# The feed-forward width with which the page's figures for XL were made; the preset's is 7,424.
XL_OF_THE_PAGE = replace(XL.transformer, mlp_width=8192)


def work(requests: int) -> Work:
    return Work(requests=requests, sequences=2, text=1, window=4, itemsize=2)


def flops_of(counter: FlopCounterMode, *names: str) -> int:
    counts = counter.get_flop_counts()["Global"]
    return sum(count for op, count in counts.items() if str(op).split(".")[-1] in names)


class TestTransformer:
    @pytest.mark.parametrize("rows", [1, 2])
    def test_gemm_flops_are_those_that_run(self, rows):
        config = PRESETS["digits"].transformer
        transformer, _ = random_modules(PRESETS["digits"], torch.float32, "cpu", 0)
        state = prepare(transformer, [[1, 2, 3]], [1] if rows == 2 else None, [0])
        with FlopCounterMode(display=False) as counter:
            for _ in range(2):
                decode_frame(transformer, state)
        one = Work(requests=1, sequences=rows, text=3, window=4, itemsize=4)
        expected = sum(step.gemm_flops for step in clip_steps(config, one, 2))
        assert flops_of(counter, "mm", "addmm") == expected

    def test_prefill_flops(self):
        config = PRESETS["digits"].transformer
        one = Work(requests=1, sequences=1, text=5, window=4, itemsize=4)
        transformer, _ = random_modules(PRESETS["digits"], torch.float32, "cpu", 0)
        with FlopCounterMode(display=False) as counter:
            transformer.text_hidden(torch.tensor([[1, 2, 3, 4, 5]]))
        assert flops_of(counter, "mm", "addmm") == prefill_cost(config, one).gemm_flops

    def test_weights_are_the_parameters(self):
        config = L.transformer
        parameters = sum(gemm.weights for gemm in step_gemms(config, 2))
        norms = config.layers * (2 * config.width + 2 * config.head_dim) + config.width
        tables = (config.embeddings + len(config.sizes) + 1) * config.width
        assert round((parameters + norms + tables) / 1e6) == 921

    def test_keys_by_hand(self):
        steps = clip_steps(L.transformer, work(1), 7)
        keys = [step.keys for step in steps if step.scale == 1]
        # The class, the frames in a window of 4, and 1 + 4 tokens of the frame itself.
        assert keys == [1 + 130 * seen + 5 for seen in (0, 1, 2, 3, 4, 4, 4)]
        last = steps[-1]
        assert last.attention_flops == 4 * 24 * 1536 * 2 * 64 * 651
        assert last.cache_read_bytes == 2 * 24 * 1536 * 2 * 651 * 2
        assert last.cache_write_bytes == 2 * 24 * 1536 * 2 * 64 * 2

    @pytest.mark.parametrize(
        ("config", "page_ms"),
        [
            pytest.param(L.transformer, (13.6, 34.5, 249), id="L"),
            pytest.param(XL_OF_THE_PAGE, (31, 77, 554), id="XL"),
        ],
    )
    @pytest.mark.parametrize("index", [0, 1, 2])
    def test_limits_of_the_paper_page(self, config, page_ms, index):
        """PAPER.md, section 8: transformer alone, clip with guidance, batch 1, 8 and 64.

        The page lets every step read its frame's whole region of the cache; a step need not read
        what is not written yet. In its way of counting the figures agree.
        """
        requests = (1, 8, 64)[index]
        steps = clip_steps(config, work(requests), 5)
        whole = [_with_the_whole_frame(step, config) for step in steps]
        page = 1e3 * sum(step.seconds(H200) for step in whole)
        assert page == pytest.approx(page_ms[index], rel=0.02)
        ours = 1e3 * sum(step.seconds(H200) for step in steps)
        assert 0.94 * page_ms[index] < ours < page

    def test_all_steps_are_weight_bound_at_batch_1(self):
        assert {s.bound(H200) for s in clip_steps(L.transformer, work(1), 5)} == {"weights"}
        assert H200.rate / H200.bandwidth == pytest.approx(184, rel=0.01)

    def test_published_flops(self):
        assert sum(s.flops for s in clip_steps(L.transformer, work(1), 5)) == pytest.approx(
            2.5e12, rel=0.02
        )


def _with_the_whole_frame(step: StepCost, config: TransformerConfig) -> StepCost:
    tokens = config.tokens_per_frame
    whole = 1 + (step.frame + 1) * tokens
    return replace(step, cache_read_bytes=step.cache_read_bytes // step.keys * whole)


class TestDecoder:
    @pytest.mark.parametrize("config", [DIGITS, SMALL_3D], ids=["digits", "all over time"])
    def test_plain_flops_are_those_that_run(self, config):
        decoder, grid = VideoTokenizer(config).decoder, (4, 4)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            decoder(torch.zeros(1, config.latent_dim, 3, *grid))
        expected = conv_flops(clip_convs(config, grid, 3, folded=False))
        assert flops_of(counter, "convolution") == expected

    def test_kernels_are_the_weights(self):
        with torch.device("meta"):
            decoder = VideoTokenizer(L.tokenizer).decoder
        kernels = sum(p.numel() for p in decoder.parameters() if p.dim() > 1)
        convs = decoder_convs(L.tokenizer, (8, 8), first=False, folded=False)
        assert sum(conv.weights for conv in convs) == kernels

    def test_carried_frames_are_the_state(self):
        config = PRESETS["digits"].tokenizer
        decoder = VideoTokenizer(config).decoder
        state = decoder.step(torch.zeros(1, config.latent_dim, 1, 4, 4), None)[1]
        state = decoder.step(torch.zeros(1, config.latent_dim, 1, 4, 4), state)[1]
        convs = decoder_convs(config, (4, 4), first=False, folded=False)
        carried = sum(conv.width_in * conv.carried for conv in convs)
        assert carried == sum(frames.numel() for frames in state.values())

    def test_limits_of_the_paper_page(self):
        """PAPER.md, section 8; folding alone is seen in the frames behind the first."""
        plain = conv_flops(clip_convs(L.tokenizer, (8, 8), 5, folded=False))
        assert plain == pytest.approx(7.5e12, rel=0.01)
        assert 1e3 * plain / H200.rate == pytest.approx(9.4, rel=0.01)
        later = [
            conv_flops(decoder_convs(L.tokenizer, (8, 8), first=False, folded=folded))
            for folded in (False, True)
        ]
        assert 1 - later[1] / later[0] == pytest.approx(0.17, abs=0.005)

    @pytest.mark.parametrize("config", [DIGITS, SMALL_3D], ids=["digits", "all over time"])
    @pytest.mark.parametrize("first", [True, False])
    def test_the_streaming_decoder_runs_these_convolutions(self, config, first):
        """Its folded kernels also compute a border of one cell, which is thrown away."""
        decoder = VideoTokenizer(config).decoder
        options = {"dtype": torch.float32, "device": "cpu", "height": 4, "width": 6}
        runs = FastDecoder(decoder, **options).convs(first)
        counted = decoder_convs(config, (4, 6), first=first, folded=True)
        for run, ours in zip(runs, counted, strict=True):
            border = 1.0
            if ours.phases > 1:
                height, width = (side // 2 for side in ours.grid)
                border = (height + 1) * (width + 1) / (height * width)
            assert run.flops == pytest.approx(ours.flops * border)

    def test_a_folded_upsample_has_eight_taps_in_eight_phases(self):
        plain, folded = (
            [c for c in decoder_convs(L.tokenizer, (8, 8), first=False, folded=f) if c.level == "4"]
            for f in (False, True)
        )
        assert (plain[-1].taps, folded[-1].taps, folded[-1].phases) == (27, 8, 8)
        assert (plain[-1].inputs, folded[-1].inputs) == (2 * 16 * 16, 8 * 8)
        assert (plain[-1].carried, folded[-1].carried) == (2 * 16 * 16, 8 * 8)
        assert plain[-1].outputs == folded[-1].outputs == 2 * 16 * 16
        assert plain[:-1] == folded[:-1]

    def test_levels_add_up(self):
        levels = decoder_levels(L.tokenizer, (8, 8), 5, H200, itemsize=2, requests=3)
        assert [level.level for level in levels] == ["mid", "4", "3", "2", "1", "0", "out"]
        folded = conv_flops(clip_convs(L.tokenizer, (8, 8), 5, folded=True))
        assert sum(level.flops for level in levels) == 3 * folded
        assert all(level.seconds >= level.flops / H200.rate for level in levels)


class TestLimits:
    def test_the_longer_of_the_two(self):
        device = Limits(name="", bandwidth=10.0, rate=100.0, source="", memory=0)
        assert device.seconds(20, 100) == 2
        assert device.seconds(20, 300) == 3

    def test_measured(self, monkeypatch):
        monkeypatch.setattr(limits, "_COPY_BYTES", {"cpu": 1 << 22})
        monkeypatch.setattr(limits, "_EDGE", {"cpu": 128})
        measured = limits.measure_limits("cpu", torch.float32, budget_s=0.0)
        assert 1e8 < measured.bandwidth < 1e13
        assert 1e8 < measured.rate < 1e14
        assert measured.source == "measured just now, float32"

    def test_rates_from_the_clock(self, monkeypatch):
        """With calls of a known time the two rates are known."""
        monkeypatch.setattr(limits, "_best_seconds", lambda call, device, budget_s: 0.5)
        monkeypatch.setattr(limits, "_COPY_BYTES", {"cpu": 1 << 20})
        monkeypatch.setattr(limits, "_EDGE", {"cpu": 10})
        measured = limits.measure_limits("cpu", torch.float32)
        assert (measured.bandwidth, measured.rate) == (4 << 20, 4000)

    def test_float32_of_the_table_is_not_guessed(self):
        with pytest.raises(ValueError, match="dtype: the rate of h200 is known in 16 bits only"):
            limits.known_limits("h200", torch.float32)


class TestCard:
    def card(self, capsys, *words: object) -> dict:
        assert main(["inspect", "--cost", "--json", *(str(word) for word in words)]) == 0
        return json.loads(capsys.readouterr().out)

    def test_h200(self, capsys):
        card = self.card(capsys, "--preset", "videoar-l", "--device", "h200", "--slots", 64)
        assert card["settings"]["dtype"] == "bfloat16"
        seconds = sum(step.seconds(H200) for step in clip_steps(L.transformer, work(64), 5))
        assert card["clip"]["transformer"]["seconds"] == pytest.approx(seconds)
        assert sum(frame["seconds"] for frame in card["frames"]) == pytest.approx(seconds)
        assert sum(step["seconds"] for step in card["steps"]) == pytest.approx(seconds)
        assert card["clips_per_second"] == pytest.approx(64 / card["seconds"])

    def test_slots_of_a_cpu_follow_each_other(self, capsys, monkeypatch):
        monkeypatch.setattr(plan, "MOST_ROWS", 32)
        words = ("--preset", "digits", "--bandwidth", 40, "--flops", 0.4)
        one, three = self.card(capsys, *words), self.card(capsys, *words, "--slots", 3)
        assert three["settings"]["together"] == 1
        assert one["limits"]["bandwidth"] == 40e9
        assert one["limits"]["rate"] == 0.4e12
        assert one["limits"]["source"] == "as given"
        assert three["seconds"] == pytest.approx(3 * one["seconds"])
        assert three["clips_per_second"] == one["clips_per_second"]
        assert three["plan"]["cache"] > 2 * one["plan"]["cache"]
        assert three["plan"]["weights"] == one["plan"]["weights"]

    @pytest.mark.skipif(_C.isa() == "baseline", reason="no packed panels on this processor")
    def test_slots_of_a_cpu_share_the_weights(self, capsys):
        words = ("--preset", "digits", "--bandwidth", 40, "--flops", 0.4)
        one, eight, more = (self.card(capsys, *words, "--slots", n) for n in (1, 8, 80))
        assert [card["settings"]["together"] for card in (one, eight, more)] == [1, 8, 64]
        assert one["seconds"] < eight["seconds"] < 8 * one["seconds"]
        moved = [card["clip"]["transformer"]["num_bytes"] for card in (one, eight)]
        weights = one["plan"]["weights"] - one["plan"]["decoder_kernels"]
        assert moved[0] < moved[1] < 8 * moved[0] - weights
        assert main(["inspect", "--cost", *(str(word) for word in words), "--slots", "80"]) == 0
        assert ", 80 slots, 64 at a time, each" in capsys.readouterr().out

    def test_memory_comes_first_and_says_what_fits(self, capsys):
        words = ("--preset", "videoar-4b", "--device", "h200", "--slots", "64")
        assert main(["inspect", "--cost", *words]) == 0
        out = capsys.readouterr().out
        assert out.index("\nmemory") < out.index("\ntransformer") < out.index("\ndecoder")
        assert "largest that fits: 3 slots with this window" in out

    def test_one_ceiling_given_the_other_measured(self, capsys, monkeypatch):
        known = Limits(name="it", bandwidth=1e9, rate=1e12, source="measured", memory=10**12)
        monkeypatch.setattr(cli_cost, "measure_limits", lambda device, dtype: known)
        card = self.card(capsys, "--preset", "digits", "--flops", 2)
        assert (card["limits"]["rate"], card["limits"]["bandwidth"]) == (2e12, 1e9)
        assert card["limits"]["source"] == "measured, FLOPs as given"

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--window", "-1"), "window: expected 0 or more latent frames, got -1"),
            (("--max-text", "13"), "max_text: expected 1 .. 12, got 13"),
            (("--flops", "0"), "--flops: must be above 0, got 0"),
            (("--device", "h200", "--dtype", "float32"), "known in 16 bits only"),
            (("--num-frames", "18"), "nearest: 17 or 21"),
            (("--num-frames", "4000000001"), "num_frames: the card lists every step of at most"),
        ],
    )
    def test_bad_arguments(self, capsys, words, message):
        assert main(["inspect", "--cost", "--preset", "digits", *words]) == 2
        assert message in capsys.readouterr().err

"""The products benchmark: its ratios from known times, its command line."""

import json

import pytest

from videoar import _C
from videoar.benchmarks import products
from videoar.benchmarks.floor_parts import gemm_flops
from videoar.runtime.presets import PRESETS

needs_vectors = pytest.mark.skipif(_C.isa() == "baseline", reason="panels are for wide vectors")


def test_ratios_from_known_times():
    samples = {
        "panels, 2 rows": [10.0, 20.0, 10.0],
        "oneDNN's order, 2 rows": [12.0, 24.0, 11.0],
        "plain weights, 2 rows": [30.0, 60.0, 30.0],
    }
    assert products.ratios(samples, [2]) == {
        "oneDNN's order": {"2": pytest.approx(1.2)},
        "plain weights": {"2": pytest.approx(3.0)},
    }
    head, line = products.table(samples, [2], num_bytes=10**9, flops=5 * 10**9)
    assert "GFLOP/s" in head
    assert line.split() == ["2", "10.00", "10.00", "100.0", "1,000.0", "1.20", "3.00"]


def test_a_form_that_there_is_not_has_no_ratio():
    samples = {"panels, 2 rows": [10.0], "plain weights, 2 rows": [30.0]}
    assert products.ratios(samples, [2])["oneDNN's order"] == {"2": None}
    assert products.table(samples, [2], 1, 1)[1].split()[-2:] == ["-", "3.00"]


def test_work_is_that_of_the_layers():
    config = PRESETS["digits"]
    transformer = config.transformer
    num_bytes, flops = products.work("digits", transformer.layers, itemsize=4)
    assert num_bytes == 2 * flops
    # All products of a clip are those of the layers, the embedding of bits and the head.
    tokens = transformer.max_frames * sum(h * w for h, w in transformer.sizes)
    outside = 2 * transformer.width * (transformer.latent_dim + 2 * transformer.latent_dim)
    assert gemm_flops(config) == 2 * tokens * (flops + outside)


def test_rows_are_those_of_the_steps():
    assert products.step_rows("videoar-l") == [2, 8, 18, 32, 72, 128]


@needs_vectors
def test_command_line(capsys):
    arguments = ["--preset", "digits", "--dtype", "float32", "--rows", "1,3", "--rounds", "2"]
    assert products.main(arguments) == 0
    *text, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert [line.split()[0] for line in text[-2:]] == ["1", "3"]
    assert document["rows"] == [1, 3]
    assert set(map(len, document["samples_ms"].values())) == {2}
    assert all(value > 0 for value in document["ratios"]["plain weights"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--rows", "1,x"], "expected an integer"), (["--rows", "0"], "at least 1")],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        products.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--isa", "mmx"], "no instruction set 'mmx'"), (["--preset", "videoar-x"], "videoar-x")],
)
def test_what_this_machine_cannot_do(arguments, message, capsys):
    assert products.main(arguments) == 2
    assert message in capsys.readouterr().err

"""The examples run as they stand."""

import runpy
from pathlib import Path

import numpy as np

from videoar import VideoAR

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_embed_asyncio(capsys):
    example = runpy.run_path(str(EXAMPLES / "embed_asyncio.py"))
    clients = example["main"]()
    assert [client.prompt for client in clients] == list(example["PROMPTS"])
    assert [client.cancelled for client in clients] == [False, True, False, False, False]
    assert all(client.asked < client.first <= client.last for client in clients)
    # They overlap: the last one asks before the first one is served, and is served itself.
    assert clients[-1].asked < clients[0].last
    model = VideoAR.from_pretrained("digits")
    for client in clients:
        expected = model.generate(client.prompt, seed=client.name).frames[0]
        got = np.concatenate(client.frames)
        assert len(got) == (5 if client.cancelled else 17)
        np.testing.assert_array_equal(got, expected[: len(got)])
    lines = capsys.readouterr().out.splitlines()
    assert sum("asks for" in line for line in lines) == 5
    assert sum("is served; first frame after" in line for line in lines) == 4
    assert sum("hung up; first frame after" in line for line in lines) == 1

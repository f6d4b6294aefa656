"""The environment report: the same facts as table and as a last line of JSON."""

import json

import torch

from videoar.benchmarks.environment import environment, main


def test_versions_are_those_in_use():
    facts = environment()
    assert facts["torch"] == torch.__version__
    assert facts["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert facts["threads"] == torch.get_num_threads()


def test_last_line_is_the_json_of_the_table(capsys):
    main([])
    *table, last = capsys.readouterr().out.splitlines()
    facts = json.loads(last)
    assert facts == environment()
    assert [line.split()[0] for line in table] == list(facts)

"""README's measured table is what its committed JSON says."""

import json
import re
from pathlib import Path

from videoar.benchmarks.report_tables import readme_block

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"<!-- measured: (\S+) -->\n(.*?)<!-- /measured -->", re.DOTALL)


def blocks():
    return BLOCK.findall((ROOT / "README.md").read_text())


def test_there_is_one_measured_table():
    assert len(blocks()) == 1


def test_the_table_is_that_of_the_json():
    """`python -m videoar.benchmarks.report --table FILE` prints what belongs into the block."""
    ((path, text),) = blocks()
    document = json.loads((ROOT / path).read_text())
    assert text == readme_block(document)


def test_the_json_says_where_it_is_from():
    ((path, _),) = blocks()
    document = json.loads((ROOT / path).read_text())
    for name in ("hardware", "commit", "command", "date", "versions"):
        assert document[name], name
    # Nothing in it is a path of the machine that it was measured on.
    assert not re.search(r"/(home|root|tmp|work|Users|mnt)/", json.dumps(document))

"""A suite's JSON as pytest-benchmark writes it, with numbers that are easy to follow."""

import copy

FACTS = {
    "limit_note": None,
    "device": "CPU A",
    "dtype": "bfloat16",
    "threads": 2,
    "versions": {"torch": "2.13.0"},
    "commit": "0123456789abcdef+",
    "timed": "all decoding steps",
    "bytes": 10,
    "flops": 20,
}


def benchmark(model, part, seconds, opponents=None, way="videoar", **facts):
    """An element of `benchmarks`: three rounds around `seconds`, the opponents in each."""
    rounds = [seconds, 0.9 * seconds, 1.2 * seconds]
    made = {
        name: {"samples": [ratio * x for x in rounds], "ratio": ratio}
        for name, ratio in (opponents or {}).items()
    }
    own = {"model": model, "way": way, "part": part, "batch": 1, "steps": 30, "rounds": 3}
    return {
        "name": f"bench_{part}[{model}-{way}]",
        "stats": {"median": seconds, "data": rounds},
        "extra_info": FACTS | own | {"limit_s": seconds / 2, "opponents": made} | facts,
    }


def suite(*benchmarks, **changes):
    """The whole document."""
    document = {
        "machine_info": {"node": "secret", "machine": "x86_64"},
        "datetime": "2026-11-22T10:00:00+00:00",
        "suite": {"command": "pytest benchmarks --benchmark-only --benchmark-json=x.json -q"},
        "benchmarks": list(benchmarks),
        "not_run": [],
    }
    return copy.deepcopy(document | changes)


def full():
    """VideoAR-L and PAR-4x in two ways."""
    beside = {"par-4x": 4.5, "par-4x eager": 12.0, "eager": 1.5, "bare": 0.8}
    steps = {"step_s": [0.1, 0.2], "step_limit_s": [0.05, 0.05]}
    return suite(
        benchmark("videoar-l", "transformer", 4.0, beside, **steps),
        benchmark("videoar-l", "clip", 10.0, {"eager": 2.0}),
        benchmark("par-4x", "transformer", 18.0, {"bare": 0.5, "eager": 3.0}, steps=323, **steps),
        not_run=[
            {"model": "videoar-4b", "part": "clip", "batch": 1, "way": "videoar"}
            | {"reason": "needs 20 GiB, 9 are free", "requested": False}
        ],
    )

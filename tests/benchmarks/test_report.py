"""The report: its ratios, tables, exit states, plots and the comparison with an older one."""

import importlib.util
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from videoar.benchmarks import report, report_compare, report_document, report_ratios
from videoar.benchmarks.report_tables import readme_block

ROOT = Path(__file__).parents[2]
# The folders of the tests are no packages.
_SPEC = importlib.util.spec_from_file_location(
    "suite_json", Path(__file__).with_name("suite_json.py")
)
suite_json = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(suite_json)


def built(suite):
    return report_document.build(suite, "make report", "2026-11-22")


def run(tmp_path, suite, *arguments):
    source = tmp_path / "suite.json"
    source.write_text(json.dumps(suite))
    return report.main(["--out", str(tmp_path / "out"), "--json", str(source), *arguments])


def test_every_named_ratio_is_there():
    document = built(suite_json.full())
    ratios = document["ratios"]
    assert list(ratios) == [named.name for named in report_ratios.NAMED]
    expected = {
        "videoar_l_vs_par_4x": 4.5,
        "videoar_l_vs_par_4x_eager": 12.0 / 1.5,
        "videoar_l_vs_par_4x_mixed": 12.0,
        "videoar_l_over_bare": 1 / 0.8,
        "par_4x_over_bare": 2.0,
        "videoar_l_vs_eager": 1.5,
        "videoar_l_clip_vs_eager": 2.0,
        "par_4x_vs_eager": 3.0,
    }
    measured = {name: one["value"] for name, one in ratios.items() if one["value"] is not None}
    assert measured == pytest.approx(expected)
    for name in set(ratios) - set(expected):
        assert ("bare" if "bare" in name else "compiled") in ratios[name]["reason"]


def test_targets_follow_the_device():
    ratios = built(suite_json.full())["ratios"]
    assert ratios["videoar_l_vs_par_4x"]["target"] == 4.2
    assert ratios["videoar_l_vs_par_4x"]["met"] is True
    assert ratios["videoar_l_over_bare"]["met"] is False
    suite = suite_json.full()
    for benchmark in suite["benchmarks"]:
        benchmark["extra_info"]["device"] = "NVIDIA H200"
    ratios = built(suite)["ratios"]
    assert ratios["videoar_l_vs_par_4x"]["target"] == 8.0
    assert ratios["videoar_l_vs_par_4x"]["met"] is False
    assert ratios["videoar_l_over_bare"]["target"] is None
    assert ratios["videoar_l_vs_par_4x_mixed"]["target"] == 40.0


def test_a_ratio_is_the_median_of_the_rounds():
    entry = suite_json.benchmark("videoar-l", "transformer", 4.0, {"eager": 1.5})
    entry["stats"]["data"] = [1.0, 2.0, 4.0]
    entry["extra_info"]["opponents"]["eager"] = {"samples": [2.0, 8.0, 4.0], "ratio": 99.0}
    one = built(suite_json.suite(entry))["ratios"]["videoar_l_vs_eager"]
    assert (one["value"], one["low"], one["high"], one["rounds"]) == (2.0, 1.0, 4.0, 3)
    assert one["paired"] is True


def test_a_machine_that_was_not_quiet_is_named():
    suite = suite_json.full()
    assert "quiet" not in readme_block(built(suite))
    suite["benchmarks"][1]["stats"]["data"] = [1.0, 1.6]
    document = built(suite)
    assert document["disturbed"] == ["bench_clip[videoar-l-videoar]"]
    assert "Not a quiet machine: in 1 of 3 entries" in readme_block(document)
    suite["suite"]["ceilings"] = {"bandwidth": [4e10, 7.71e10], "rate": [8e11, 9e11]}
    pace = "Meanwhile copies ran at 40.0 to 77.1 GB/s, products at 0.800 to 0.900 TFLOP/s."
    assert pace in readme_block(built(suite))


def test_a_ratio_of_two_entries_says_so():
    suite = suite_json.suite(
        suite_json.benchmark("videoar-l", "transformer", 4.0),
        suite_json.benchmark("par-4x", "transformer", 20.0),
    )
    one = built(suite)["ratios"]["videoar_l_vs_par_4x"]
    assert one["value"] == 5.0
    assert one["paired"] is False
    assert one["rounds"] is None


def test_other_batches_do_not_stand_in():
    entry = suite_json.benchmark("videoar-l", "transformer", 4.0, {"eager": 1.5}, batch=8)
    one = built(suite_json.suite(entry))["ratios"]["videoar_l_vs_eager"]
    assert one["value"] is None
    assert "batch 1" in one["reason"]


def test_the_document_names_hardware_but_no_host():
    document = built(suite_json.full())
    assert document["hardware"] == "A, 2 threads"
    assert document["commit"] == "0123456789abcdef+"
    assert document["models"]["par-4x"]["steps"] == 323
    assert document["models"]["videoar-l"]["steps"] == 30
    assert "secret" not in json.dumps(document)


def test_an_entry_without_its_fields_is_refused():
    suite = suite_json.full()
    del suite["benchmarks"][0]["extra_info"]["part"]
    with pytest.raises(ValueError, match=r"bench_transformer\[videoar-l-videoar\].*'part'"):
        built(suite)


def test_files_tables_and_last_line(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert run(tmp_path, suite_json.full()) == 0
    *_, last = capsys.readouterr().out.splitlines()
    out = tmp_path / "out"
    assert json.loads(last) == json.loads((out / "report.json").read_text())
    assert json.loads(last)["command"] == "pytest benchmarks --benchmark-only -q"
    text = (out / "report.md").read_text()
    assert "| VideoAR-L | 926 M | 90.3 | 30 | - | 0.86 (not stated) |" in text
    assert "published; hardware not stated" in text
    # Four decimals of parameters, steps, clip, and twice the limit.
    assert "| videoar-l | 920.6 M | - | 30 | 4.000 | 10.000 | 2.00 | 2.00 | videoar" in text
    assert "| videoar-l | videoar | transformer | 1 | 4 s | 3 | 2 s | 2.00 | par-4x 4.50," in text
    assert "| videoar-4b | clip | 1 | videoar | needs 20 GiB, 9 are free | no |" in text
    for name in ("steps.png", "speedups.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_what_was_asked_for_and_did_not_run_fails(tmp_path, capsys):
    suite = suite_json.full()
    suite["not_run"][0]["requested"] = True
    assert run(tmp_path, suite) == 1
    assert "needs 20 GiB" in capsys.readouterr().err


def test_nothing_to_report(tmp_path, capsys):
    assert run(tmp_path, suite_json.suite()) == 2
    assert "no benchmark ran" in capsys.readouterr().err


def test_a_lone_reason_is_a_report(tmp_path, capsys):
    reason = {"model": "videoar-l", "part": "clip", "reason": "no CUDA device"}
    assert run(tmp_path, suite_json.suite(not_run=[reason])) == 0
    assert "no CUDA device" in capsys.readouterr().out


def test_batches_that_did_not_run_are_one_line(tmp_path, capsys):
    rows = [
        {"model": "videoar-l", "part": "all", "way": "all", "batch": batch}
        | {"reason": f"not selected: --batches {batch}", "requested": False}
        for batch in (8, 64)
    ]
    assert run(tmp_path, suite_json.suite(not_run=rows)) == 0
    line = "| videoar-l | all | 8, 64 | all | not selected: --batches 8 | no |"
    assert line in capsys.readouterr().out


def test_the_readme_block():
    text = readme_block(built(suite_json.full()))
    assert "A, 2 threads, bfloat16, torch 2.13.0, commit 0123456+, 2026-11-22" in text
    assert "| `videoar-l`, transformer | 30 | 4 | 2.00 | 1.25 | - | 1.50x |" in text
    assert "4.50 (4.50 .. 4.50) by `videoar`, 8.00 (8.00 .. 8.00) by `eager`" in text


def test_the_readme_block_by_command(tmp_path, capsys):
    run(tmp_path, suite_json.full())
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    capsys.readouterr()
    assert report.main(["--table", str(tmp_path / "out" / "report.json")]) == 0
    assert capsys.readouterr().out == readme_block(document)


# The comparison.


def changed(part, factor):
    suite = suite_json.full()
    for benchmark in suite["benchmarks"]:
        info, stats = benchmark["extra_info"], benchmark["stats"]
        if (info["model"], info["part"]) == ("videoar-l", part):
            stats["median"] *= factor
            stats["data"] = [factor * x for x in stats["data"]]
    return built(suite)


@pytest.mark.parametrize(
    ("percent", "floor_ms", "verdict"),
    [(10, 0.05, "slower"), (60, 0.05, "same"), (10, 6000, "same")],
)
def test_both_percentage_and_floor_must_be_exceeded(percent, floor_ms, verdict):
    # 10 s become 15 s: 50 % and 5,000 ms more.
    tolerance = report_compare.Tolerance(percent=percent, floor_ms=floor_ms)
    found = report_compare.compare(changed("clip", 1), changed("clip", 1.5), tolerance)
    times = {one.name: one.verdict for one in found if one.unit == "s"}
    (name,) = (name for name in times if "clip" in name)
    assert times.pop(name) == verdict
    assert set(times.values()) == {"same"}


def test_faster_and_slower_ratios():
    old, new = changed("transformer", 1), changed("transformer", 2)
    found = report_compare.compare(old, new, report_compare.Tolerance())
    verdicts = {one.name: one.verdict for one in found if one.unit == "x"}
    # At twice the time the lead over PAR halves, and so it is twice as far above its products.
    assert verdicts["videoar_l_vs_par_4x"] == "slower"
    assert verdicts["videoar_l_over_bare"] == "slower"
    assert verdicts["videoar_l_vs_par_4x_eager"] == "same"
    back = report_compare.compare(new, old, report_compare.Tolerance())
    assert {one.verdict for one in back} == {"same", "faster"}
    assert report_compare.largest_move(found).new == 2 * report_compare.largest_move(found).old


def test_the_comparison_fails_the_command(tmp_path, capsys):
    old = tmp_path / "old.json"
    suite = suite_json.full()
    old.write_text(json.dumps(changed("clip", 0.5)))
    assert run(tmp_path, suite, "--compare", str(old)) == 1
    captured = capsys.readouterr()
    assert "slower: videoar-l videoar clip batch 1" in captured.err
    assert "| +100.0% | slower |" in captured.out
    assert run(tmp_path, suite, "--compare", str(old), "--floor-ms", "1e6") == 1
    # The ratio to the eager clip halved as well.
    assert "slower: videoar_l_clip_vs_eager" in capsys.readouterr().err
    limits = ("--floor-ms", "1e6", "--ratio-floor", "10")
    assert run(tmp_path, suite, "--compare", str(old), *limits) == 0


def test_other_hardware_is_not_compared(tmp_path, capsys):
    """What was measured is written all the same."""
    old = changed("clip", 1) | {"hardware": "B, 2 threads"}
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert run(tmp_path, suite_json.full(), "--compare", str(tmp_path / "old.json")) == 2
    captured = capsys.readouterr()
    assert "B, 2 threads" in captured.err
    assert json.loads(captured.out.splitlines()[-1])["entries"]
    assert "B, 2 threads" in (tmp_path / "out" / "report.md").read_text()


def test_a_ratio_of_another_dtype_is_another_ratio():
    old, new = changed("transformer", 1), changed("transformer", 2)
    for entry in old["entries"]:
        if entry["model"] == "videoar-l":
            entry["dtype"] = "float32"
    found = report_compare.compare(old, new, report_compare.Tolerance())
    verdicts = {one.name: one.verdict for one in found}
    assert verdicts["videoar_l_vs_par_4x"] == verdicts["videoar_l_over_bare"] == "new"
    assert verdicts["par_4x_over_bare"] == "same"


def test_fields_of_another_version_are_left_out(tmp_path):
    old = changed("clip", 1)
    for entry in old["entries"]:
        entry["of_another_version"] = 1
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert run(tmp_path, suite_json.full(), "--compare", str(tmp_path / "old.json")) == 0


def damaged(**changes):
    return json.dumps(changed("clip", 1) | changes)


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", '{"format": 1}', damaged(entries=None), damaged(entries=[{"a": 1}])),
        *(damaged(ratios=[]), damaged(ratios={"videoar_l_vs_eager": {"value": "2"}})),
    ],
)
def test_what_is_no_report_is_refused_before_the_suite_runs(tmp_path, capsys, monkeypatch, text):
    monkeypatch.setattr(report, "suite_of", lambda options: pytest.fail("the suite ran"))
    (tmp_path / "old.json").write_text(text)
    assert run(tmp_path, suite_json.full(), "--compare", str(tmp_path / "old.json")) == 2
    assert f"--compare {tmp_path / 'old.json'}: " in capsys.readouterr().err


def test_what_went_is_listed_and_does_not_fail():
    new = suite_json.full()
    del new["benchmarks"][1]
    found = report_compare.compare(built(suite_json.full()), built(new), report_compare.Tolerance())
    gone = [one.name for one in found if one.verdict == "gone"]
    assert len(gone) == 2
    assert not report_compare.slower(found)


# The suite in a process of its own.

BENCHMARKS = """
    import time

    import pytest

    def bench_short(benchmark):
        benchmark.pedantic(time.sleep, (0.001,), rounds=2)
        benchmark.extra_info |= {"model": "short", "way": "videoar", "part": "clip"}

    def bench_wrong(benchmark):
        benchmark.pedantic(time.sleep, (0.001,), rounds=2)
        benchmark.extra_info |= {"model": "wrong", "way": "videoar", "part": "clip"}
        pytest.fail("asked for, and cannot run")
"""


@pytest.fixture
def suite_folder(tmp_path, monkeypatch):
    """A suite of two benchmarks, one of which fails."""
    pytest.importorskip("pytest_benchmark")
    folder = tmp_path / "suite"
    folder.mkdir()
    (folder / "bench_two.py").write_text(textwrap.dedent(BENCHMARKS))
    monkeypatch.setattr(report, "FOLDER", folder)


@pytest.mark.usefixtures("suite_folder")
def test_the_suite_runs(tmp_path):
    assert report.main(["--out", str(tmp_path), "--", "-k", "short"]) == 0
    document = json.loads((tmp_path / "report.json").read_text())
    assert [entry["model"] for entry in document["entries"]] == ["short"]
    assert document["entries"][0]["seconds"] >= 0.001
    assert document["command"].endswith("-- -k short")


@pytest.mark.usefixtures("suite_folder")
def test_a_failure_in_the_suite_fails_the_report(tmp_path):
    assert report.main(["--out", str(tmp_path)]) == 1
    document = json.loads((tmp_path / "report.json").read_text())
    assert "short" in [entry["model"] for entry in document["entries"]]


@pytest.mark.usefixtures("suite_folder")
def test_a_suite_that_cannot_start(tmp_path, capsys):
    assert report.main(["--out", str(tmp_path), "--", "--no-such-option"]) == 2
    assert "status is 4" in capsys.readouterr().err


def gpu_suite():
    """What `make gpu-check` gives to the suite, on a CPU."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", "")
    (words,) = re.findall(r"^GPU_SUITE := (.*)$", text, re.MULTILINE)
    assert "--suite-device cuda" in words
    return words.replace("--suite-device cuda", "--suite-device cpu").split()


def test_without_the_packages_that_a_gpu_machine_lacks(tmp_path):
    """Where `make gpu-check` runs these are missing; the plots say so, and the suite collects."""
    pytest.importorskip("pytest_benchmark")
    (tmp_path / "suite.json").write_text(json.dumps(suite_json.full()))
    script = f"""
        import sys
        for name in ("av", "tokenizers", "mlxtend", "matplotlib"):
            sys.modules[name] = None
        import pytest
        from videoar.benchmarks import report, simulate, tune
        folder = {str(tmp_path)!r}
        status = pytest.main(["benchmarks", "--collect-only", "-q", *{gpu_suite()!r}])
        simulate.parse([]), tune.parse([])
        sys.exit(status or report.main(["--out", folder, "--json", folder + "/suite.json"]))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "bench_generate[par-4x-batch1-eager-transformer]" in process.stdout
    assert "plots need matplotlib" in process.stderr
    assert "plots need matplotlib" in (tmp_path / "report.md").read_text()
    assert json.loads(process.stdout.splitlines()[-1])["plots"] == []
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("option", ["--json", "--table"])
@pytest.mark.parametrize("text", ["{}", "[]", '"a"', '{"benchmarks": [{}]}', '{"entries": [1]}'])
def test_files_of_another_kind_are_refused(tmp_path, capsys, option, text):
    (tmp_path / "other.json").write_text(text)
    words = [option, str(tmp_path / "other.json"), "--out", str(tmp_path / "out")]
    assert report.main(words) == 2
    assert f"{option} {tmp_path / 'other.json'}: not the " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--percent", "nan"], "--percent: expected 0 or more, got nan"),
        (["--floor-ms", "-1"], "--floor-ms: expected 0 or more, got -1.0"),
        (["--", "--benchmark-json=other.json"], "the suite's JSON is suite.json in the folder"),
    ],
)
def test_bad_arguments(capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        report.main(["--out", "out", *words])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err

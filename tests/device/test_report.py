"""The report's runner, with parts that end in every way."""

import json
import os
import time

import pytest

from tests.device import machine, report
from tests.device.parts import Part
from tests.device.running import Outcome, read_rows
from tests.device.traces import sum_kernels

FIRST = Part("first", "tests.device.fake_parts:good", 20)


def part(name: str, limit: int = 20) -> Part:
    return Part(name, f"tests.device.fake_parts:{name}", limit)


def run(folder, *arguments: str, parts=()) -> tuple[int, dict]:
    code = report.main(["--output", str(folder), *arguments], parts, FIRST)
    return code, json.loads((folder / "report.json").read_text())


def test_each_part_costs_only_itself(tmp_path, capsys, monkeypatch):
    written = []
    write = report.write
    monkeypatch.setattr(report, "write", lambda path, content: (write(path, content), written.append(path.read_text())))
    parts = [part("raises"), part("slow", 2), part("killed"), part("garbage"), part("good")]
    # So little time that the slow part may have no more than its own limit.
    code, found = run(tmp_path, "--small", "--limit", "40", parts=parts)
    assert code == 1
    rows = found["parts"]
    statuses = {name: row["status"] for name, row in rows.items()}
    assert statuses == {
        "first": "done",
        "raises": "failed",
        "slow": "over its limit",
        "killed": "killed",
        "garbage": "failed",
        "good": "done",
    }
    # The file was complete after every part.
    assert [len(json.loads(text)["parts"]) for text in written] == [1, 2, 3, 4, 5, 6]
    assert rows["good"]["rows"] == [{"value": 1.5, "small": True}, {"value": "nan", "small": True}]
    # Figures from before the end are kept.
    assert rows["raises"]["rows"] == [{"value": 2}] and "the kernel is wrong" in rows["raises"]["message"]
    assert rows["killed"]["rows"] == [{"value": 3}] and "SIGKILL" in rows["killed"]["message"]
    assert "not JSON serializable" in rows["garbage"]["message"]
    (slow,) = rows["slow"]["rows"]
    with pytest.raises(ProcessLookupError):
        _wait_until_gone(slow["pid"])
    out = capsys.readouterr().out
    assert "To run the others: the same command with --rest" in out


def _wait_until_gone(pid: int) -> None:
    for _ in range(100):
        os.kill(pid, 0)
        time.sleep(0.05)


def test_all_done_is_zero_and_a_subset_runs(tmp_path):
    code, found = run(tmp_path, "--small", "--parts", "good", parts=[part("raises"), part("good")])
    assert code == 0 and list(found["parts"]) == ["first", "good"]


def test_parts_beyond_the_total_limit_are_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "LEAST", 1000)
    code, found = run(tmp_path, "--small", "--limit", "30", parts=[part("good")])
    good = found["parts"]["good"]
    assert code == 1 and good["status"] == "not run" and "were left of 30 s" in good["message"]


def test_a_part_stops_in_time_and_keeps_its_rows(tmp_path):
    _, found = run(tmp_path, "--small", "--limit", "30", parts=[part("long", 7), part("good", 25)])
    long = found["parts"]["long"]
    assert long["status"] == "partly done" and long["seconds"] < 7
    assert [row["value"] for row in long["rows"]] == list(range(len(long["rows"]))) and long["rows"]


def test_rest_runs_what_the_report_lacks(tmp_path, capsys):
    parts = [part("good"), part("second_time"), part("raises")]
    code, before = run(tmp_path, "--small", "--parts", "good,second_time", parts=parts)
    assert code == 1 and before["parts"]["second_time"]["status"] == "failed"
    capsys.readouterr()
    code, found = run(tmp_path, "--small", "--rest", parts=parts)
    # A part that failed comes after those that were not run.
    assert [
        line.split(":")[0] for line in capsys.readouterr().out.splitlines() if ": " in line and " s of " in line
    ] == [
        "first",
        "raises",
        "second_time",
    ]
    assert code == 1 and len(found["runs"]) == 2
    assert {name: (row["status"], row["run"]) for name, row in found["parts"].items()} == {
        "first": ("done", 1),
        "good": ("done", 0),
        "second_time": ("done", 1),
        "raises": ("failed", 1),
    }
    assert found["parts"]["good"] == before["parts"]["good"]


def test_an_outcome_with_fewer_figures_does_not_replace_another():
    found = report.Report(small=True, runs=[{}])
    found.add(Outcome("a", "partly done", 9.0, 9.0, [{"value": 1}, {"value": 2}], ""))
    found.add(Outcome("a", "not run", 0.0, 0.0, [], "no time"))
    assert found.parts["a"]["status"] == "partly done" and found.lacking(["a"]) == ["a"]
    # Only a part that was killed at its limit has more time when it runs again.
    assert found.with_more_time(part("a", 7)).limit == 7
    found.add(Outcome("a", "over its limit", 9.0, 9.0, [{"value": 1}, {"value": 2}], ""))
    assert found.with_more_time(part("a", 7)).limit == 14
    found.add(Outcome("a", "done", 9.0, 9.0, [{"value": 1}], ""))
    assert found.parts["a"]["rows"] == [{"value": 1}] and not found.lacking(["a"])


def test_rest_needs_a_report_of_the_same_sizes(tmp_path, capsys):
    arguments = ["--output", str(tmp_path), "--rest"]
    with pytest.raises(SystemExit) as end:
        report.main(arguments, [part("good")], FIRST)
    assert end.value.code == 2 and "has no report" in capsys.readouterr().err
    report.write(tmp_path / "report.json", {"small": True, "runs": [], "parts": {}})
    with pytest.raises(SystemExit) as end:
        report.main(arguments, [part("good")], FIRST)
    assert end.value.code == 2 and "was made with --small" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--parts", "fast"], "there is no part 'fast'; choose from good"),
        (["--limit", "0"], "--limit is 0"),
        (["--golden", "/nowhere"], "--golden: there is no folder /nowhere"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        report.main(arguments, [part("good")], FIRST)
    assert end.value.code == 2 and sentence in capsys.readouterr().err


def test_a_half_written_row_is_damage(tmp_path):
    (tmp_path / "rows").write_text('{"a": 1}\n{"a": ')
    assert read_rows(tmp_path / "rows") == ([{"a": 1}], "row 2 is damaged: '{\"a\": '")


def test_missing_packages_are_named_as_pip_reads_them(tmp_path):
    (tmp_path / "setup.cfg").write_text(
        "[options]\ninstall_requires =\n    numpy>=2.0\n    no-such-a>=1\n"
        "[options.extras_require]\nconvert =\n    no-such-b\ntrain =\n    # a comment\n    jax\n"
        "    no-such-c>=2; python_version > '3'\ntest =\n    no-such-d\n"
    )
    assert machine.missing_packages(tmp_path / "setup.cfg") == ["no-such-a>=1", "no-such-c>=2"]


def test_kernels_are_summed_over_the_streams_of_the_device():
    """Two kernels on a GPU's stream; the host's events and the lines of XLA's modules do not count."""
    names = [("process_name", 1, 0, "/device:GPU:0"), ("process_name", 2, 0, "/host:CPU")]
    names += [
        ("thread_name", 1, 1, "Stream #7(Compute)"),
        ("thread_name", 1, 2, "XLA Modules"),
        ("thread_name", 2, 1, "python"),
    ]
    events = [
        {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}} for kind, pid, tid, name in names
    ]
    for name, pid, tid, micros in (
        ("gemm", 1, 1, 30),
        ("conv", 1, 1, 50),
        ("gemm", 1, 1, 40),
        ("jit", 1, 2, 999),
        ("x", 2, 1, 999),
    ):
        events.append({"ph": "X", "name": name, "pid": pid, "tid": tid, "dur": micros, "args": {"hlo_op": f"{name}.1"}})
    found = [(entry.name, entry.source, round(entry.seconds * 1e6), entry.calls) for entry in sum_kernels(events)]
    assert found == [("gemm", "gemm.1", 70, 2), ("conv", "conv.1", 50, 1)]


@pytest.mark.parametrize("content", ["[]", "{}", '{"small": true, "runs": [], "parts": {"train": 1}}', "not json"])
def test_a_file_that_is_no_report_is_kept(tmp_path, capsys, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(SystemExit) as stop:
        report.main(["--small", "--output", str(tmp_path)], parts=[part("good")], first=part("good"))
    assert stop.value.code == 2
    assert "is not a report of this command; remove it, or give another folder" in capsys.readouterr().err
    assert (tmp_path / "report.json").read_text() == content


@pytest.mark.parametrize("limit", ["0", "-1", "inf", "nan"])
def test_a_limit_is_a_number_of_seconds(tmp_path, capsys, limit):
    with pytest.raises(SystemExit) as stop:
        report.main(["--small", f"--limit={limit}", "--output", str(tmp_path)], parts=[part("good")])
    assert stop.value.code == 2
    assert "it is a number of seconds above 0" in capsys.readouterr().err

"""Progress of long work in a log file: whole lines, at every tenth and once a minute."""

import io
import re
import time

import pytest

from fcclip_jax import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shares(text: str) -> list[int]:
    assert "\r" not in text
    return [int(re.match(r"\w+: (\d+) %, ", line)[1]) for line in text.splitlines()]


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Lines begin with the work."""
    monkeypatch.setattr(progress, "BRIEF", 0.0)


@pytest.mark.parametrize("total, expected", [(3, [33, 66, 100]), (10, [*range(10, 101, 10)]), (200, [*range(10, 101, 10)]),
                                             (0, [])])  # fmt: skip
def test_a_line_at_every_tenth(capsys, total, expected):
    assert list(progress.track(range(total), "segmenting", total=total)) == list(range(total))
    output = capsys.readouterr()
    assert output.out == "" and shares(output.err) == expected


def test_a_line_names_the_counts_the_time_and_the_rest(capsys):
    with progress.track(desc="training", total=20, initial=10, unit="step") as bar:
        bar.set_postfix_str("loss 3.20")
        bar.update()
        bar.update()
        bar.update(8)
    assert capsys.readouterr().err.splitlines() == [
        "training: 60 %, 12 of 20 steps, 0:00:00, loss 3.20",
        "training: 100 %, 20 of 20 steps, 0:00:00, loss 3.20",
    ]


def test_a_line_while_nothing_is_finished(capsys, monkeypatch):
    monkeypatch.setattr(progress, "MINUTE", 0.2)
    with progress.track(desc="segmenting", total=5):
        deadline, text = time.monotonic() + 30, ""
        while text.count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
            text += capsys.readouterr().err
    assert shares(text)[:2] == [0, 0]
    time.sleep(0.5)
    capsys.readouterr()
    time.sleep(0.5)
    assert capsys.readouterr().err == ""  # it has ended with the work


def test_an_error_in_the_work_ends_the_lines():
    lines = progress.track((1 // 0 for _ in range(3)), "segmenting", total=3)
    with pytest.raises(ZeroDivisionError):
        list(lines)
    lines._clock.join(timeout=30)
    assert not lines._clock.is_alive()


def test_a_part_of_a_larger_work_is_silent_at_first(capsys, monkeypatch):
    list(progress.track(range(10), "embedding", total=10, leave=False))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "BRIEF_PART", 0.0)
    list(progress.track(range(10), "embedding", total=10, leave=False))
    assert shares(capsys.readouterr().err)[-1] == 100


def test_work_that_is_soon_over_is_silent(capsys, monkeypatch):
    monkeypatch.setattr(progress, "BRIEF", 60.0)
    list(progress.track(range(10), "converting", total=10))
    assert capsys.readouterr().err == ""


def test_other_processes_report_nothing(capsys):
    list(progress.track(range(10), "training", total=10, disable=True))
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    list(progress.track(range(10), "segmenting", total=10))
    assert "10/10" in terminal.getvalue() and "\r" in terminal.getvalue()

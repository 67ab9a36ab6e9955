"""The log of an evaluation on a full disk."""

import resource

import pytest

from fcclip_jax.evaluation.log import EvaluationLog


@pytest.fixture
def small_files():
    """Limits files to 8,192 bytes: a write fails midway, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_was_written_before_the_disk_was_full_counts(small_files, tmp_path):
    lines = [{"index": index, "semantic": [[0, 1, 2]] * 300} for index in range(4)]  # 3 KB each
    full = pytest.raises(OSError, match=r"cannot write .*jsonl: .*; repeat the command to resume")
    with full, EvaluationLog(tmp_path, {"set": 1}).writer() as write:
        for line in lines:
            write(line)
    again = EvaluationLog(tmp_path, {"set": 1})
    assert again.read() == {0: lines[0], 1: lines[1]}
    with again.writer() as write:
        write(lines[2])
    assert list(again.read()) == [0, 1, 2]

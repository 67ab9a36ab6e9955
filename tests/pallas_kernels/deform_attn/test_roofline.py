"""The counted costs: those of the README, and one by hand."""

import pathlib

from pallas_kernels.deform_attn import roofline
from pallas_kernels.deform_attn.problems import Problem

README = pathlib.Path(roofline.__file__).parent / "README.md"


def test_the_readme_has_these_tables(capsys):
    assert roofline.main([]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(rows) == 25
    assert set(rows) <= set(README.read_text("utf-8").splitlines())


def test_visited_rows_by_hand():
    """One level of 8 x 4 pixels is one block of queries, which touches all rows: one band of 8 for 32 channels."""
    visited, rows = roofline.visited_rows(Problem(((8, 4),), heads=2), sigma=0.0)
    assert visited.tolist() == rows.tolist() == [2 * 8]

"""The page of the miniature world's tables, from reports of two seeds."""

import json

import pytest

from fcclip_jax.evaluation import miniature
from fcclip_jax.evaluation.paper_tables import sweep_of


def sweep_rows(name: str, first: float) -> list[dict]:
    """Returns a sweep's rows with other scores in each: PQ rises by 1 a row, and is 10 more or less for seen and unseen words."""
    sweep = sweep_of(name, "world", second_clip=True)
    return [
        {
            **dict(zip(sweep.columns, row.cells, strict=True)),
            "pq": first + place,
            "pq_seen": first + place + 10,
            "pq_unseen": first + place - 10,
        }
        for place, row in enumerate(sweep.rows)
    ]


@pytest.fixture
def runs(tmp_path):
    for seed, first in enumerate((20.0, 23.0)):
        names = [f"{score}{group}" for score in ("pq", "ap", "miou") for group in ("", "_seen", "_unseen")]
        scores = {name: first + place for place, name in enumerate(names)} | {"ap_unseen": None}
        reports = {"scores": {"scores": scores}}
        if seed == 0:
            reports["grounding"] = {"scores": {"pq": 50.0, "miou": 60.0}}
        reports |= {name: {"sweep": sweep_rows(name, first)} for name in ("classifiers", "ensemble", "resolution")}
        reports["kept_back"] = {"scores": {name: value - 10 for name, value in scores.items() if value is not None}}
        reports["ensemble_kept_back"] = {"sweep": sweep_rows("ensemble", first - 10)}
        for name, report in reports.items():
            folder = tmp_path / str(seed) / "eval" / name
            folder.mkdir(parents=True)
            (folder / "report.json").write_text(json.dumps(report))
        speed = json.dumps({"images_per_second": 5.0 + seed})
        (tmp_path / str(seed) / "eval" / "scores" / "speed.json").write_text(speed)
    return [tmp_path / "0", tmp_path / "1"]


def rows(text: str) -> list[list[str]]:
    """Returns the cells of each row of all tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_means_and_spread_of_each_table(runs, tmp_path, capsys):
    output = tmp_path / "page.md"
    arguments = ["--runs", *map(str, runs), "--commit", "abc1234", "--output", str(output)]
    assert miniature.main(arguments) == 0
    text = output.read_text()
    assert "Measured on commit abc1234: 2 seeds." in text
    found = rows(text)
    # The sample standard deviation of two values that differ by 3 is 3 / sqrt(2).
    assert ["PQ", "21.5 ± 2.1", "22.5 ± 2.1", "23.5 ± 2.1", "26.8"] in found
    assert ["AP", "24.5 ± 2.1", "25.5 ± 2.1", "-", "16.8"] in found
    assert ["PQ", "11.5 ± 2.1", "12.5 ± 2.1", "13.5 ± 2.1", "26.8"] in found
    assert ["0.0", "0.0", "geometric", "12.5 ± 2.1", "22.5 ± 2.1", "2.5 ± 2.1", "17.8"] in found
    assert ["FC-CLIP", "5.5 ± 0.7"] in found
    trained = ["trained", "trained", "frozen", "24.5 ± 2.1", "34.5 ± 2.1", "14.5 ± 2.1", "25.4", "40.0", "14.6"]
    assert trained in found
    assert ["frozen"] * 3 + ["21.5 ± 2.1", "22.5 ± 2.1", "23.5 ± 2.1", "26.8", "39.5", "17.3"] in found
    assert ["PQ", "21.5 ± 2.1", "50.0", "26.8", "38.4"] in found  # one seed has no spread
    assert ["0.0", "0.0", "geometric", "22.5 ± 2.1", "32.5 ± 2.1", "12.5 ± 2.1", "17.8"] in found
    assert ["ConvNeXt", "512", "26.5 ± 2.1", "36.5 ± 2.1", "16.5 ± 2.1"] in found
    assert ["ViT", "128", "27.5 ± 2.1", "37.5 ± 2.1", "17.5 ± 2.1"] in found


def test_without_runs_there_are_no_numbers():
    text = miniature.page((), "unknown")
    assert "Not measured yet." in text and "±" not in text
    assert ["trained", "-", "frozen", "-", "-", "-", "21.1", "32.4", "12.6"] in rows(text)


def test_a_wrong_folder(tmp_path, capsys):
    assert miniature.main(["--runs", str(tmp_path), "--output", str(tmp_path / "page.md")]) == 2
    assert "has no folder eval; give folders that launch/world_paper.sh wrote" in capsys.readouterr().err

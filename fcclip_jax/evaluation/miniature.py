"""The paper's tables on the miniature world, as one page: means over runs, with their standard deviations.

    launch/world_paper.sh runs/paper 0 1 2
    python -m fcclip_jax.evaluation.miniature --runs runs/paper/0 runs/paper/1 runs/paper/2 --output MINIATURE.md

A run is a folder of launch/world_paper.sh, with the evaluations of models that were trained from one seed. A table of which no
run has an evaluation has no numbers.
"""

import functools
import json
import pathlib
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fcclip_jax import command_line, files
from fcclip_jax.evaluation.paper_tables import PAPER, SCORES, SWEEPS, sweep_of
from fcclip_jax.evaluation.report import NAMES, markdown
from fcclip_jax.world.panoptic import WORLD

GROUPS = {"": "all", "_seen": "seen", "_unseen": "unseen"}
ABSENT = "-"
FROZEN = ("26.8", "39.5", "17.3")
"""The last row of the paper's table 6, which no sweep has."""

Report = Mapping[str, Any]
Row = tuple[str, ...]


def cell(values: Iterable[float | None], digits: int = 1) -> str:
    """Returns the mean of the values, with their standard deviation if there are several. None, not measured, is left out."""
    present = [value for value in values if value is not None]
    if not present:
        return ABSENT
    mean = f"{statistics.fmean(present):.{digits}f}"
    return mean if len(present) == 1 else f"{mean} ± {statistics.stdev(present):.{digits}f}"


def read(runs: Sequence[pathlib.Path], name: str, file: str = "report.json") -> list[Report]:
    """Returns one file of an evaluation from each run that has it.

    Raises:
        ValueError: a file is not JSON.
    """
    found = []
    for path in (run / "eval" / name / file for run in runs):
        if path.exists():
            try:
                found.append(json.loads(path.read_text("utf-8")))
            except ValueError as error:
                raise ValueError(f"{path} is not JSON: {error}; remove it and evaluate again") from None
    return found


def scores(reports: Sequence[Report], name: str) -> str:
    """Returns the cell of a plain evaluation's score."""
    return cell(report["scores"].get(name) for report in reports)


def sweep_scores(reports: Sequence[Report], cells: Mapping[str, Any]) -> Row:
    """Returns a row of cells for SCORES, of the sweep's row that has these values in its columns."""
    rows = [row for report in reports for row in report["sweep"] if all(row[name] == x for name, x in cells.items())]
    return tuple(cell(row[name] for row in rows) for name in SCORES)


def table_1(runs: Sequence[pathlib.Path], evaluation: str = "scores") -> list[Row]:
    """Open-vocabulary panoptic, instance and semantic segmentation."""
    reports, paper = read(runs, evaluation), PAPER.scores["ade20k"]
    rows: list[Row] = [("", *GROUPS.values(), "paper, ADE20K, all")]
    for name in ("pq", "ap", "miou"):
        rows.append((NAMES[name], *(scores(reports, name + suffix) for suffix in GROUPS), f"{paper[name]:.1f}"))
    return rows


def table_4(runs: Sequence[pathlib.Path]) -> list[Row]:
    """Speed: images a second, all tasks and all scores included."""
    reports = read(runs, "scores", "speed.json")
    return [("", "images/s"), ("FC-CLIP", cell(report["images_per_second"] for report in reports))]


def table_6(runs: Sequence[pathlib.Path]) -> list[Row]:
    """A frozen or a trained CLIP."""
    head = (
        "generator",
        "in-vocabulary",
        "out-of-vocabulary",
        "PQ",
        "seen",
        "unseen",
        "paper, ADE20K: PQ",
        "seen",
        "unseen",
    )
    rows: list[Row] = [head]
    reports = read(runs, "classifiers")
    names = {"-": "-", "own": "trained", "second": "frozen"}
    for row in SWEEPS["classifiers"].rows:
        own, other = row.cells
        cells = dict(zip(SWEEPS["classifiers"].columns, row.cells, strict=True))
        paper = (f"{value:.1f}" for value in row.reported["ade20k"])
        rows.append(("trained", names[str(own)], names[str(other)], *sweep_scores(reports, cells), *paper))
    frozen = read(runs, "scores")
    rows.append(("frozen", "frozen", "frozen", *(scores(frozen, name) for name in SCORES), *FROZEN))
    return rows


def table_7(runs: Sequence[pathlib.Path]) -> list[Row]:
    """Grounding: only the words of an image's annotation are offered."""
    plain, grounded, paper = read(runs, "scores"), read(runs, "grounding"), PAPER.scores["ade20k"]
    rows: list[Row] = [("", "all words", "grounding", "paper, ADE20K: all words", "grounding")]
    for name in ("pq", "miou"):
        reported = (f"{paper[key]:.1f}" for key in (name, f"{name}_grounding"))
        rows.append((NAMES[name], scores(plain, name), scores(grounded, name), *reported))
    return rows


def table_8(runs: Sequence[pathlib.Path], evaluation: str = "ensemble") -> list[Row]:
    """Ensembles of the two classifiers."""
    sweep, reports = SWEEPS["ensemble"], read(runs, evaluation)
    rows: list[Row] = [(*sweep.columns, "PQ", "seen", "unseen", "paper, ADE20K: PQ")]
    for row in sweep.rows:
        cells = dict(zip(sweep.columns, row.cells, strict=True))
        rows.append((*map(str, row.cells), *sweep_scores(reports, cells), f"{row.reported['ade20k'][0]:.1f}"))
    return rows


def table_9(runs: Sequence[pathlib.Path]) -> list[Row]:
    """Sizes of the image on which CLIP classifies."""
    reports = read(runs, "resolution")
    rows: list[Row] = [("CLIP", "short side", "PQ", "seen", "unseen")]
    names = {"own": "ConvNeXt", "second": "ViT"}
    sweep = sweep_of("resolution", WORLD, second_clip=True)
    for row in sweep.rows:
        clip, side = row.cells
        cells = dict(zip(sweep.columns, row.cells, strict=True))
        rows.append((names[str(clip)], str(side), *sweep_scores(reports, cells)))
    return rows


class Table(NamedTuple):
    """A table of the page."""

    title: str
    make: Callable[[Sequence[pathlib.Path]], list[Row]]
    """Returns the rows, the head first."""
    words: int
    """The number of columns that are text."""


KEPT_BACK = "in a design of emoji that no training shows"
TABLES = (
    Table("Table 1. The model's scores", table_1, 1),
    Table(f"Table 1, {KEPT_BACK}", functools.partial(table_1, evaluation="kept_back"), 1),
    Table("Table 4. Speed, with all tasks and all scores", table_4, 1),
    Table("Table 6. A frozen or a trained CLIP", table_6, 3),
    Table("Table 7. Grounding", table_7, 1),
    Table("Table 8. Ensembles of the two classifiers", table_8, 3),
    Table(f"Table 8, {KEPT_BACK}", functools.partial(table_8, evaluation="ensemble_kept_back"), 3),
    Table("Table 9. Sizes of the image on which CLIP classifies", table_9, 2),
)


def page(runs: Sequence[pathlib.Path], commit: str, note: str = "") -> str:
    """Returns the page; its introduction ends with the note."""
    measured = f"Measured on commit {commit}: {len(runs)} seeds." if runs else "Not measured yet."
    about = (
        "FC-CLIP's experiments, repeated on the miniature world: 1,000 test scenes, all words offered, a fifth of the things and"
        " two of the eight backgrounds without masks in training. Scores are in percent: means over seeds, with their sample"
        " standard deviation; without one, of a single seed. The paper's figures for ADE20K show the direction of an effect, not its size."
    )
    tables = (markdown(table.title, table.make(runs), words=table.words) for table in TABLES)
    how = f"{measured} `launch/world_paper.sh` trains and evaluates everything, and writes this page."
    return "\n".join(("# The paper in miniature\n", f"{about}\n", f"{how} {note}".strip() + "\n", *tables))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = command_line.ArgumentParser(
        prog="python -m fcclip_jax.evaluation.miniature", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--runs", nargs="*", type=pathlib.Path, default=[], metavar="DIR", help="one folder for each seed"
    )
    parser.add_argument("--commit", default="unknown", help="the commit that was measured")
    parser.add_argument(
        "--note", default="", metavar="TEXT", help="what else the reader must know, such as how the runs differ"
    )
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="FILE", help="the page to write")
    args = parser.parse_args(argv)
    return command_line.run(
        lambda: _run(args.runs, args.commit, args.note, args.output), memory_advice="close other programs"
    )


def _run(runs: Sequence[pathlib.Path], commit: str, note: str, output: pathlib.Path) -> int:
    for run in runs:
        if not (run / "eval").is_dir():
            raise ValueError(f"{run} has no folder eval; give folders that launch/world_paper.sh wrote")
    files.write_files({output: page(runs, commit, note).encode()})
    print(f"wrote {output}")
    return command_line.DONE


if __name__ == "__main__":
    sys.exit(main())

"""Compares the panoptic quality of perturbed annotations with an independent implementation, hotcoco's.

    python -m tests.metrics.perturbed IMAGES JSON PNGS [--times 20]

Makes 20 predictions from each annotation of a dataset in COCO's panoptic format. Segments are merged, split, shifted, grown,
left out, given another class, or invented, also over void and crowds; and segments of the annotation become crowds.
"""

import argparse
import json
import pathlib
import sys
import tempfile
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from fcclip_jax.data.folder import FolderDataset
from fcclip_jax.evaluation.ground_truth import PanopticSource
from fcclip_jax.metrics.panoptic import PanopticCounts, Truth, average, count, quality
from tests.data.tiny import ids_to_png


class Case(NamedTuple):
    """An annotation and a prediction."""

    truth: Truth
    id_map: np.ndarray
    """0 for void, s + 1 for segment s."""
    classes: np.ndarray


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.metrics.perturbed", description=__doc__.splitlines()[0])
    for name in ("images", "json", "pngs"):
        parser.add_argument(name)
    parser.add_argument("--times", type=int, default=20)
    options = parser.parse_args(argv)
    dataset = FolderDataset(options.images, options.json, options.pngs)
    things = np.asarray(dataset.vocabulary.thing_mask)
    rng = np.random.default_rng(0)
    cases = []
    for index in range(len(dataset)):
        truth = PanopticSource(dataset, index).read(dataset.vocabulary)
        cases += [perturb(rng, truth, things) for _ in range(options.times)]
    mine, theirs = ours(cases, things), independent(cases, things)
    difference = max(abs(mine[key] - theirs[key]) for key in mine)
    print(f"{len(cases)} predictions: PQ {100 * mine['pq', 'All']:.4f}, {len(mine)} figures, farthest {difference:.1e}")
    return 0 if difference <= 1e-9 else 1


def perturb(rng: np.random.Generator, truth: Truth, things: np.ndarray) -> Case:
    """Makes a prediction from an annotation, and changes both."""
    height, width = truth.id_map.shape
    ids = truth.ids[np.isin(truth.ids, truth.id_map)]
    crowds = truth.crowds.copy()
    thing_rows = np.flatnonzero(things[truth.classes])
    if len(thing_rows) and rng.random() < 0.5:
        crowds[rng.choice(thing_rows)] = True
    found, classes = np.zeros((height, width), np.int64), []
    class_of = dict(zip(truth.ids.tolist(), truth.classes.tolist(), strict=True))
    kept = [id for id in ids.tolist() if rng.random() > 0.1]
    while kept:
        id = kept.pop()
        mask, what = truth.id_map == id, rng.choice(["same", "merge", "split", "shift", "grow", "class"])
        label = class_of[id]
        if what == "merge" and kept:
            mask |= truth.id_map == kept.pop()
        elif what == "split":
            columns = np.flatnonzero(mask.any(axis=0))
            half = mask.copy()
            half[:, : columns[0] + int(len(columns) * rng.uniform(0.2, 0.8))] = False
            classes.append(label)
            found[half] = len(classes)
            mask &= ~half
        elif what == "shift":
            mask = np.roll(mask, rng.integers(-15, 16, 2), (0, 1))
        elif what == "grow":
            mask = ndimage.binary_dilation(mask, iterations=int(rng.integers(1, 12)))
        elif what == "class":
            label = int(rng.integers(len(things)))
        classes.append(label)
        found[mask] = len(classes)
    for _ in range(2):  # segments without an annotation
        y, x, h, w = (int(rng.integers(side)) for side in (height, width, height // 3 + 1, width // 3 + 1))
        classes.append(int(rng.integers(len(things))))
        found[y : y + h + 1, x : x + w + 1] = len(classes)
    found[rng.random((height, width)) < 0.02] = 0
    id_map = truth.id_map.copy()
    if rng.random() < 0.5:
        y = int(rng.integers(height))
        id_map[y : y + height // 5 + 1] = 0
    # The json's areas stay, as panopticapi uses them: they are right except for segments that the stripe of void cuts.
    return Case(truth._replace(id_map=id_map, crowds=crowds), found, np.asarray(classes, np.int64))


def ours(cases: list[Case], things: np.ndarray) -> dict[tuple[str, str], float]:
    """Computes the scores by group and by class, as `independent` returns them."""
    total = PanopticCounts.zeros(len(things))
    for case in cases:
        total = total.plus(count(case.truth, case.id_map, case.classes, len(things)))
    figures = {}
    for name, members in (("All", things | True), ("Things", things), ("Stuff", ~things)):
        found = average(total, members)
        figures |= {("pq", name): found.pq, ("sq", name): found.sq, ("rq", name): found.rq, ("n", name): found.classes}
    # hotcoco returns -1 for a class that does not occur.
    for index, row in enumerate(np.nan_to_num(quality(total), nan=-1).tolist()):
        figures |= {(key, str(index)): value for key, value in zip(("pq", "sq", "rq"), row, strict=True)}
    return figures


def independent(cases: list[Case], things: np.ndarray) -> dict[tuple[str, str], float]:
    """Computes the scores with hotcoco, from files."""
    from hotcoco.panoptic import PanopticEval

    categories = [{"id": i + 1, "name": f"c{i}", "isthing": int(thing)} for i, thing in enumerate(things)]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        contents = {which: {"images": [], "annotations": [], "categories": categories} for which in ("truth", "found")}
        for which in contents:
            (folder / which).mkdir()
        for index, case in enumerate(cases):
            height, width = case.id_map.shape
            areas = case.truth.areas
            listed = {
                "truth": [
                    {"id": int(id), "category_id": int(label) + 1, "iscrowd": int(crowd), "area": int(area)}
                    for id, label, crowd, area in zip(
                        case.truth.ids,
                        case.truth.classes,
                        case.truth.crowds,
                        [int((case.truth.id_map == id).sum()) for id in case.truth.ids] if areas is None else areas,
                        strict=True,
                    )
                ],
                "found": [
                    {
                        "id": place,
                        "category_id": int(label) + 1,
                        "iscrowd": 0,
                        "area": int((case.id_map == place).sum()),
                    }
                    for place, label in enumerate(case.classes, start=1)
                    if (case.id_map == place).any()
                ],
            }
            for which, id_map in (("truth", case.truth.id_map), ("found", case.id_map)):
                file = f"{index:06}.png"
                (folder / which / file).write_bytes(ids_to_png(id_map))
                head = {"id": index, "file_name": f"{index:06}.jpg", "height": height, "width": width}
                contents[which]["images"].append(head)
                contents[which]["annotations"].append(
                    {"image_id": index, "file_name": file, "segments_info": listed[which]}
                )
        for which, content in contents.items():
            (folder / f"{which}.json").write_text(json.dumps(content))
        evaluation = PanopticEval(str(folder / "truth.json"), str(folder / "found.json"))
        evaluation.evaluate()
        results = evaluation.results()
    figures = {
        (key, name): results[name][key] for name in ("All", "Things", "Stuff") for key in ("pq", "sq", "rq", "n")
    }
    for id, row in results["per_class"].items():
        figures |= {(key, str(int(id) - 1)): row[key] for key in ("pq", "sq", "rq")}
    return figures


if __name__ == "__main__":
    sys.exit(main())

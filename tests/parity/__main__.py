"""The command line: `python -m tests.parity DIR [--tolerance 1e-4] [--precision bfloat16]`."""

import argparse
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import jax

from fcclip_jax import command_line
from fcclip_jax.conventions import PRECISIONS
from tests.parity import precision
from tests.parity.evaluation import compare_pair
from tests.parity.extras import compare_extra
from tests.parity.network import Network
from tests.parity.ovrcoat import compare_ovrcoat
from tests.parity.pairs import OVRCOAT, BadFiles, Pair, find_pairs
from tests.parity.section import Section
from tests.parity.training import compare_training

STAGES = {
    "text": r"te[sx]t_|train_|void_|num_|category_",
    "input": "input_",
    "trunk": "backbone_",
    "pixel decoder": "pd_",
    "mask decoder": "dec",
    "out of vocabulary": "out_vocab_",
    "final": "final_",
    "semantic": "sem_seg",
    "instances": "instances",
    "crafted": "crafted_",
    "made-up heads": "cf_",
    "photographs": r"case|[^_]+_image",
    "training predictions": r"out\d+_",
    "matching": r"cost_|match\d",
    "losses": r"(un)?weighted_loss|total_loss",
    "gradients": r"grad_",
    "update by recorded gradients": r"after_",
}
"""The parts of the summary, by the prefix of their arrays' names."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"parity: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None, write: Callable[[str], None] = print) -> int:
    """Returns 0 if all arrays agree, 1 if one fails or was not compared, 2 if the folder cannot be compared."""
    parser = _Parser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument(
        "folder",
        metavar="DIR",
        type=pathlib.Path,
        help="the folder with X_eval.json, X_eval.npz, manifest_X.json, and possibly X_train.*",
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="of max|difference| / max|official| (default: 1e-4)"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="another than float32 is compared with this project's float32: prints the errors by stage, and judges none",
    )
    options = parser.parse_args(arguments)
    try:
        if not options.tolerance > 0:
            raise BadFiles(f"--tolerance is {options.tolerance}; it must be above 0")
        if options.precision != "float32":
            for line in precision.compare(options.folder, options.precision):
                write(line)
            return 0
        # On accelerators products have less than float32 precision by default.
        with jax.default_matmul_precision("highest"):
            sections = compare(options.folder, options.tolerance, write)
    except BadFiles as error:
        print(f"parity: {error}", file=sys.stderr)
        return 2
    return summarise(sections, write)


def compare(folder: pathlib.Path, tolerance: float, write: Callable[[str], None]) -> list[Section]:
    """Compares everything in the folder, and writes each file's lines when it is done."""
    files = find_pairs(folder)
    sections: list[Section] = []
    models: dict[pathlib.Path, tuple[Pair, Network]] = {}
    for pair in files.pairs:
        network = Network(pair)
        models[pair.path] = pair, network
        compare_one = compare_ovrcoat if pair.facts.get("meta_architecture") == OVRCOAT else compare_pair
        done = attempt(
            pair, lambda pair=pair, network=network, compare=compare_one: [compare(pair, network, tolerance)]
        )
        sections += done
        report(done, write)
    for training in files.trainings:
        evaluated = training.path.with_name(training.path.name.replace("_train.json", "_eval.json"))
        model = models[evaluated]
        done = attempt(training, lambda pair=training, model=model: [compare_training(pair, *model, tolerance)])
        sections += done
        report(done, write)
    for extra in files.extras:
        near = {
            found[1]: model
            for path, model in models.items()
            if path.parent in (extra.path.parent, extra.path.parent.parent)
            and (found := re.fullmatch(r"small_(.+)_eval", path.stem))
        }
        done = attempt(extra, lambda extra=extra, near=near: compare_extra(extra, near, tolerance))
        sections += done
        report(done, write)
    for stem, reason in files.others.items():
        write(f"{stem.relative_to(folder).as_posix()}: not compared: {reason}")
    return sections


def attempt(pair: Pair, compare_file: Callable[[], list[Section]]) -> list[Section]:
    """Compares a file. If the compiler or the device fails, the file fails and the others are still compared."""
    try:
        return compare_file()
    except jax.errors.JaxRuntimeError as error:
        section = Section(pair.name, pair.arrays, None, 0.0)
        message = command_line.first_line(error)
        section.close(list(pair.arrays), lambda name: (f"a program failed: {message}", True))
        return [section]


def report(sections: Sequence[Section], write: Callable[[str], None]) -> None:
    for section in sections:
        write(section.title)
        for verdict in section.verdicts.values():
            error = "" if verdict.error is None else f"{verdict.error:.1e}"
            shape = "x".join(map(str, verdict.shape)) or "scalar"
            found = "  ".join(filter(None, (error, verdict.found)))
            write(f"  {verdict.name:36} {shape:16} {found:40} {'ok' if verdict.ok else 'FALLS SHORT'}")
        for row in section.uncompared:
            write(f"  {row.name:36} not compared: {row.reason}")


def summarise(sections: Sequence[Section], write: Callable[[str], None]) -> int:
    for section in sections:
        errors = {
            stage: [v.error for v in section.verdicts.values() if v.error is not None and re.match(start, v.name)]
            for stage, start in STAGES.items()
        }
        listed = ", ".join(f"{stage} {max(values):.1e}" for stage, values in errors.items() if values)
        if listed:
            write(f"largest errors of {section.title}: {listed}")
    verdicts = [verdict for section in sections for verdict in section.verdicts.values()]
    short = sum(not verdict.ok for verdict in verdicts)
    missed = sum(row.fails for section in sections for row in section.uncompared)
    write(f"{len(verdicts)} compared, {short} fall short, {missed} should have been compared and were not")
    return 1 if short or missed else 0


if __name__ == "__main__":
    sys.exit(main())

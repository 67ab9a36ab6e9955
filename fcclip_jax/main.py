"""The command line of training and evaluation.

python -m fcclip_jax.main --config=configs/coco.py --workdir=runs/coco                # trains, or goes on
python -m fcclip_jax.main --config=configs/coco.py:debug --workdir=runs/debug         # everything small, on a laptop
python -m fcclip_jax.main --config=configs/coco.py --compile_only=v5e:4x4             # what it takes on a TPU pod
python -m fcclip_jax.main --config=configs/eval.py:ade20k --checkpoint=DIR --workdir=runs/ade20k   # evaluates, or goes on
"""

import pathlib
import re
import sys
from collections.abc import Sequence

import jax
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from fcclip_jax import files

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A Python file with get_config(variant), such as configs/coco.py or configs/coco.py:debug; any value"
    " of it can be set, as in --config.batch_size=8."
)  # fmt: skip
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder: checkpoints, metrics and the trained model, or an evaluation's log and report."
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "What configs/eval.py evaluates: a folder that training or convert wrote, or \"random\" for a small"
    " model that finds nothing, to see that all works."
)  # fmt: skip
COMPILE_ONLY = flags.DEFINE_string(
    "compile_only", None, "Compiles the training step for a TPU topology, such as v5e:4x4, says what it takes, and trains"
    " nothing. Needs no TPU."
)  # fmt: skip
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One process of several: TPU pods, Slurm and Open MPI say which; else give the next three."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process.")
PROCESS_COUNT = flags.DEFINE_integer("process_count", None, "How many processes there are.", lower_bound=1)
PROCESS_INDEX = flags.DEFINE_integer("process_index", None, "Which of them this is, from 0.", lower_bound=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 with one sentence for what the user can put right, 1 if --compile_only does
    not fit, or images could not be evaluated."""
    argv = list(sys.argv if argv is None else argv)
    try:
        config = _parse(argv)
        logging.set_verbosity(logging.WARNING)
        if COMPILE_ONLY.value:
            from fcclip_jax.training import plan

            return plan.main(config, COMPILE_ONLY.value)

        files.check_writable(WORKDIR.value)
        _start_processes()
        if "benchmark" in config:
            from fcclip_jax.evaluation.evaluate import evaluate

            return evaluate(config, CHECKPOINT.value, WORKDIR.value)
        _run(config)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (flags.Error, OSError, ValueError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        # XLA's own error for an allocation that failed; any other is a fault of ours, and its traceback is wanted.
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print("error: not enough memory; try a smaller batch_size, short_side or max_side", file=sys.stderr)
        return 2
    return 0


def _parse(argv: list[str]) -> ConfigDict:
    """Raises flags.Error or ValueError, in one sentence, for whatever is wrong with the command line or a config."""
    _find_config(argv)
    try:
        rest = FLAGS(argv)[1:]
    except (AttributeError, KeyError) as error:
        meant = re.search(r'Did you mean "(.+)" instead of "(.+)"', str(error))
        if meant:
            told = f"has no {meant[2]!r}; did you mean {meant[1]!r}?"
        elif key := re.fullmatch(r"\W*(\w+)\W*", str(error)):
            told = f"has no {key[1]!r}"
        else:
            told = f"cannot be used: {error}"
        raise ValueError(f"the configuration {told}") from None
    except (TypeError, ImportError, SyntaxError) as error:
        raise ValueError(f"the configuration cannot be used: {error}") from None
    if rest:
        raise ValueError(f"{rest[0]!r} is no flag; see python -m fcclip_jax.main --help")
    if CONFIG.value is None:
        raise ValueError("give a configuration, such as --config=configs/coco.py")
    if WORKDIR.value is None and not COMPILE_ONLY.value:
        raise ValueError("give the run a folder, such as --workdir=runs/coco")
    evaluates = "benchmark" in CONFIG.value
    if evaluates and CHECKPOINT.value is None:
        raise ValueError("give what is to be evaluated, such as --checkpoint=runs/coco/final")
    if evaluates and COMPILE_ONLY.value:
        raise ValueError("--compile_only is about training: give it with another configuration than configs/eval.py")
    if CHECKPOINT.value is not None and not evaluates:
        raise ValueError("--checkpoint goes with configs/eval.py; training begins at --config.init")
    return CONFIG.value


def _one_line(error: Exception) -> str:
    text = str(error)
    if "Traceback (most recent call last)" in text:  # config_flags' way of reporting what a config file raises
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def _find_config(argv: Sequence[str]) -> None:
    """Lets a configuration import its neighbours, as a script in its folder could: configs/ade20k.py says `import coco`.

    A copy of it says so too, wherever it lies: it finds the project's own.

    Raises:
        ValueError: there is no such file.
    """
    for i, argument in enumerate(argv):
        name, _, value = argument.lstrip("-").partition("=")
        if name == "config" and argument.startswith("-"):
            path = pathlib.Path((value or "".join(argv[i + 1 : i + 2])).partition(":")[0])
            if not path.is_file():
                raise ValueError(f"there is no configuration {path}; the project's are in configs/")
            here = pathlib.Path(__file__).parent
            projects = (here.parent / "configs", here / "configs")  # in a checkout, and installed
            sys.path[:0] = map(str, (path.resolve().parent, *filter(pathlib.Path.is_dir, projects)))


def _start_processes() -> None:
    asked = (COORDINATOR.value, PROCESS_COUNT.value, PROCESS_INDEX.value)
    if not DISTRIBUTED.value:
        if any(value is not None for value in asked):
            raise ValueError("--coordinator, --process_count and --process_index go with --distributed")
        return
    try:
        jax.distributed.initialize(*asked)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the processes cannot find one another: {error}") from error


def _run(config: ConfigDict) -> None:
    # Importing them takes seconds, which --help and typing errors need not wait for.
    from fcclip_jax import caching
    from fcclip_jax.data.datasets import open_dataset
    from fcclip_jax.training.config import step_settings
    from fcclip_jax.training.train import train

    caching.keep_compiled_programs()
    step_settings(config)  # mistakes in numbers, before those in the data
    data = config.data
    source = open_dataset(data.dataset, data.root, "train", **data.train)
    val_source = None
    if config.eval.every:
        val_source = open_dataset(data.dataset, data.root, "val", **data.val)
        if val_source.vocabulary.classes != source.vocabulary.classes:
            raise ValueError(
                f"the categories of {val_source.name} are not those of {source.name}; give both splits the same, or set"
                " eval.every to 0"
            )
    train(config, WORKDIR.value, source, val_source)


if __name__ == "__main__":
    sys.exit(main())

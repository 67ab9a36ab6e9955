"""The command line of training and evaluation.

python -m fcclip_jax.main --config=configs/coco.py --workdir=runs/coco                # trains, or resumes
python -m fcclip_jax.main --config=configs/coco.py:debug --workdir=runs/debug         # everything small, on a laptop
python -m fcclip_jax.main --config=configs/coco.py --compile_only=v5e:4x4             # what a TPU pod needs for it
python -m fcclip_jax.main --config=configs/eval.py:ade20k --checkpoint=DIR --workdir=runs/ade20k   # evaluates, or resumes
"""

import functools
import pathlib
import re
import sys
from collections.abc import Sequence

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from fcclip_jax import command_line, files

_HERE = pathlib.Path(__file__).parent
PROJECT_CONFIGS = next(folder for folder in (_HERE / "configs", _HERE.parent / "configs") if folder.is_dir())
"""The folder configs/, inside the installed package or next to it in a checkout."""

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A Python file with get_config(variant), such as configs/coco.py or configs/coco.py:debug. Flags set its"
    " values, as in --config.batch_size=8."
)  # fmt: skip
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder: checkpoints, metrics and the trained model, or an evaluation's log and report."
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "The checkpoint that configs/eval.py evaluates: a folder that training or convert wrote;"
    " a name that `fcclip weights` lists; \"world\", the small trained model inside this package; or \"random\" for a small model with random weights, to test the setup."
)  # fmt: skip
COMPILE_ONLY = flags.DEFINE_string(
    "compile_only", None, "Compiles the training step for a TPU topology, such as v5e:4x4, prints the memory that it needs,"
    " and trains nothing. Needs no TPU."
)  # fmt: skip
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Runs as one process of several. TPU pods, Slurm and Open MPI configure the processes; elsewhere"
    " give the next three flags."
)  # fmt: skip
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process.")
PROCESS_COUNT = flags.DEFINE_integer("process_count", None, "The number of processes.", lower_bound=1)
PROCESS_INDEX = flags.DEFINE_integer("process_index", None, "This process's index, from 0.", lower_bound=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    It is REFUSED if the user can correct the cause, and INCOMPLETE if --compile_only does not fit into memory or some
    images could not be evaluated.
    """
    command = functools.partial(_run, list(sys.argv if argv is None else argv))
    return command_line.run(
        command, memory_advice="try a smaller batch_size, short_side or max_side", describe=_describe
    )


def _run(argv: list[str]) -> int:
    config = parse(argv)
    logging.set_verbosity(logging.WARNING)
    # Training and evaluation are imported here, so that --help and mistakes in the flags are reported without delay.
    if COMPILE_ONLY.value:
        from fcclip_jax.training.plan import print_plan

        return print_plan(config, COMPILE_ONLY.value)

    files.check_writable(WORKDIR.value)
    _start_processes()
    if "benchmark" in config:
        from fcclip_jax.evaluation.evaluate import evaluate

        return evaluate(config, CHECKPOINT.value, WORKDIR.value)

    from fcclip_jax import caching
    from fcclip_jax.training.contrastive.pretrain import pretrain
    from fcclip_jax.training.train import train

    caching.keep_compiled_programs()
    if "pretrain" in config:
        pretrain(config, WORKDIR.value)
        return command_line.DONE
    train(config, WORKDIR.value)
    return command_line.DONE


def parse(argv: Sequence[str]) -> ConfigDict:
    """Parses the command line and returns the configuration.

    Raises:
        ValueError: the command line or the configuration has a mistake.
    """
    argv = _find_config(argv)
    app.define_help_flags()
    try:
        rest = FLAGS(argv)[1:]
    except flags.Error as error:
        raise ValueError(str(error)) from error
    except (AttributeError, KeyError) as error:
        similar = re.search(r'Did you mean "(.+)" instead of "(.+)"', str(error))
        if similar:
            problem = f"has no {similar[2]!r}; did you mean {similar[1]!r}?"
        elif key := re.fullmatch(r"\W*(\w+)\W*", str(error)):
            problem = f"has no {key[1]!r}"
        else:
            problem = f"cannot be used: {error}"
        raise ValueError(f"the configuration {problem}") from None
    except (TypeError, ImportError, SyntaxError) as error:
        raise ValueError(f"the configuration cannot be used: {error}") from None
    if rest:
        raise ValueError(f"{rest[0]!r} is not a flag; see python -m fcclip_jax.main --help")
    if CONFIG.value is None:
        raise ValueError("give a configuration, such as --config=configs/coco.py")
    if WORKDIR.value is None and not COMPILE_ONLY.value:
        raise ValueError("give the run a folder, such as --workdir=runs/coco")
    evaluates = "benchmark" in CONFIG.value
    if evaluates and CHECKPOINT.value is None:
        raise ValueError("give a checkpoint to evaluate, such as --checkpoint=runs/coco/final")
    if evaluates and COMPILE_ONLY.value:
        raise ValueError("--compile_only concerns training; give it a configuration other than configs/eval.py")
    if "pretrain" in CONFIG.value and COMPILE_ONLY.value:
        raise ValueError(
            "--compile_only compiles the training of an FC-CLIP; give it a configuration other than configs/world_clip.py"
        )
    if CHECKPOINT.value is not None and not evaluates:
        raise ValueError("--checkpoint belongs to configs/eval.py; training starts from --config.init")
    return CONFIG.value


def _describe(error: Exception) -> str:
    text = str(error)
    # config_flags reports a config file's own errors with their traceback.
    if "Traceback (most recent call last)" in text:
        return " ".join(text.strip().splitlines()[-1].partition(": ")[2].split())
    return command_line.one_line(error)


def _find_config(argv: Sequence[str]) -> list[str]:
    """Returns the arguments with the project's own configs/NAME.py, if the working folder has no such file.

    Raises:
        ValueError: the configuration's file does not exist; config_flags would blame a Python module.
    """
    argv = list(argv)
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag.lstrip("-") != "config" or not flag.startswith("-"):
            continue
        place = i if equals else i + 1
        name, colon, variant = (value if equals else "".join(argv[place : place + 1])).partition(":")
        if pathlib.Path(name).is_file():
            continue
        own = PROJECT_CONFIGS / pathlib.Path(name).name
        if pathlib.Path(name).parent != pathlib.Path("configs") or not own.is_file():
            known = ", ".join(sorted(f"configs/{file.name}" for file in PROJECT_CONFIGS.glob("[!_]*.py")))
            raise ValueError(f"the configuration {name or '(none)'} does not exist; the project has {known}")
        argv[place] = f"{flag}=" * bool(equals) + f"{own}{colon}{variant}"
    return argv


def _start_processes() -> None:
    given = (COORDINATOR.value, PROCESS_COUNT.value, PROCESS_INDEX.value)
    if not DISTRIBUTED.value:
        if any(value is not None for value in given):
            raise ValueError("--coordinator, --process_count and --process_index need --distributed")
        return
    try:
        jax.distributed.initialize(*given)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the processes cannot reach each other: {error}") from error


if __name__ == "__main__":
    sys.exit(main())

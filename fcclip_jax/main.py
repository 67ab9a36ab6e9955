"""The command line of training and evaluation.

python -m fcclip_jax.main --config=configs/coco.py --workdir=runs/coco                # trains, or resumes
python -m fcclip_jax.main --config=configs/coco.py:debug --workdir=runs/debug         # everything small, on a laptop
python -m fcclip_jax.main --config=configs/coco.py --compile_only=v5e:4x4             # what a TPU pod needs for it
python -m fcclip_jax.main --config=configs/eval.py:ade20k --checkpoint=DIR --workdir=runs/ade20k   # evaluates, or resumes
"""

import ast
import pathlib
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from fcclip_jax import command_line, devices, files

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_HERE = pathlib.Path(__file__).parent
PROJECT_CONFIGS = next(folder for folder in (_HERE / "configs", _HERE.parent / "configs") if folder.is_dir())
"""The folder configs/, inside the installed package or next to it in a checkout."""
HELP_FLAGS = ("help", "helpfull", "helpshort", "h", "?")


class Flag(NamedTuple):
    """A flag, which is None unless it is given; a switch is False."""

    value: str
    """What the help calls its value; empty for a switch."""
    help: str


FLAGS = {
    "config": Flag("FILE[:VARIANT]", "A Python file with get_config(variant), one of those below or your own. --config.NAME=VALUE"
                   " sets one of its values, as in --config.batch_size=8; the file and what it imports list them."),
    "workdir": Flag("DIR", "The run's folder: checkpoints, metrics and the trained model, or an evaluation's log and report."),
    "checkpoint": Flag("DIR_OR_NAME", "The checkpoint that configs/eval.py evaluates: a folder that training or fcclip-convert wrote;"
                       " a name that `fcclip weights` lists; \"world\", the small trained model inside this package; or \"random\""
                       " for a small model with random weights, to test the setup."),
    "compile_only": Flag("TOPOLOGY", "Compiles the training step for a TPU topology, such as v5e:4x4, prints the memory that it"
                         " needs, and trains nothing. Needs no TPU."),
    "distributed": Flag("", "Runs as one process of several. TPU pods, Slurm and Open MPI configure the processes; elsewhere give"
                        " the next three flags."),
    "coordinator": Flag("HOST:PORT", "The address of the first process."),
    "process_count": Flag("N", "The number of processes."),
    "process_index": Flag("N", "This process's index, from 0."),
}  # fmt: skip


class Command(NamedTuple):
    """The parsed command line: the configuration, and the other flags by name."""

    config: "ConfigDict"
    workdir: str | None
    checkpoint: str | None
    compile_only: str | None
    distributed: bool
    coordinator: str | None
    process_count: int | None
    process_index: int | None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    It is REFUSED if the user can correct the cause, and INCOMPLETE if --compile_only does not fit into memory or some
    images could not be evaluated.
    """
    argv = list(sys.argv if argv is None else argv)
    # The help needs no package of the train extra.
    if any(argument.startswith("-") and argument.lstrip("-") in HELP_FLAGS for argument in argv[1:]):
        print(help_text())
        return command_line.DONE
    return command_line.run(
        lambda: _run(argv), memory_advice="try a smaller batch_size, short_side or max_side", describe=_describe
    )


def help_text() -> str:
    """Lists the flags, and the project's configurations with their variants."""
    lines = [__doc__.strip(), "", "flags:"]
    for name, flag in FLAGS.items():
        lines += [
            f"  --{name}{flag.value and '='}{flag.value}",
            textwrap.fill(flag.help, 100, initial_indent=" " * 6, subsequent_indent=" " * 6),
        ]
    lines += ["", f"configurations, which are found from any folder; the files are in {PROJECT_CONFIGS}:"]
    for name in _config_names():
        doc = ast.get_docstring(ast.parse((PROJECT_CONFIGS / name).read_text("utf-8"))) or ""
        variants = re.search(r"^Variants.*?(?=\n\n|\Z)", doc, re.DOTALL | re.MULTILINE)
        lines += [f"  configs/{name}", textwrap.indent(doc.partition("\n")[0], " " * 6)]
        lines += [textwrap.indent(variants[0], " " * 6)] if variants else []
    return "\n".join(lines)


def _run(argv: list[str]) -> int:
    command = parse(argv)
    config = command.config
    from absl import flags, logging

    flags.FLAGS.mark_as_parsed()  # the libraries' own, which keep their defaults
    logging.set_verbosity(logging.WARNING)
    # Training and evaluation are imported here, so that mistakes in the flags are reported without delay.
    if command.compile_only:
        from fcclip_jax.training.plan import print_plan

        return print_plan(config, command.compile_only)

    assert command.workdir is not None
    files.check_writable(command.workdir)
    _start_processes(command)
    devices.warn_of_unused_gpu()
    if "benchmark" in config:
        from fcclip_jax.evaluation.evaluate import evaluate

        assert command.checkpoint is not None
        return evaluate(config, command.checkpoint, command.workdir)

    from fcclip_jax import caching
    from fcclip_jax.training.contrastive.pretrain import pretrain
    from fcclip_jax.training.train import train

    caching.keep_compiled_programs()
    if "pretrain" in config:
        pretrain(config, command.workdir)
        return command_line.DONE
    train(config, command.workdir)
    return command_line.DONE


def parse(argv: Sequence[str]) -> Command:
    """Parses the command line, of which the program's name is the first argument.

    Raises:
        ValueError: the command line or the configuration has a mistake.
        ModuleNotFoundError: a package is not installed.
    """
    from absl import flags
    from ml_collections import config_flags

    argv = _find_config(argv)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, FLAGS["config"].help, flag_values=values, sys_argv=argv)
    for name in ("workdir", "checkpoint", "compile_only", "coordinator"):
        flags.DEFINE_string(name, None, FLAGS[name].help, flag_values=values)
    flags.DEFINE_bool("distributed", False, FLAGS["distributed"].help, flag_values=values)
    flags.DEFINE_integer("process_count", None, FLAGS["process_count"].help, lower_bound=1, flag_values=values)
    flags.DEFINE_integer("process_index", None, FLAGS["process_index"].help, lower_bound=0, flag_values=values)
    try:
        rest = values(argv)[1:]
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
    except ModuleNotFoundError:
        raise
    except (TypeError, ImportError, SyntaxError) as error:
        raise ValueError(f"the configuration cannot be used: {error}") from None
    if rest:
        raise ValueError(f"{rest[0]!r} is not a flag; see python -m fcclip_jax.main --help")
    command = Command(**{name: values[name].value for name in FLAGS})
    if command.config is None:
        raise ValueError(f"give a configuration, such as --config=configs/coco.py; {_listed()}")
    if command.workdir is None and not command.compile_only:
        raise ValueError("give the run a folder, such as --workdir=runs/coco")
    evaluates = "benchmark" in command.config
    if evaluates and command.checkpoint is None:
        raise ValueError("give a checkpoint to evaluate, such as --checkpoint=runs/coco/final")
    if evaluates and command.compile_only:
        raise ValueError("--compile_only concerns training; give it a configuration other than configs/eval.py")
    if "pretrain" in command.config and command.compile_only:
        raise ValueError(
            "--compile_only compiles the training of an FC-CLIP; give it a configuration other than configs/world_clip.py"
        )
    if command.checkpoint is not None and not evaluates:
        raise ValueError("--checkpoint belongs to configs/eval.py; training starts from --config.init")
    return command


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
            raise ValueError(f"the configuration {name or '(none)'} does not exist; {_listed()}")
        argv[place] = f"{flag}=" * bool(equals) + f"{own}{colon}{variant}"
    return argv


def _config_names() -> list[str]:
    return sorted(file.name for file in PROJECT_CONFIGS.glob("[!_]*.py"))


def _listed() -> str:
    names = ", ".join(f"configs/{name}" for name in _config_names())
    return f"the project has {names}, in {PROJECT_CONFIGS.parent}"


def _start_processes(command: Command) -> None:
    given = (command.coordinator, command.process_count, command.process_index)
    if not command.distributed:
        if any(value is not None for value in given):
            raise ValueError("--coordinator, --process_count and --process_index need --distributed")
        return
    import jax

    try:
        jax.distributed.initialize(*given)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the processes cannot reach each other: {error}") from error


if __name__ == "__main__":
    sys.exit(main())

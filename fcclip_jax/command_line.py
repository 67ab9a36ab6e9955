"""Exit codes, one-sentence errors, packages that are not installed and types of arguments, for all command lines."""

import _thread
import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from fcclip_jax.process_memory import ran_out

DONE = 0
INCOMPLETE = 1
"""Part of the work failed and was reported; the rest is done."""
REFUSED = 2
"""The user can correct the cause; one sentence on stderr explains how."""
INTERRUPTED = 130
OUTPUT_CLOSED = 141
"""The reader of the output, such as head, has ended; the shells' code for SIGPIPE."""

DISTRIBUTION = "fcclip-jax"
EXTRAS = {
    "convert": ("open_clip", "torch"),
    "demo": ("gradio",),
    "eval": ("cityscapesscripts",),
    "train": (
        "absl",
        "array_record",
        "grain",
        "ml_collections",
        "optax",
        "simplejpeg",
        "tensorboard",
        "tensorboardX",
        "tensorflow_datasets",
    ),
    "weights": ("filelock", "gdown", "huggingface_hub"),
}
"""The modules that setup.cfg's extras install. The reader of images names the package of [heic] itself."""
OWN = ("configs", "convert", "fcclip_jax", "pallas_kernels")
"""The project's own packages, whose absence is a fault."""


class ArgumentParser(argparse.ArgumentParser):
    """A parser that reports a mistake in the arguments in one sentence and exits with REFUSED."""

    def error(self, message: str) -> NoReturn:
        self.exit(REFUSED, f"error: {message}; see {self.prog} --help\n")


def run(command: Callable[[], int], *, memory_advice: str, describe: Callable[[Exception], str] | None = None) -> int:
    """Runs a command and returns its exit code.

    The user can correct the causes of OSError and ValueError, and can install what a ModuleNotFoundError names, so these
    become one sentence and REFUSED. Any other error is a fault of this project and keeps its traceback.

    memory_advice: what to do when memory runs out, as the second half of a sentence.
    describe: makes the sentence from an error; by default `one_line`.
    """
    try:
        with warnings.catch_warnings(), _interrupts():
            warnings.showwarning = _show
            code = command()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Python flushes stdout once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (OSError, ValueError) as error:
        print(f"error: {(describe or one_line)(error)}", file=sys.stderr)
        return REFUSED
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if not module or module in OWN:
            raise
        print(f"error: {missing_package(module, 'this command')}", file=sys.stderr)
        return REFUSED
    except (MemoryError, RuntimeError) as error:
        if "home directory" in str(error):  # pathlib's error for ~ without a home
            print("error: a home folder is unknown; set HOME, or write paths without ~", file=sys.stderr)
            return REFUSED
        if not ran_out(error):
            raise
        print(f"error: not enough memory; {memory_advice}", file=sys.stderr)
        return REFUSED


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """Repeats a Ctrl-C that Python ignores: one that arrives in a callback of the garbage collector, as JAX has one."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            # From another thread and a little later: an interrupt in here would be ignored too.
            threading.Timer(0.05, _thread.interrupt_main).start()
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _show(message: Warning | str, category: type[Warning], *where: object) -> None:
    """Prints a warning as a sentence; Python's own form adds the line of code."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def say(text: str) -> None:
    """Prints a line that has names of the user's, which the terminal's encoding may lack: it shows their code points."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def missing_package(module: str, purpose: str, otherwise: str = "") -> ValueError:
    """Returns the error for a package that is not installed, with the line that installs it.

    purpose: what needs the package, as the beginning of the sentence.
    otherwise: what else the user can do, as its end.
    """
    extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
    package = f"'{_own_requirement()}[{extra}]'" if extra else module
    return ValueError(
        f"{purpose} needs {module}, which is not installed: pip install {package}{otherwise and f', or {otherwise}'}"
    )


def import_package(module: str, purpose: str, otherwise: str = "") -> Any:
    """Imports a package of one of the EXTRAS, or another optional one.

    Raises:
        ValueError: it is not installed; see `missing_package`.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise missing_package(module, purpose, otherwise) from None


def is_installed(module: str) -> bool:
    """Returns whether a package can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _own_requirement() -> str:
    """Returns how pip names this project: a checkout that is not installed is the working folder."""
    try:
        importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "."
    return DISTRIBUTION


def count(text: str) -> int:
    """Reads an argument that is a positive whole number."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return value


def one_line(error: BaseException) -> str:
    """Returns an error's message on one line; for the system's errors, the file and the reason."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, for libraries with long messages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def causes(error: BaseException) -> list[BaseException]:
    """Returns an error and those behind it, the innermost last: libraries wrap the system's errors several times."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    return chain

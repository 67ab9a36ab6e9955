"""What every command line shares: exit codes, and errors in one sentence."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

DONE = 0
INCOMPLETE = 1
"""Part of the work could not be done, and was reported; the rest is done."""
REFUSED = 2
"""The user can put it right: one sentence says what is wrong and what to do."""
INTERRUPTED = 130


class ArgumentParser(argparse.ArgumentParser):
    """Reports a mistake in the arguments in one sentence, and exits with REFUSED."""

    def error(self, message: str) -> NoReturn:
        self.exit(REFUSED, f"error: {message}; see {self.prog} --help\n")


def run(command: Callable[[], int], *, memory_advice: str, describe: Callable[[Exception], str] | None = None) -> int:
    """Runs a command and returns its exit code.

    OSError and ValueError are the user's to put right: they become one sentence and REFUSED. Any other error is a fault
    of this project, whose traceback is wanted.

    memory_advice: what to do when memory runs out.
    describe: makes an error's sentence; by default `one_line`.
    """
    try:
        return command()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (OSError, ValueError) as error:
        print(f"error: {(describe or one_line)(error)}", file=sys.stderr)
        return REFUSED
    except (MemoryError, RuntimeError) as error:
        # XLA's own error for an allocation that failed.
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"error: not enough memory; {memory_advice}", file=sys.stderr)
        return REFUSED


def one_line(error: BaseException) -> str:
    """Returns an error's message on one line; the system's own errors as file and reason."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, for libraries whose errors run over many."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

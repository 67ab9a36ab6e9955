"""Runs fcclip_jax.main, and kills this process after a number of images were logged.

python -m tests.evaluation.killed NUMBER FLAGS...
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

from fcclip_jax import main as command
from fcclip_jax.evaluation.log import EvaluationLog, Line


def main(argv: list[str]) -> int:
    number, writer = int(argv[1]), EvaluationLog.writer

    @contextlib.contextmanager
    def killing_writer(log: EvaluationLog) -> Iterator[Callable[[Line], None]]:
        written = 0

        def write_and_count(line: Line) -> None:
            nonlocal written
            write(line)
            written += 1
            if written == number:
                os.kill(os.getpid(), signal.SIGKILL)

        with writer(log) as write:
            yield write_and_count

    EvaluationLog.writer = killing_writer
    return command.main([argv[0], *argv[2:]])


if __name__ == "__main__":
    sys.exit(main(sys.argv))

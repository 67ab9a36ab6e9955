"""Runs `fcclip segment` with a segmenter that computes nothing, and kills this process before one of its writes.

python -m tests.commands.killed NUMBER ARGUMENTS...    NUMBER counts the files that are renamed into place
"""

import os
import signal
import sys

from fcclip_jax import cli
from fcclip_jax.inference import segmenter
from tests.commands.segmenting import FakeSegmenter


def main(argv: list[str]) -> int:
    left, replace = int(argv[1]), os.replace

    def replace_or_die(source, target):
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(source, target)

    os.replace = replace_or_die
    segmenter.Segmenter.load = lambda weights, **options: FakeSegmenter(weights, interrupt_at=None, **options)
    return cli.main(argv[2:])


if __name__ == "__main__":
    sys.exit(main(sys.argv))

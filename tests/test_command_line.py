"""What all command lines share."""

import gc
import sys
import time

from fcclip_jax import command_line


def test_an_interrupt_in_a_callback_of_the_garbage_collector():
    """Python ignores exceptions there, but Ctrl-C ends the command all the same."""
    hook = sys.unraisablehook

    def interrupt(phase, info):
        gc.callbacks.remove(interrupt)
        raise KeyboardInterrupt

    def command():
        gc.callbacks.append(interrupt)
        gc.collect()
        for _ in range(500):
            time.sleep(0.01)
        return command_line.DONE

    assert command_line.run(command, memory_advice="") == command_line.INTERRUPTED
    assert sys.unraisablehook is hook

"""Refuses pickles that nest values so deep that PyTorch's reader would crash the interpreter.

That reader keeps its values on a list, so that depth costs it nothing; but Python hashes a tuple inside a tuple by
recursion without a limit, and a million of them, as a key of a dictionary, overflow the stack. Nothing is constructed here:
only the depth of each value is computed, from the effects that Python's pickletools state for each instruction.
"""

import io
import pickletools
from typing import Any

MAX_DEPTH = 100
"""Values inside each other; PyTorch's files have about 10."""
GROWING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
"""Instructions that add to the first value that they take."""
PUT, GET = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
MARK = -1
"""Stands for a mark, where a depth is not negative."""


def check_depth(file: io.BytesIO | io.BufferedReader) -> None:
    """Reads one pickle, from the file's position to its end.

    Raises:
        ValueError: it nests values too deep, or is damaged; the message, without the path, gives the reason.
    """
    stack: list[int] = []
    memo: dict[Any, int] = {}
    try:
        for code, argument, _ in pickletools.genops(file):
            if code.name in PUT:
                memo[argument] = stack[-1]
            elif code.name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif code.name in GET:
                stack.append(memo[argument])
            elif code.name == "MARK":
                stack.append(MARK)
            else:
                _step(stack, code)
    except (IndexError, KeyError, ValueError) as error:
        if isinstance(error, TooDeep):
            raise
        raise ValueError("it is damaged, or contains more than plain tensors, which can run code") from None


class TooDeep(ValueError):
    """Tells this error from those of pickletools."""

    def __init__(self) -> None:
        super().__init__(f"its pickle has more than {MAX_DEPTH} values inside each other")


def _step(stack: list[int], code: pickletools.OpcodeInfo) -> None:
    """Takes the instruction's values from the stack, and puts the depth of its results there."""
    before = code.stack_before
    taken: list[int] = []
    if pickletools.markobject in before:
        while (depth := stack.pop()) != MARK:
            taken.append(depth)
        before = before[: before.index(pickletools.markobject)]
    taken += [stack.pop() for _ in before]
    if not taken:
        depth = 0
    elif code.name in GROWING:
        *added, target = taken
        depth = max([target, *(value + 1 for value in added)])
    else:
        depth = 1 + max(taken)
    if depth > MAX_DEPTH:
        raise TooDeep
    stack += [depth] * len(code.stack_after)

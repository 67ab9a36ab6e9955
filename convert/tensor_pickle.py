"""Reads the pickles that torch.save writes, and constructs nothing but plain values and descriptions of tensors.

A pickle is a program for a stack machine, which can import and call anything. This machine knows only the instructions
that PyTorch writes (protocol 2, which is torch.save's default, and 3, which has the same ones), and it never imports or
calls what a pickle names: a name is a pair of strings, looked up in a table of a few. Nothing here recurses into a
pickle's values, no instruction copies a container, and each constructs at most one value, so the limits on bytes and
instructions also limit memory and time. The meaning of the names is in torch/_utils.py and torch/serialization.py.
"""

import dataclasses
import math
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

MAX_INSTRUCTIONS = 2**20
"""About 30 for each tensor: enough for a model, its average and its optimiser with 10,000 tensors each."""
MAX_OPEN_MARKS = 100
MAX_DIMENSIONS = 32
MAX_NAME = 1000
"""Characters of the keys of dictionaries, and of the names of classes and functions."""
MAX_COUNT = 2**48
"""Elements of a tensor or between its rows: NumPy counts bytes in 64 bits, also where a tensor is empty."""
MAX_INTEGER = 16
"""Bytes; sizes and random seeds have at most 9."""

STORAGES = {
    ("torch", "DoubleStorage"): np.dtype(np.float64),
    ("torch", "FloatStorage"): np.dtype(np.float32),
    ("torch", "HalfStorage"): np.dtype(np.float16),
    ("torch", "BFloat16Storage"): np.dtype(ml_dtypes.bfloat16),
    ("torch", "LongStorage"): np.dtype(np.int64),
    ("torch", "IntStorage"): np.dtype(np.int32),
    ("torch", "ShortStorage"): np.dtype(np.int16),
    ("torch", "CharStorage"): np.dtype(np.int8),
    ("torch", "ByteStorage"): np.dtype(np.uint8),
    ("torch", "BoolStorage"): np.dtype(np.bool_),
}
ORDERED_DICT = ("collections", "OrderedDict")
COUNTER = ("collections", "Counter")
SIZE = ("torch", "Size")
TENSOR = ("torch._utils", "_rebuild_tensor_v2")
PARAMETER = ("torch._utils", "_rebuild_parameter")
NAMES = frozenset({*STORAGES, ORDERED_DICT, COUNTER, SIZE, TENSOR, PARAMETER})


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """A one-dimensional array, the member `data/KEY` of the archive."""

    dtype: np.dtype
    key: str
    length: int


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTensor:
    """A view of a storage. Its offset and strides count elements; all its elements are inside the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize


@dataclasses.dataclass(frozen=True, slots=True)
class _Name:
    """A class or function of NAMES: no tuple, so that a pickle cannot write one."""

    name: tuple[str, str]


def load(pickle: bytes, sizes: Mapping[str, int]) -> Any:
    """Returns the value of a pickle, with a StoredTensor for each tensor or parameter.

    sizes: bytes of each storage in the archive, by its key.

    Raises:
        ValueError: the pickle contains anything else; the message, without the path, gives the reason.
    """
    return _Machine(pickle, sizes).run()


class _Machine:
    """The stack machine. Its methods are named after the instructions in Python's pickletools."""

    def __init__(self, pickle: bytes, sizes: Mapping[str, int]):
        self.pickle = pickle
        self.sizes = sizes
        self.position = 0
        self.stack: list[Any] = []
        self.outer_stacks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self) -> Any:
        if self.pickle[:2] not in (b"\x80\x02", b"\x80\x03"):
            raise ValueError("its pickle has another protocol than PyTorch's, 2")
        self.position = 2
        for _ in range(MAX_INSTRUCTIONS):
            code = self.take(1)
            if code == b".":
                if self.position != len(self.pickle) or self.outer_stacks or len(self.stack) != 1:
                    raise ValueError("its pickle ends too early")
                return self.pop()
            if code not in INSTRUCTIONS:
                raise ValueError(
                    f"its pickle has the instruction {OPCODES.get(code, code)}, which no plain tensor needs and"
                    " which can run code"
                )
            INSTRUCTIONS[code](self)
        raise ValueError(f"its pickle has more than {MAX_INSTRUCTIONS} instructions")

    def take(self, count: int) -> bytes:
        """Returns the next bytes of the pickle."""
        taken = self.pickle[self.position : self.position + count]
        if len(taken) < count:
            raise ValueError("its pickle is truncated")
        self.position += count
        return taken

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        end = self.pickle.find(b"\n", self.position, self.position + MAX_NAME)
        if end < 0:
            raise ValueError("its pickle has a name without an end")
        line = self.take(end + 1 - self.position)[:-1]
        return line.decode("ascii", "backslashreplace")

    def pop(self, kind: type = object) -> Any:
        """Takes the top of the stack, which must have the type `kind` exactly."""
        if not self.stack:
            raise ValueError("its pickle is damaged: its stack is empty")
        if kind is not object and type(self.stack[-1]) is not kind:
            raise ValueError(f"its pickle is damaged: a {type(self.stack[-1]).__name__} is no {kind.__name__}")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """Takes the values since the last mark."""
        if not self.outer_stacks:
            raise ValueError("its pickle is damaged: it has no mark")
        values, self.stack = self.stack, self.outer_stacks.pop()
        return values

    def mark(self) -> None:
        if len(self.outer_stacks) == MAX_OPEN_MARKS:
            raise ValueError(f"its pickle nests more than {MAX_OPEN_MARKS} values")
        self.outer_stacks.append(self.stack)
        self.stack = []

    def binunicode(self) -> None:
        try:
            self.stack.append(self.take(self.number("<I")).decode())
        except UnicodeDecodeError:
            raise ValueError("its pickle has a text that is not UTF-8") from None

    def long1(self) -> None:
        length = self.number("B")
        if length > MAX_INTEGER:
            raise ValueError(f"its pickle has an integer of {length} bytes")
        self.stack.append(int.from_bytes(self.take(length), "little", signed=True))

    def put(self, index: int) -> None:
        if index >= MAX_INSTRUCTIONS:
            raise ValueError(f"its pickle numbers a value {index}")
        value = self.pop()
        self.memo[index] = value
        self.stack.append(value)

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError(f"its pickle is damaged: it has no value {index}")
        self.stack.append(self.memo[index])

    def make_tuple(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(values)))

    def mark_to_tuple(self) -> None:
        values = self.pop_mark()
        self.stack.append(tuple(values))

    def extend(self, values: list[Any]) -> None:
        target = self.pop(list)
        target.extend(values)
        self.stack.append(target)

    def set_items(self, values: list[Any]) -> None:
        target = self.pop()
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("its pickle is damaged: it sets items of no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Python's hashes of large integers can be chosen to collide, and those of nested tuples recurse.
            if type(key) not in (str, int) or (type(key) is int and abs(key) >= 2**60):
                raise ValueError(f"its pickle has a dictionary with a {type(key).__name__} as a key")
            if key in target:
                raise ValueError(f"its pickle has the key {str(key)[:80]!r} twice in a dictionary")
            target[key] = value
        self.stack.append(target)

    def find_global(self) -> None:
        name = (self.line(), self.line())
        if name not in NAMES:
            raise ValueError(f"it contains {'.'.join(name)[:200]!r}, more than plain tensors, which can run code")
        self.stack.append(_Name(name))

    def persistent_id(self) -> None:
        """Describes a storage from ("storage", its class, key, device, length)."""
        arguments = self.pop(tuple)
        if tuple(map(type, arguments)) != (str, _Name, str, str, int) or arguments[0] != "storage":
            raise ValueError("its pickle has a malformed storage")
        _, kind, key, _, length = arguments
        if kind.name not in STORAGES or length < 0:
            raise ValueError("its pickle has a malformed storage")
        storage = Storage(STORAGES[kind.name], key, length)
        if key not in self.sizes:
            raise ValueError(f"it has no storage {key[:80]!r}")
        if length * storage.dtype.itemsize > self.sizes[key]:
            raise ValueError(f"its storage {key!r} is larger than its bytes in the file")
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"its storage {key!r} has two types or lengths")
        self.stack.append(storage)

    def reduce(self) -> None:
        """Describes the result of a call, which is not made."""
        arguments = self.pop(tuple)
        name = self.pop(_Name).name
        types = tuple(map(type, arguments))
        if name == ORDERED_DICT and types == ():
            self.stack.append(OrderedDict())
        elif (name, types) in ((SIZE, (tuple,)), (COUNTER, (dict,))):
            self.stack.append(arguments[0])
        elif name == TENSOR and types == (Storage, int, tuple, tuple, bool, OrderedDict) and not arguments[5]:
            self.stack.append(_tensor(*arguments[:4]))
        elif name == PARAMETER and types == (StoredTensor, bool, OrderedDict) and not arguments[2]:
            self.stack.append(arguments[0])
        else:
            raise ValueError(f"its pickle calls {'.'.join(name)} with other arguments than PyTorch")

    def build(self) -> None:
        """Drops the attributes of an OrderedDict: Module.state_dict adds the versions of its layers as `_metadata`."""
        self.pop(dict)
        self.stack.append(self.pop(OrderedDict))


def _tensor(storage: Storage, offset: int, shape: tuple, strides: tuple) -> StoredTensor:
    """Describes a view of a storage, after checks that it lies inside."""
    if len(shape) > MAX_DIMENSIONS or len(shape) != len(strides):
        raise ValueError(f"its pickle has a tensor of {len(shape)} dimensions with {len(strides)} strides")
    if any(type(number) is not int or not 0 <= number <= MAX_COUNT for number in (offset, *shape, *strides)):
        raise ValueError("its pickle has a tensor whose offset, shape or strides are no counts")
    if math.prod(length or 1 for length in shape) > MAX_COUNT:
        raise ValueError(f"its pickle has a tensor of shape {list(shape)}")
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.length:
        raise ValueError(
            f"its pickle has a tensor of shape {list(shape)} that is not inside its storage {storage.key!r}"
        )
    return StoredTensor(storage, offset, shape, strides)


_BY_NAME: dict[str, Callable[[_Machine], None]] = {
    "NONE": lambda machine: machine.stack.append(None),
    "NEWTRUE": lambda machine: machine.stack.append(True),
    "NEWFALSE": lambda machine: machine.stack.append(False),
    "BININT": lambda machine: machine.stack.append(machine.number("<i")),
    "BININT1": lambda machine: machine.stack.append(machine.number("B")),
    "BININT2": lambda machine: machine.stack.append(machine.number("<H")),
    "LONG1": _Machine.long1,
    "BINFLOAT": lambda machine: machine.stack.append(machine.number(">d")),
    "BINUNICODE": _Machine.binunicode,
    "EMPTY_TUPLE": lambda machine: machine.stack.append(()),
    "TUPLE1": lambda machine: machine.make_tuple(1),
    "TUPLE2": lambda machine: machine.make_tuple(2),
    "TUPLE3": lambda machine: machine.make_tuple(3),
    "TUPLE": lambda machine: machine.mark_to_tuple(),
    "EMPTY_LIST": lambda machine: machine.stack.append([]),
    "APPEND": lambda machine: machine.extend([machine.pop()]),
    "APPENDS": lambda machine: machine.extend(machine.pop_mark()),
    "EMPTY_DICT": lambda machine: machine.stack.append({}),
    "SETITEM": lambda machine: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine: machine.set_items(machine.pop_mark()),
    "MARK": _Machine.mark,
    "BINPUT": lambda machine: machine.put(machine.number("B")),
    "LONG_BINPUT": lambda machine: machine.put(machine.number("<I")),
    "BINGET": lambda machine: machine.get(machine.number("B")),
    "LONG_BINGET": lambda machine: machine.get(machine.number("<I")),
    "GLOBAL": _Machine.find_global,
    "BINPERSID": _Machine.persistent_id,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
OPCODES = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}
INSTRUCTIONS = {code: _BY_NAME[name] for code, name in OPCODES.items() if name in _BY_NAME}

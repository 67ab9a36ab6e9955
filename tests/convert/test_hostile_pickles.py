"""Files that try to run code, to fill the memory or to confuse: refused in one sentence, by both readers of PyTorch's files."""

import contextlib
import pathlib
import pickle
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from convert import tensor_pickle, weight_files
from tests.convert.pickles import HOOKS, VALUES, call, integer, name, row, state, storage, tensor, text, write

ROOT = pathlib.Path(__file__).parents[2]


class Harm:
    """An object that creates the file `marker` when it is unpickled."""

    def __reduce__(self):
        return (eval, ("open('marker', 'w').close()",))


OPEN = text("open('marker', 'w').close()")
TOUCH = text("touch marker")
# Python's unpickler runs these. Modules are looked up where the program starts, which has the file canary.py.
CODE = {
    "os.system": (state(call("os", "system", TOUCH)), "contains 'os.system', more than plain tensors"),
    "posix.system": (state(call("posix", "system", TOUCH)), "contains 'posix.system'"),
    "eval": (state(call("builtins", "eval", OPEN)), "contains 'builtins.eval'"),
    "eval of Python 2": (state(call("__builtin__", "eval", OPEN)), "contains '__builtin__.eval'"),
    "exec": (state(call("builtins", "exec", OPEN)), "contains 'builtins.exec'"),
    "open": (state(call("builtins", "open", text("marker"), text("w"))), "contains 'builtins.open'"),
    "getattr": (
        state(call("builtins", "getattr", name("os", "system"), text("__call__")) + row(TOUCH) + b"R"),
        "contains 'builtins.getattr'",
    ),
    "an import": (state(name("canary", "anything")), "contains 'canary.anything'"),
    "an import inside a tensor": (
        state(tensor(row(text("storage"), name("canary", "anything"), text("0"), text("cpu"), integer(4)) + b"Q")),
        "contains 'canary.anything'",
    ),
    "os.system beside the model": (
        b"\x80\x02}(" + text("model") + b"}" + text("optimizer") + call("os", "system", TOUCH) + b"u.",
        "contains 'os.system'",
    ),
    "a dotted name": (
        state(call("collections", "abc.sys.modules.__getitem__", TOUCH)),
        "contains 'collections.abc.sys",
    ),
    "a name from the stack": (state(text("os") + text("system") + b"\x93" + row(TOUCH) + b"R"), "STACK_GLOBAL"),
    "INST": (state(b"(" + TOUCH + b"ios\nsystem\n"), "instruction INST,"),
    "OBJ": (state(b"(" + name("collections", "OrderedDict") + b"o"), "instruction OBJ,"),
    "NEWOBJ": (state(name("collections", "OrderedDict") + b")\x81"), "instruction NEWOBJ,"),
    "NEWOBJ_EX": (state(name("collections", "OrderedDict") + b")}\x92"), "instruction NEWOBJ_EX,"),
    "EXT1": (state(b"\x82\x01"), "instruction EXT1,"),
    "EXT2": (state(b"\x83\x01\x00"), "instruction EXT2,"),
    "EXT4": (state(b"\x84\x01\x00\x00\x00"), "instruction EXT4,"),
    "PERSID": (state(b"Pstorage\n"), "instruction PERSID,"),
    "NEXT_BUFFER": (state(b"\x97"), "instruction NEXT_BUFFER,"),
    "a second pickle": (state(tensor()) + state(call("os", "system", TOUCH)), "ends too early"),
    "BUILD of a class": (state(name("collections", "OrderedDict") + b"}b"), "a _Name is no OrderedDict"),
    "BUILD of a list": (state(b"]}b"), "a list is no OrderedDict"),
    "BUILD of a dict": (state(b"}}b"), "a dict is no OrderedDict"),
    "BUILD of a tensor": (state(tensor() + b"}b"), "a StoredTensor is no OrderedDict"),
    "BUILD with a tuple": (state(HOOKS + row(b"}", b"}") + b"b"), "a tuple is no dict"),
    "a call of a text": (state(text("os.system") + row(TOUCH) + b"R"), "a str is no _Name"),
    "a call without a tuple": (state(name("torch", "Size") + b"]R"), "a list is no tuple"),
    "another OrderedDict": (
        state(call("collections", "OrderedDict", b"]")),
        "calls collections.OrderedDict with other",
    ),
    "a Counter of a text": (state(call("collections", "Counter", OPEN)), "calls collections.Counter with other"),
    "a call of a storage's class": (state(call("torch", "FloatStorage", integer(9))), "calls torch.FloatStorage with"),
    "builtins of an allowed module": (
        state(call("torch._utils", "__builtins__.eval", OPEN)),
        "contains 'torch._utils.__builtins__.eval'",
    ),
    "a method of an allowed class": (
        state(call("collections", "OrderedDict.fromkeys", OPEN)),
        "contains 'collections.OrderedDict.fromkeys'",
    ),
    "an allowed name, split elsewhere": (
        state(tensor().replace(b"ctorch._utils\n_rebuild", b"ctorch\n_utils._rebuild")),
        "contains 'torch._utils._rebuild_tensor_v2'",
    ),
    "torch.load": (state(call("torch", "load", text("marker"))), "contains 'torch.load'"),
    "torch.hub": (state(call("torch.hub", "load", text("marker"))), "contains 'torch.hub.load'"),
    "a numpy scalar": (state(name("numpy.core.multiarray", "scalar")), "contains 'numpy.core.multiarray.scalar'"),
    "a name with a space": (state(storage("FloatStorage ")), "contains 'torch.FloatStorage '"),
    "a name that is not ASCII": (state(name("törch", "Size")), r"contains 't\\xc3\\xb6rch.Size'"),
    "a name with a control character": (state(name("torch\x1b[2J", "Size")), r"contains 'torch\x1b[2J.Size'"),
    "a long name": (state(name("o" * 2000, "system")), "a name without an end"),
    **{
        f"protocol {protocol}": (
            pickle.dumps({"w": Harm()}, protocol),
            "contains" if protocol in (2, 3) else "protocol",
        )
        for protocol in range(6)
    },
}
RUN = {
    *("os.system", "posix.system", "eval", "eval of Python 2", "exec", "getattr", "an import", "INST"),
    *("os.system beside the model", "a name from the stack", *(f"protocol {protocol}" for protocol in range(6))),
}
"""Those that really run code in Python's unpickler."""

LIMIT = 50_000
"""Instructions in these tests, which check the types of each call: the real limit would take minutes."""
STRUCTURE = {
    "an empty pickle": (b"", "another protocol"),
    "no protocol": (state(tensor())[2:], "another protocol"),
    "two protocols": (b"\x80\x02" + state(tensor()), "instruction PROTO,"),
    "no end": (state(tensor())[:-1], "its pickle is truncated"),
    "an early end": (b"\x80\x02(.", "ends too early"),
    "an empty end": (b"\x80\x02.", "ends too early"),
    "FRAME": (b"\x80\x02\x95" + b"\xff" * 8 + state(tensor())[2:], "instruction FRAME,"),
    "BYTEARRAY8": (state(b"\x96" + b"\xff" * 7 + b"\x7f"), "instruction BYTEARRAY8,"),
    "BINBYTES8": (state(b"\x8e" + b"\xff" * 7 + b"\x7f"), "instruction BINBYTES8,"),
    "BINUNICODE8": (state(b"\x8d" + b"\xff" * 7 + b"\x7f"), "instruction BINUNICODE8,"),
    "a text of 4 GiB": (state(b"X\xff\xff\xff\xff"), "its pickle is truncated"),
    "an integer of 2 GiB": (state(b"\x8b\xff\xff\xff\x7f"), "instruction LONG4,"),
    "an integer of 255 bytes": (state(b"\x8a\xff" + b"\x7f" * 255), "an integer of 255 bytes"),
    "a decimal integer": (state(b"I" + b"9" * 5000 + b"\n"), "instruction INT,"),
    "an unknown instruction": (state(b"\xff"), r"the instruction b'\xff',"),
    "a value that was never numbered": (state(b"h\x05"), "it has no value 5"),
    "a distant value": (state(b"j\xff\xff\xff\xff"), "it has no value 4294967295"),
    "a distant number": (state(b"]r\xff\xff\xff\xff"), "numbers a value 4294967295"),
    "a number for nothing": (b"\x80\x02q\x00.", "its stack is empty"),
    "GET as text": (state(b"]q\x00g0\n"), "instruction GET,"),
    "POP": (state(b"]]0"), "instruction POP,"),
    "no mark": (b"\x80\x02u.", "it has no mark"),
    "101 marks": (b"\x80\x02" + b"(" * 101, "nests more than 100 values"),
    "a list of itself": (state(b"]q\x00h\x00a"), "'w' is a list, not a plain tensor"),
    "a model that is itself": (b"\x80\x02}q\x00" + text("model") + b"h\x00s.", "nests more than 10 dictionaries"),
    "20,000 tuples in each other": (state(b")" + b"\x85" * 20_000), "'w' is a tuple, not a plain tensor"),
    "20,000 lists in each other": (b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".", "contains a list, not a"),
    "too many values": (b"\x80\x02" + b"}" * LIMIT, f"has more than {LIMIT} instructions"),
    "too many marked values": (b"\x80\x02(" + b"N" * LIMIT, f"has more than {LIMIT} instructions"),
    "a key without a value": (b"\x80\x02}(" + text("w") + b"u.", "sets items of no dictionary"),
    "an item of a list": (b"\x80\x02]" + text("w") + tensor() + b"s.", "sets items of no dictionary"),
    "an item of a class": (
        state(name("collections", "OrderedDict") + text("a") + b"Ns"),
        "sets items of no dictionary",
    ),
    "a value added to a dict": (state(b"}Na"), "a dict is no list"),
    "values added to a tuple": (state(b")(Ne"), "a tuple is no list"),
    "a key twice": (b"\x80\x02}(" + (text("w") + tensor()) * 2 + b"u.", "has the key 'w' twice"),
    "a tuple as a key": (state(tensor(), row(text("w"))), "with a tuple as a key"),
    "nested tuples as a key": (state(tensor(), b")" + b"\x85" * 20_000), "with a tuple as a key"),
    "a list as a key": (state(tensor(), b"]"), "with a list as a key"),
    "a fraction as a key": (state(tensor(), b"G" + struct.pack(">d", 0.5)), "with a float as a key"),
    "integers that collide": (state(tensor(), integer(2**61 - 1)), "with a int as a key"),
    "an integer as a key": (state(tensor(), integer(7)), "7 is a "),
    "a surrogate": (state(tensor(), text("w\ud800")), "a text that is not UTF-8"),
    "a NUL": (state(tensor(), text("w\0")), r"the key 'w\x00' has unprintable characters"),
    "a line break": (state(tensor(), text("w\nerror: ")), r"the key 'w\nerror: ' has unprintable characters"),
    "a terminal's code": (state(tensor(), text("\x1b[2Jw")), r"the key '\x1b[2Jw' has unprintable characters"),
    "a long key": (state(tensor(), text("module." * 1000 + "w")), "or more than 1000"),
}

FOUR = row(integer(4))
ONE = row(integer(1))
TENSORS = {
    "an offset of text": (tensor(offset=text("0")), "_rebuild_tensor_v2 with other arguments"),
    "a negative offset": (tensor(offset=integer(-1)), "are no counts"),
    "a shape in a list": (tensor(shape=b"](" + integer(2) * 2 + b"e"), "_rebuild_tensor_v2 with other arguments"),
    "a shape of texts": (tensor(shape=row(text("2"), text("2"))), "are no counts"),
    "a shape of booleans": (tensor(shape=row(b"\x88", b"\x88")), "are no counts"),
    "a negative shape": (tensor(shape=row(integer(-2), integer(-2))), "are no counts"),
    "negative strides": (tensor(offset=integer(3), strides=row(integer(-2), integer(-1))), "are no counts"),
    "fewer strides": (tensor(strides=ONE), "2 dimensions with 1 strides"),
    "33 dimensions": (tensor(shape=row(*[integer(1)] * 33), strides=row(*[integer(1)] * 33)), "of 33 dimensions"),
    "a shape beyond its storage": (tensor(shape=row(integer(3), integer(2))), "[3, 2] that is not inside its storage"),
    "an offset beyond its storage": (tensor(offset=integer(1)), "[2, 2] that is not inside its storage"),
    "strides beyond its storage": (tensor(strides=row(integer(3), integer(1))), "[2, 2] that is not inside"),
    "an enormous shape": (tensor(shape=row(integer(2**62), integer(2**62))), "are no counts"),
    "an enormous product": (
        tensor(shape=row(*[integer(2**40)] * 2), strides=row(integer(0), integer(0))),
        "of shape [1",
    ),
    "an enormous empty shape": (
        tensor(shape=row(integer(0), *[integer(2**40)] * 2), strides=row(*[integer(0)] * 3)),
        "a tensor of shape [0, 1",
    ),
    "an enormous stride": (tensor(shape=ONE, strides=row(integer(2**80))), "are no counts"),
    "an element 2**40 times": (tensor(shape=row(integer(2**40)), strides=row(integer(0))), "'w' repeats its elements"),
    "no storage": (tensor(text("0")), "_rebuild_tensor_v2 with other arguments"),
    "a tensor of a tensor": (tensor(tensor()), "_rebuild_tensor_v2 with other arguments"),
    "a storage's tuple": (tensor(storage()[:-1]), "_rebuild_tensor_v2 with other arguments"),
    "a hook": (tensor(hooks=HOOKS + text("h") + HOOKS + b"s"), "_rebuild_tensor_v2 with other arguments"),
    "metadata": (tensor(more=b"}" + text("neg") + b"\x88s"), "_rebuild_tensor_v2 with other arguments"),
    "a parameter of a text": (
        call("torch._utils", "_rebuild_parameter", text("w"), b"\x88", HOOKS),
        "calls torch._utils._rebuild_parameter with other arguments",
    ),
    "a storage": (storage(), "'w' is a Storage, not a plain tensor"),
    "a class": (name("torch", "Size"), "'w' is a _Name, not a plain tensor"),
    "a storage's name in a list": (b"]Q", "a list is no tuple"),
    "a storage with fewer parts": (row(text("storage"), name("torch", "FloatStorage"), text("0")) + b"Q", "malformed"),
    "another kind of object": (tensor(storage().replace(b"storage", b"modules")), "malformed storage"),
    "a storage without a class": (tensor(storage().replace(name("torch", "FloatStorage"), text("f"))), "malformed"),
    "a storage of another class": (tensor(storage("Size")), "malformed storage"),
    "a storage's number": (tensor(storage(key=integer(0))), "malformed storage"),
    "a negative length": (tensor(storage(length=-4)), "malformed storage"),
    "a storage that is absent": (tensor(storage(key=text("1"))), "it has no storage '1'"),
    "a storage outside the folder": (tensor(storage(key=text("../version"))), "it has no storage '../version'"),
    "a storage of 5 elements": (tensor(storage(length=5)), "'0' is larger than its bytes in the file"),
    "a storage of 2**62 elements": (tensor(storage(length=2**62)), "'0' is larger than its bytes in the file"),
    "a storage of doubles": (tensor(storage("DoubleStorage")), "'0' is larger than its bytes in the file"),
    "complex numbers": (tensor(storage("ComplexFloatStorage", length=2)), "contains 'torch.ComplexFloatStorage'"),
    "quantised numbers": (tensor(storage("QInt8Storage")), "contains 'torch.QInt8Storage'"),
    "a storage of two types": (row(tensor(), tensor(storage("IntStorage"))), "'0' has two types or lengths"),
}
PICKLES = CODE | STRUCTURE | {case: (state(value), sentence) for case, (value, sentence) in TENSORS.items()}


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The path of a file that code in a pickle creates, also by the import of `canary`."""
    folder = tmp_path / "program"
    folder.mkdir()
    marker = folder / "marker"
    (folder / "canary.py").write_text(f"open({str(marker)!r}, 'w').close()\nanything = {{}}\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    yield marker
    sys.modules.pop("canary", None)


def refusal(path) -> str:
    with pytest.raises(ValueError) as caught:
        weight_files.read(path)
    message = str(caught.value)
    assert str(path) in message and message.isprintable()
    return message


def test_the_frame_of_these_files_is_valid(tmp_path, monkeypatch):
    """What is refused below is not the frame around it."""
    path = write(tmp_path / "w.pth", state(tensor()))
    expected = VALUES.reshape(2, 2)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        np.testing.assert_array_equal(weight_files.read(path).tensors["w"].load(), expected)
    pytest.importorskip("torch", reason="PyTorch reads .pth files too (extra: convert)")
    np.testing.assert_array_equal(weight_files.read(path).tensors["w"].load(), expected)


@pytest.mark.parametrize("case", PICKLES)
def test_refused_without_pytorch(tmp_path, canary, monkeypatch, case):
    content, sentence = PICKLES[case]
    path = write(tmp_path / "w.pth", content)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(tensor_pickle, "MAX_INSTRUCTIONS", LIMIT)
    modules = set(sys.modules)
    tracemalloc.start()
    try:
        message = refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sentence in message
    assert not canary.exists() and set(sys.modules) == modules
    # The pickle, and an object of at most 64 bytes and its pointer for each of its instructions; 1 MiB for the rest.
    assert peak < 2**20 + 100 * len(content)


READ_BY_PYTORCH = {
    "a second pickle": "it stops at the end of the first",
    "no protocol": "it needs none",
    "two protocols": "it notes them",
    "a key twice": "the last value counts",
    "BUILD of a tensor": "an empty one changes nothing",
    "an allowed name, split elsewhere": "it joins the two parts, and finds the allowed function",
    "a shape in a list": "it takes a list for a tuple",
    "33 dimensions": "it has no limit, and the tensor has one element",
    "an enormous empty shape": "the tensor has no elements",
    "a hook": "only gradients would call it",
    "a storage's number": "it makes a text of it",
    "a storage of 5 elements": "the bytes after the storage belong to the same file, and the tensor has none of them",
    "a storage of 2**62 elements": "likewise",
    "a storage of doubles": "likewise, but the tensor's elements are the file's bytes",
}
"""What our reader refuses although it runs no code, and why PyTorch's own reader accepts it."""


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("case", PICKLES)
def test_refused_with_pytorch(tmp_path, canary, case):
    pytest.importorskip("torch", reason="PyTorch reads .pth files too (extra: convert)")
    path = write(tmp_path / "w.pth", PICKLES[case][0])
    if case in READ_BY_PYTORCH:
        weight_files.read(path)
    else:
        refusal(path)
    assert not canary.exists()


@pytest.mark.parametrize("case", sorted(RUN))
def test_the_payloads_are_real(canary, case):
    """Python's own unpickler runs them, though not all to the end: the frame around them is no tensor's."""
    with contextlib.suppress(pickle.UnpicklingError, TypeError):
        pickle.loads(PICKLES[case][0])
    assert canary.exists()


MILLION = b")" + b"\x85" * 1_000_000
"""Tuples inside each other. CPython hashes them by recursion without a limit."""
OLD_START = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
NESTED = {
    "a key": state(tensor(), MILLION),
    "a value": state(MILLION),
    "counted": state(call("collections", "Counter", b"]" + MILLION + b"a")),
    "a shape": state(tensor(shape=MILLION)),
    "a key, numbered": b"\x80\x02" + MILLION + b"q\x00}h\x00Ns\x86.",
}


@pytest.mark.parametrize("case", [*NESTED, "a key, before PyTorch 1.6", "a storage's name, before PyTorch 1.6"])
def test_a_million_tuples_in_each_other(tmp_path, case):
    """In a process of its own, which must not crash: PyTorch's reader does, of the keys and the counted ones."""
    pytest.importorskip("torch", reason="PyTorch reads .pth files too (extra: convert)")
    path = tmp_path / "w.pth"
    if case in NESTED:
        write(path, NESTED[case])
    else:
        inner = state(b"N", MILLION)
        path.write_bytes(OLD_START + (inner if case.startswith("a key") else state(b"N") + inner) + pickle.dumps([], 2))
    command = [sys.executable, "-m", "convert", "openclip", "--model", "RN50", "--pretrained", path]
    done = subprocess.run(
        [*command, "--output", tmp_path / "out"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    sentence = f"error: {path} is refused: its pickle has more than 100 values inside each other; save the model's"
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(sentence), done.stderr[-500:]

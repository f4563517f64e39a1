"""Pickles and PyTorch's containers, read as data: an interpreter of the few instructions that checkpoints need.

Nothing that a file says is imported, called or executed. A name such as `torch._utils._rebuild_tensor_v2` stays a name,
must stand on the list of those that checkpoints use, and chooses a function of this module. The file is mapped, not
read: numbers are views of it until somebody asks for their values. What is not known is refused.
"""

import math
import mmap
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.card import CheckpointError

Numbers = np.ndarray[tuple[int, ...], np.dtype[Any]]

MAX_FILE_BYTES = 64 << 30
MAX_INSTRUCTIONS = 1_000_000
"""Each takes about 100 bytes at most; a training state of the largest published network has about 180,000."""
MAX_TEXT_BYTES = 16 << 20
MAX_NAME_BYTES = 200
MAX_MARKS = 100
MAX_DEPTH = 100
MAX_AXES = 8
MAX_DIRECTORY_BYTES = 2 << 20
"""Of a ZIP archive's list of members; that of the largest published network has 0.4 MB."""

LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""With which files of torch.save began before they were ZIP archives, and storages within pickles still do."""
LEGACY_VERSION = 1001
MEMBER_MAGIC = b"PK\3\4"


class _Refused(ValueError):
    """What stands in a file is not known, not allowed, or does not fit together."""


@dataclass(frozen=True, slots=True)
class Name:
    """A name that a pickle refers to, such as `collections.OrderedDict`. It is never looked up anywhere."""

    text: str


@dataclass(slots=True)
class Record:
    """An object that a pickle describes: the name of its class, and its attributes."""

    kind: str
    state: dict[Any, Any]


@dataclass(slots=True)
class Storage:
    """Numbers in a row: their type as NumPy names it, how many, and their bytes in the file."""

    dtype: np.dtype[Any]
    count: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Array:
    """A tensor: which elements of a storage it takes, in which order. It lies within the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def values(self) -> Numbers:
        """A view of the numbers in the file, with the tensor's shape."""
        flat = np.frombuffer(self.storage.data, self.storage.dtype)[self.offset :]
        strides = [stride * flat.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)


@dataclass(frozen=True, slots=True)
class Container:
    """A file's contents: plain values, lists, tuples, dictionaries, records and arrays."""

    form: str
    size: int
    root: object


def read(path: Path) -> Container:
    """What a pickle or a file of torch.save holds.

    Raises CheckpointError naming the file and the reason when it cannot be read or holds anything else than values,
    tensors and the known kinds of objects. Memory is bounded by MAX_INSTRUCTIONS and MAX_TEXT_BYTES.
    """
    try:
        if not path.is_file():
            raise _Refused("there is no such file" if not path.exists() else "not a file")
        with path.open("rb") as file:
            if not 0 < (size := path.stat().st_size) <= MAX_FILE_BYTES:
                raise _Refused(f"a checkpoint has 1 to {MAX_FILE_BYTES} bytes, not {size}")
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        form, root = _read(data, _Budget())
        _check_depth(root)
        return Container(form, size, root)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path}: begins as a ZIP file, but is cut off or damaged ({error})") from error
    except (ValueError, OSError, NotImplementedError, ArithmeticError, EOFError) as error:
        raise CheckpointError(f"{path}: {error or type(error).__name__}") from error


@dataclass(slots=True)
class _Budget:
    """What a file may still use, with all that is nested in it."""

    instructions: int = MAX_INSTRUCTIONS
    text_bytes: int = MAX_TEXT_BYTES

    def spend(self, instructions: int = 0, text_bytes: int = 0) -> None:
        self.instructions -= instructions
        self.text_bytes -= text_bytes
        if self.instructions < 0:
            raise _Refused(f"its pickle has more than {MAX_INSTRUCTIONS} instructions")
        if self.text_bytes < 0:
            raise _Refused(f"its pickle has more than {MAX_TEXT_BYTES} bytes of text")


def _read(data: memoryview, budget: _Budget) -> tuple[str, object]:
    """The form of a container, told by its first bytes, and its contents."""
    if bytes(data[:4]) == MEMBER_MAGIC:
        return "torch.save (ZIP)", _read_zip(data, budget)
    if bytes(data[: len(LEGACY_MAGIC)]) == LEGACY_MAGIC:
        return "torch.save (legacy)", _read_legacy(data, budget)
    if bytes(data[:1]) != b"\x80":
        raise _Refused("neither a pickle nor a file of torch.save, nor one of ours (.safetensors)")
    return "pickle", _sole(_Machine(data, 0, budget, _no_storages))


def _sole(machine: "_Machine") -> object:
    """The object of a pickle after which there is nothing."""
    root = machine.run()
    if machine.position != len(machine.data):
        raise _Refused(f"{len(machine.data) - machine.position} bytes follow its pickle")
    return root


def _no_storages(key: str, dtype: np.dtype[Any], count: int) -> Storage:
    raise _Refused("refers to a storage outside, as a plain pickle cannot")


def _check_depth(root: object) -> None:
    """Raise _Refused when there are values that lie deep within others."""
    seen: set[int] = set()
    level = [root]
    for _ in range(MAX_DEPTH):
        fresh = {id(value): value for value in level if id(value) not in seen}
        seen |= fresh.keys()
        level = [child for value in fresh.values() for child in _contents(value) if isinstance(child, HOLDERS)]
    if level:
        raise _Refused(f"its values are nested more than {MAX_DEPTH} deep")


def _contents(value: object) -> Iterable[object]:
    """The values that a value holds, as far as it is one of HOLDERS."""
    held = value.state if isinstance(value, Record) else value
    if isinstance(held, dict):
        return held.values()
    return held if isinstance(held, list | tuple) else ()


HOLDERS = (list, tuple, dict, Record)


# ---- containers of torch.save ----


class _Window:
    """Bytes as the file that zipfile wants, of which it cannot read much at a time."""

    def __init__(self, data: memoryview):
        self.data = data
        self.position = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = (0, self.position, len(self.data))[whence] + offset
        if self.position < 0:
            raise _Refused("its ZIP directory points before the start of the file")
        return self.position

    def tell(self) -> int:
        return self.position

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        end = len(self.data) if size < 0 else min(len(self.data), self.position + size)
        if end - self.position > MAX_DIRECTORY_BYTES:
            raise _Refused(f"its ZIP directory has more than {MAX_DIRECTORY_BYTES} bytes")
        start, self.position = self.position, max(self.position, end)
        return bytes(self.data[start:end])


def _read_zip(data: memoryview, budget: _Budget) -> object:
    """The pickle in a ZIP archive, with the storages that lie beside it."""
    try:
        with zipfile.ZipFile(_Window(data)) as archive:
            members = archive.infolist()
    except struct.error as error:
        raise _Refused(f"its ZIP directory is damaged ({error})") from error
    folder = _check_members(members, len(data))
    by_name = {info.filename.removeprefix(folder): info for info in members}
    storages: dict[str, Storage] = {}

    def member(name: str) -> memoryview:
        if name not in by_name:
            raise _Refused(f"its ZIP archive has no member {folder + name!r}")
        return _member(data, by_name[name])

    def storage(key: str, dtype: np.dtype[Any], count: int) -> Storage:
        if key not in storages:
            storages[key] = _storage(key, dtype, count, member(f"data/{key}"))
        return _agreed(storages[key], dtype, count)

    if "byteorder" in by_name and bytes(member("byteorder")[:9]) != b"little":
        raise _Refused("its numbers are not little-endian")
    return _sole(_Machine(member("data.pkl"), 0, budget, storage))


def _check_members(members: list[zipfile.ZipInfo], size: int) -> str:
    """The folder of all members. Raises _Refused when they are not plain files of one folder, stored as they are."""
    folder = members[0].filename.partition("/")[0] + "/" if members else ""
    for info in members:
        name = info.orig_filename
        if not name.startswith(folder) or not re.fullmatch(r"[^/\\\0]+(/[^/\\\0]+)+", name) or ".." in name.split("/"):
            raise _Refused(f"its ZIP archive has a member {name!r}, which torch.save would not write")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise _Refused(f"member {name!r} of its ZIP archive is compressed or encrypted")
    if len({info.filename for info in members}) != len(members):
        raise _Refused("its ZIP archive has two members of one name")
    if sum(info.file_size for info in members) > size:
        raise _Refused("the members of its ZIP archive are together larger than the file")
    return folder


def _member(data: memoryview, info: zipfile.ZipInfo) -> memoryview:
    """The bytes of a stored member where they lie. Raises _Refused unless they are there and have their checksum."""
    header = data[info.header_offset : info.header_offset + 30]
    if info.header_offset < 0 or len(header) < 30 or bytes(header[:4]) != MEMBER_MAGIC:
        raise _Refused(f"member {info.filename!r} of its ZIP archive is not where it should be")
    name_length, extra_length = struct.unpack("<HH", header[26:])
    start = info.header_offset + 30 + name_length + extra_length
    found = data[start : start + info.file_size]
    if len(found) != info.file_size or zlib.crc32(found) != info.CRC:
        raise _Refused(f"member {info.filename!r} of its ZIP archive is damaged")
    return found


def _storage(key: str, dtype: np.dtype[Any], count: int, data: memoryview) -> Storage:
    if len(data) != count * dtype.itemsize:
        raise _Refused(f"storage {key!r:.100} should have {count} x {dtype.itemsize} bytes, but has {len(data)}")
    return Storage(dtype, count, data)


def _agreed(storage: Storage, dtype: np.dtype[Any], count: int) -> Storage:
    """A storage, if it is what a pickle takes it for."""
    if storage.dtype != dtype or storage.count != count:
        raise _Refused(f"a storage of {storage.count} numbers is also said to have {count}, or others")
    return storage


def _read_legacy(data: memoryview, budget: _Budget, is_nested: bool = False) -> object:
    """The object in a legacy file: pickles of version, system, object and names of storages, then these in a row."""
    storages: dict[str, Storage] = {}

    def storage(key: str, dtype: np.dtype[Any], count: int) -> Storage:
        return _agreed(storages.setdefault(key, Storage(dtype, count, data[:0])), dtype, count)

    machine = _Machine(data, len(LEGACY_MAGIC), budget, storage, is_nested)
    version, system, root, keys = (machine.run() for _ in range(4))
    if version != LEGACY_VERSION or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _Refused("its torch.save header is of a version, or a byte order, that is not known")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or {*keys} != {*storages}:
        raise _Refused("its list of storages does not name those that it uses")
    for key in keys:
        found = storages[key]
        (count,) = struct.unpack("<Q", machine.take(8))
        if count != found.count:
            raise _Refused(f"storage {key!r:.100} should hold {found.count} numbers, but says {count}")
        found.data = machine.take(count * found.dtype.itemsize)
    if machine.position != len(data):
        raise _Refused(f"{len(data) - machine.position} bytes follow its last storage")
    return root


# ---- what names stand for ----

Arguments = tuple[Any, ...]


def _empty_dict(machine: "_Machine", arguments: Arguments) -> object:
    match arguments:
        case ():
            return {}
    raise _unsuited(arguments)


def _set(machine: "_Machine", arguments: Arguments) -> object:
    """A set is read as a list: what a file says is never hashed."""
    match arguments:
        case (list() as values,):
            return values
    raise _unsuited(arguments)


def _encoded(machine: "_Machine", arguments: Arguments) -> object:
    """Bytes, in the way of pickles of protocol 2."""
    match arguments:
        case (str(text), "latin1"):
            machine.budget.spend(text_bytes=len(text))  # one text may be encoded often
            return memoryview(text.encode("latin1"))
    raise _unsuited(arguments)


def _numpy_dtype(machine: "_Machine", arguments: Arguments) -> object:
    match arguments:
        case (str(code), 0 | 1, 0 | 1) if code in SCALARS:
            return Record("numpy.dtype", {"code": code})
    raise _unsuited(arguments)


def _numpy_scalar(machine: "_Machine", arguments: Arguments) -> object:
    match arguments:
        case (Record("numpy.dtype", {"code": code}), memoryview() as data) if len(data) == int(code[1]):
            return struct.unpack(SCALARS[code], data)[0]
    raise _unsuited(arguments)


def _empty_ndarray(machine: "_Machine", arguments: Arguments) -> object:
    match arguments:
        case (Name("numpy.ndarray"), (0,), "b" | memoryview()):
            return Record("numpy.ndarray", {})
    raise _unsuited(arguments)


def _ndarray(state: object) -> Array:
    """What the state of a NumPy array describes: numbers in rows, in the order of C."""
    match state:
        case (1, tuple(shape), Record("numpy.dtype", {"code": str(code)}), False, memoryview() as data):
            dtype = np.dtype(code)
            if len(data) % dtype.itemsize == 0 and all(type(each) is int for each in shape):
                strides = tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))
                return _array(Storage(dtype, len(data) // dtype.itemsize, data), 0, shape, strides)
    raise _Refused("an array is not of numbers in the order of C")


def _parameter(machine: "_Machine", arguments: Arguments) -> object:
    match arguments:
        case (Array() as array, bool(), {}):
            return array
    raise _unsuited(arguments)


def _tensor(machine: "_Machine", arguments: Arguments) -> object:
    match arguments:
        case (Storage() as storage, int(offset), tuple(shape), tuple(strides), bool(), {}):
            return _array(storage, offset, shape, strides)
    raise _unsuited(arguments)


def _array(storage: Storage, offset: int, shape: Arguments, strides: Arguments) -> Array:
    """A tensor within a storage. Raises _Refused when it would reach beyond it, or hold a number more than once."""
    if len(shape) != len(strides) or len(shape) > MAX_AXES:
        raise _Refused(f"a tensor has {len(shape)} axes with {len(strides)} strides; {MAX_AXES} at most are read")
    if any(type(each) is not int or not 0 <= each <= MAX_FILE_BYTES for each in (offset, *shape, *strides)):
        raise _Refused("the shape, strides and offset of a tensor must be whole numbers, and none negative or huge")
    array = Array(storage, offset, shape, strides)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if not 0 < array.count <= storage.count or last >= storage.count:
        raise _Refused(
            f"a tensor of shape {list(shape)}, strides {list(strides)} and offset {offset} "
            f"does not fit into its {storage.count} numbers"
        )
    return array


def _nested_storage(machine: "_Machine", arguments: Arguments) -> object:
    """A storage that was saved on its own, in the bytes of a legacy file of torch.save."""
    match arguments:
        case (memoryview() as data,) if not machine.is_nested and bytes(data[: len(LEGACY_MAGIC)]) == LEGACY_MAGIC:
            storage = _read_legacy(data, machine.budget, is_nested=True)
            if isinstance(storage, Storage):
                return storage
    raise _unsuited(arguments)


def _persistent_object(machine: "_Machine", arguments: Arguments) -> object:
    """An object of the official code: its class, its attributes, and the source of its class, which is left alone."""
    match arguments:
        case ({"type": "class", "class_name": str(kind), "state": dict(state)},):
            return Record(kind, state)
    raise _unsuited(arguments)


def _unsuited(arguments: Arguments) -> _Refused:
    kinds = ", ".join(type(each).__name__ for each in arguments[:10])
    return _Refused(f"was given arguments that do not suit it ({kinds or 'none'})")


FUNCTIONS: dict[str, Callable[["_Machine", Arguments], object]] = {
    "collections.OrderedDict": _empty_dict,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "_codecs.encode": _encoded,
    "numpy.dtype": _numpy_dtype,
    "numpy.core.multiarray._reconstruct": _empty_ndarray,
    "numpy._core.multiarray._reconstruct": _empty_ndarray,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _nested_storage,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
}
"""What stands for the functions that checkpoints name."""

CLASSES = {
    "torch.nn.modules.container.ModuleDict",
    "torch.nn.modules.container.ModuleList",
    "torch.nn.modules.container.Sequential",
}
"""Classes of which a pickle may hold objects, which become records."""

DICTIONARIES = {"dnnlib.util.EasyDict"}
"""Classes that add nothing to a dictionary."""

STORAGES: dict[str, np.dtype[Any]] = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}

SCALARS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "u1": "B", "b1": "?"}
"""The kinds of NumPy's scalars, and how their bytes are read."""

NAMES = {*FUNCTIONS, *CLASSES, *DICTIONARIES, *STORAGES, "numpy.ndarray"}


# ---- the instructions ----


@dataclass(slots=True)
class _Machine:
    """Runs the instructions of a pickle. Those known are its methods `do_...`; any other ends the reading."""

    data: memoryview
    position: int
    budget: _Budget
    storage: Callable[[str, np.dtype[Any], int], Storage]
    is_nested: bool = False
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, object] = field(default_factory=dict)

    def run(self) -> object:
        """The object that a pickle describes; the position is behind it then."""
        self.stack, self.marks, self.memo = [], [], {}
        while True:
            start, name = self.position, INSTRUCTIONS.get(self.take(1)[0], "unknown")
            self.budget.spend(instructions=1)
            if name == "STOP":
                return self._result()
            try:
                if name not in HANDLERS:
                    raise _Refused("no checkpoint needs it")
                HANDLERS[name](self)
            except ValueError as error:
                raise _Refused(f"byte {start}, instruction {name}: {error}") from error

    def _result(self) -> object:
        if len(self.stack) != 1 or self.marks:
            raise _Refused("its pickle ends before it is complete")
        return self.stack.pop()

    def take(self, count: int) -> memoryview:
        """The next bytes, where they lie."""
        if count > len(self.data) - self.position:
            raise _Refused(f"the file ends at byte {len(self.data)}, where {count} more are due: it may be cut off")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, count: int) -> str:
        self.budget.spend(text_bytes=count)
        return str(self.take(count), "utf-8")

    def line(self) -> str:
        """The text up to the next end of a line, which is that of a name."""
        ahead = bytes(self.data[self.position : self.position + MAX_NAME_BYTES])
        if b"\n" not in ahead:
            raise _Refused("a name does not end")
        line = self.text(ahead.index(b"\n"))
        self.take(1)
        return line

    def pop(self, count: int = 1) -> list[Any]:
        """The newest values, none of them from before the newest mark."""
        if len(self.stack) - count < (self.marks[-1] if self.marks else 0):
            raise _Refused("takes more values than there are")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def pop_marked(self) -> list[Any]:
        """The values since the newest mark, which goes too."""
        if not self.marks:
            raise _Refused("there is no mark")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def top(self, kind: type) -> Any:
        """The newest value, which stays."""
        (value,) = self.pop()
        if type(value) is not kind:
            raise _Refused(f"expects a {kind.__name__}, not a {type(value).__name__}")
        self.stack.append(value)
        return value

    def name(self, module: object, name: object) -> Name:
        """A name that checkpoints use. Raises _Refused for any other."""
        text = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "something without a name"
        if text not in NAMES:
            raise _Refused(f"refers to {text[:MAX_NAME_BYTES]!r}, which no checkpoint needs")
        return Name(text)

    def do_proto(self) -> None:
        if not 2 <= self.number("<B") <= 5:
            raise _Refused("only protocols 2 to 5 are read")

    def do_frame(self) -> None:
        self.number("<Q")

    def do_mark(self) -> None:
        if len(self.marks) >= MAX_MARKS:
            raise _Refused(f"values are nested more than {MAX_MARKS} deep")
        self.marks.append(len(self.stack))

    def do_none(self) -> None:
        self.stack.append(None)

    def do_newtrue(self) -> None:
        self.stack.append(True)

    def do_newfalse(self) -> None:
        self.stack.append(False)

    def do_binint(self) -> None:
        self.stack.append(self.number("<i"))

    def do_binint1(self) -> None:
        self.stack.append(self.number("<B"))

    def do_binint2(self) -> None:
        self.stack.append(self.number("<H"))

    def do_long1(self) -> None:
        if (count := self.number("<B")) > 8:
            raise _Refused("a whole number has more than 64 bits")
        self.stack.append(int.from_bytes(self.take(count), "little", signed=True))

    def do_binfloat(self) -> None:
        self.stack.append(self.number(">d"))

    def do_short_binunicode(self) -> None:
        self.stack.append(self.text(self.number("<B")))

    def do_binunicode(self) -> None:
        self.stack.append(self.text(self.number("<I")))

    def do_short_binstring(self) -> None:
        self.stack.append(self.text(self.number("<B")))

    def do_binstring(self) -> None:
        if (count := self.number("<i")) < 0:
            raise _Refused("a text has a negative length")
        self.stack.append(self.take(count))

    def do_short_binbytes(self) -> None:
        self.stack.append(self.take(self.number("<B")))

    def do_binbytes(self) -> None:
        self.stack.append(self.take(self.number("<I")))

    def do_empty_tuple(self) -> None:
        self.stack.append(())

    def do_empty_list(self) -> None:
        self.stack.append([])

    def do_empty_dict(self) -> None:
        self.stack.append({})

    do_empty_set = do_empty_list  # see _set

    def do_tuple(self) -> None:
        self.stack.append(tuple(self.pop_marked()))

    def do_tuple1(self) -> None:
        self.stack.append(tuple(self.pop(1)))

    def do_tuple2(self) -> None:
        self.stack.append(tuple(self.pop(2)))

    def do_tuple3(self) -> None:
        self.stack.append(tuple(self.pop(3)))

    def do_append(self) -> None:
        self._extend(self.pop())

    def do_appends(self) -> None:
        self._extend(self.pop_marked())

    do_additems = do_appends

    def _extend(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def do_setitem(self) -> None:
        self._update(self.pop(2))

    def do_setitems(self) -> None:
        self._update(self.pop_marked())

    def _update(self, pairs: list[Any]) -> None:
        """Set items. Keys are texts, or whole numbers small enough to be spread evenly."""
        found = self.top(dict)
        if len(pairs) % 2 or any(type(key) is not str and not _is_small(key) for key in pairs[::2]):
            raise _Refused("a dictionary has keys that are neither texts nor small numbers")
        found.update(zip(pairs[::2], pairs[1::2], strict=True))

    def do_binput(self) -> None:
        self._remember(self.number("<B"))

    def do_long_binput(self) -> None:
        self._remember(self.number("<I"))

    def do_memoize(self) -> None:
        self._remember(len(self.memo))

    def _remember(self, place: int) -> None:
        (value,) = self.pop()
        self.memo[place] = value
        self.stack.append(value)

    def do_binget(self) -> None:
        self._recall(self.number("<B"))

    def do_long_binget(self) -> None:
        self._recall(self.number("<I"))

    def _recall(self, place: int) -> None:
        if place not in self.memo:
            raise _Refused(f"nothing was kept under {place}")
        self.stack.append(self.memo[place])

    def do_global(self) -> None:
        self.stack.append(self.name(self.line(), self.line()))

    def do_stack_global(self) -> None:
        self.stack.append(self.name(*self.pop(2)))

    def do_reduce(self) -> None:
        match self.pop(2):
            case [Name(name), tuple(arguments)] if name in FUNCTIONS:
                try:
                    self.stack.append(FUNCTIONS[name](self, arguments))
                except ValueError as error:
                    raise _Refused(f"{name}: {error}") from error
            case [function, _]:
                raise _Refused(f"calls {_described(function)}, which no checkpoint needs")

    def do_newobj(self) -> None:
        match self.pop(2):
            case [Name(name), ()] if name in CLASSES:
                self.stack.append(Record(name, {}))
            case [Name(name), ()] if name in DICTIONARIES:
                self.stack.append({})
            case [kind, _]:
                raise _Refused(f"makes an object of {_described(kind)}, which no checkpoint needs")

    def do_build(self) -> None:
        (state,) = self.pop()
        record = self.top(Record)
        if record.kind in CLASSES and type(state) is dict and not record.state:
            record.state = state
        elif record.kind == "numpy.ndarray" and not record.state:
            record.state = {"array": _ndarray(state)}
        elif record.kind != "numpy.dtype" or not _is_little_endian(state):
            raise _Refused(f"sets a state that an object of {record.kind!r:.100} does not take, or has already")

    def do_binpersid(self) -> None:
        match self.pop():
            case [("storage", Name(kind), str(key), str(), int(count), *rest)] if kind in STORAGES and count >= 0:
                if rest in ([], [None]):
                    self.stack.append(self.storage(key, STORAGES[kind], count))
                    return
        raise _Refused("refers to something outside that is not a storage")


def _described(value: object) -> str:
    """What a value is, without a look into it."""
    return repr(value.text) if isinstance(value, Name) else f"a {type(value).__name__}"


def _is_little_endian(state: object) -> bool:
    """Whether this is the state of a NumPy type of numbers in this byte order, or of single bytes."""
    match state:
        case (int(), "<" | "|", *_):
            return True
    return False


def _is_small(key: object) -> bool:
    return type(key) is int and 0 <= key < 2**31


INSTRUCTIONS = {ord(each.code): each.name for each in pickletools.opcodes}
HANDLERS: dict[str, Callable[[_Machine], None]] = {
    name: getattr(_Machine, f"do_{name.lower()}")
    for name in INSTRUCTIONS.values()
    if hasattr(_Machine, f"do_{name.lower()}")
}
"""The instructions that are followed: those that the containers of official checkpoints are made of."""

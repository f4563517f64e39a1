"""`pfgmpp serve`: embedded Redis, API and workers as child processes, restarted when they die, stopped together."""

import asyncio
import fcntl
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from prometheus_client.multiprocess import mark_process_dead
from redis.exceptions import RedisError

from service.embedded import NoServer, die_with_parent, find_server, owned, server_command, socket_folder
from service.logs import get_logger
from service.metrics import MULTIPROCESS_DIR
from service.queue import Queue
from service.settings import Settings

EXIT_FAILED = 1
MISCONFIGURED = 2
"""The exit status of a child that would fail again: nothing is restarted then."""

START_SECONDS = 10.0
STABLE_SECONDS = 30.0
LONGEST_BACKOFF_SECONDS = 10.0
POLL_SECONDS = 0.01

METRICS = "metrics"
"""The folder, in the data directory, of what API and workers count."""

PREFIX = "pfgmpp-metrics-"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108

YOUNG_SECONDS = 1.0
"""A folder that nobody holds may be one that another service is about to hold, if it is so young."""

log = get_logger()


class CannotListen(Exception):
    """The address of the API cannot be had."""


@dataclass
class Child:
    """A process that is kept alive."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    descriptors: Sequence[int] = ()
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> asyncio.subprocess.Process:
        """Start it in a session of its own, so that Ctrl-C reaches the supervisor alone."""
        self.process = await asyncio.create_subprocess_exec(
            *self.command,
            env=self.environment,
            pass_fds=self.descriptors,
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )
        return self.process

    async def stop(self, within_seconds: float) -> None:
        """Ask it to end, and insist when it has not in time."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), within_seconds)
        except TimeoutError:
            log.warning("killed", child=self.name, after_seconds=within_seconds)
            self.process.kill()
            await self.process.wait()


class Supervisor:
    """The life of `pfgmpp serve`: start up, keep alive, shut down."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self._stopping = asyncio.Event()
        self._status = 0
        self._children: list[Child] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._metrics_dir = settings.data_dir.resolve() / METRICS
        self._patience = max(settings.grace_seconds, settings.drain_seconds) + 5
        self.queue: Queue | None = None

    async def run(self) -> int:
        """Serve until SIGINT, SIGTERM or SIGHUP; the exit status.

        Raises NoServer when there is no Redis to be had, CannotListen when the port is taken.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._stopping.set)
        started = time.monotonic()
        with ExitStack() as stack:
            stack.enter_context(owned(self.settings.data_dir))
            listener = stack.enter_context(listen(self.settings.host, self.settings.port))
            stack.enter_context(in_memory(self._metrics_dir))
            try:
                url = self.settings.redis_url or self._start_redis(stack)
                self.queue = self._queue_at(url)
                self._start_service(self.queue, url, listener)
                if not self.settings.redis_url:
                    await self._until_redis_answers(self.queue)
                await self._until_ready(listener, started)
                await self._stopping.wait()
            finally:
                await self._shut_down()
        return self._status

    def _start_redis(self, stack: ExitStack) -> str:
        """Start the embedded server; its URL."""
        folder = stack.enter_context(socket_folder(self.settings.data_dir))
        path = folder / "redis.sock"
        self._keep(Child("redis", server_command(find_server(), path, self.settings.data_dir)))
        return f"unix://{path}"

    async def _until_redis_answers(self, queue: Queue) -> None:
        """Wait for the embedded server, while workers load, and take those of a former life off its list."""
        began, deadline = time.time(), time.monotonic() + START_SECONDS
        while not self._stopping.is_set():
            try:
                await queue.ping()
                break
            except RedisError as error:
                if time.monotonic() > deadline:
                    log_file = self.settings.data_dir / "redis" / "server.log"
                    raise NoServer(f"the embedded Redis does not answer; see {log_file}") from error
                await asyncio.sleep(POLL_SECONDS)
        if not self._stopping.is_set():
            await queue.forget_workers(began)

    def _queue_at(self, url: str) -> Queue:
        return Queue.open(self.settings.model_copy(update={"redis_url": url}))

    def _start_service(self, queue: Queue, url: str, listener: socket.socket) -> None:
        settings = self.settings
        # One core is left to API and Redis, for threads wait for each other at every layer: two on two cores, one of
        # them busy otherwise, took 28 s for 16 digits, and one took 0.8 s.
        threads = settings.threads or max(1, ((os.cpu_count() or 1) - 1) // settings.workers)
        shared = settings.model_copy(update={"redis_url": url, "threads": threads, "metrics_port": None})
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PFGMPP_")}
        common = inherited | shared.environment()
        common |= {
            MULTIPROCESS_DIR: str(self._metrics_dir),
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        this = [sys.executable, "-m", "service"]
        fd = listener.fileno()
        self._keep(Child("api", [*this, "api", "--fd", str(fd)], common, [fd]))
        for index in range(settings.workers):
            name = f"worker-{index + 1}"
            own = {"PFGMPP_WORKER_NAME": name, "PFGMPP_WORKER_INDEX": str(index)}
            self._keep(Child(name, [*this, "worker"], common | own), partial(self._disown, queue, name))

    async def _disown(self, queue: Queue, name: str, pid: int) -> None:
        """What a worker that died held is given back at once, not only when its leases end."""
        worker = f"{name}-{pid}"
        try:
            if batches := await queue.disown(worker):
                log.warning("leases ended", child=name, batches=batches)
            await queue.mark_lost(worker)
        except RedisError as error:
            log.warning("queue unreachable", reason=str(error))

    def _keep(self, child: Child, on_death: Callable[[int], Awaitable[None]] | None = None) -> None:
        self._children.append(child)
        keeper = asyncio.create_task(self._keep_alive(child, on_death))
        keeper.add_done_callback(partial(self._on_keeper_end, child))
        self._keepers.append(keeper)

    def _on_keeper_end(self, child: Child, keeper: asyncio.Task[None]) -> None:
        """A child that cannot even be started ends the service: better than to limp on without it."""
        if not keeper.cancelled() and (error := keeper.exception()):
            log.error("child not started", child=child.name, reason=str(error))
            self._give_up(EXIT_FAILED)

    def _give_up(self, status: int) -> None:
        self._status = status
        self._stopping.set()

    async def _keep_alive(self, child: Child, on_death: Callable[[int], Awaitable[None]] | None) -> None:
        """Start a child again whenever it ends, sooner if it ran well, until the service stops."""
        backoff = 0.1
        while not self._stopping.is_set():
            started = time.monotonic()
            process = await child.start()
            log.info("child started", child=child.name, pid=process.pid)
            if self._stopping.is_set():  # the order to stop came too early to reach it
                await child.stop(self._patience)
            status = await process.wait()
            mark_process_dead(process.pid, str(self._metrics_dir))  # type: ignore[no-untyped-call]
            if self._stopping.is_set():
                return
            if status == MISCONFIGURED:
                self._give_up(MISCONFIGURED)
                return
            backoff = 0.1 if time.monotonic() - started > STABLE_SECONDS else min(2 * backoff, LONGEST_BACKOFF_SECONDS)
            log.error("child died", child=child.name, status=status, restart_in_seconds=round(backoff, 1))
            if on_death:
                await on_death(process.pid)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff)

    async def _until_ready(self, listener: socket.socket, started: float) -> None:
        """Wait until a request would be served, and say where."""
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        import httpx  # here, for it takes 40 ms

        async with httpx.AsyncClient(base_url=url, timeout=5) as client:
            while not self._stopping.is_set():
                try:
                    response = await client.get("/readyz")
                    if response.status_code == httpx.codes.OK:
                        found = response.json()
                        workers = f"{found['workers']} of {self.settings.workers}"
                        seconds = round(time.monotonic() - started, 1)
                        log.info("ready", url=url, seconds=seconds, models=found["models"], workers=workers)
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(POLL_SECONDS)

    async def _shut_down(self) -> None:
        """API and workers first, together; Redis last, so that nothing they say is lost."""
        self._stopping.set()
        log.info("stopping", grace_seconds=self.settings.grace_seconds)
        serving = [child for child in self._children if child.name != "redis"]
        await asyncio.gather(*(child.stop(self._patience) for child in serving))
        if self.queue:
            await self.queue.close()
        await asyncio.gather(*(child.stop(self._patience) for child in self._children))
        if self._keepers:
            await asyncio.wait(self._keepers, timeout=self._patience)
        for keeper in self._keepers:
            keeper.cancel()
        log.info("stopped")


@contextmanager
def in_memory(folder: Path) -> Iterator[None]:
    """A new folder, which lies in memory where the system shares some by files, and leads there by a link.

    For files that are mapped: a process that writes to one of a full disk is killed. Those of killed services go.
    """
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    memory = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else Path(gettempdir())
    for left in memory.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > YOUNG_SECONDS:
                with held(left):  # by nobody else any more
                    shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=PREFIX, dir=memory, ignore_cleanup_errors=True) as name, held(Path(name)):
        folder.symlink_to(name)
        try:
            yield
        finally:
            folder.unlink()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone. Raises OSError if another one does, or it is gone."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there, kept over restarts of the API, so that no connection is refused meanwhile.

    Raises CannotListen when the address is not this machine's or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise CannotListen(f"cannot listen on {host}:{port}: {error}; choose another --host or --port") from error

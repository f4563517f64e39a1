"""The queue on a cluster of three nodes, also when its slot moves, and on a master that a sentinel watches."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from bench.running import until
from service.embedded import die_with_parent, find_server
from service.queue import Queue
from service.redis_client import connect
from service.settings import Settings
from tests.helpers import eventually, next_batch
from tests.test_queue import audit, claim, ended, submit

pytestmark = pytest.mark.anyio

SLOTS = 16384


def free_port() -> int:
    """A port of which the one 10,000 above it is free too: nodes of a cluster talk there."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            if port > 50_000:
                continue
            try:
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


def ask(node: "redis.Redis", *words: object) -> Any:
    return node.execute_command(*words)  # type: ignore[no-untyped-call]


def has(node: "redis.Redis", key: str) -> bool:
    """Whether a node has a key; one whose slot is elsewhere refuses to say."""
    try:
        return bool(node.exists(key))
    except redis.exceptions.MovedError:
        return False


@contextmanager
def server(folder: Path, port: int, *options: str, file: Path | None = None) -> "Iterator[redis.Redis]":
    """A server with a folder of its own, and a client of it."""
    folder.mkdir()
    place = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--logfile", str(folder / "log")]
    command = [str(find_server()), *([str(file)] if file else []), *place, "--daemonize", "no", *options]
    with subprocess.Popen(command, preexec_fn=die_with_parent()) as process:  # noqa: PLW1509
        with redis.Redis(port=port, protocol=3, decode_responses=True) as client:
            until(client.ping)
            yield client
        process.terminate()


@pytest.fixture
def cluster(tmp_path: Path) -> "Iterator[list[redis.Redis]]":
    """Three nodes that share the slots."""
    own = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--save", "", "--appendonly", "yes")
    with ExitStack() as stack:
        ports = [free_port() for _ in range(3)]
        nodes = [stack.enter_context(server(tmp_path / str(port), port, *own)) for port in ports]
        for k, node in enumerate(nodes):
            ask(node, "CLUSTER ADDSLOTSRANGE", k * SLOTS // 3, (k + 1) * SLOTS // 3 - 1)
            ask(node, "CLUSTER MEET", "127.0.0.1", ports[0])
        for node in nodes:
            until(lambda node=node: ask(node, "CLUSTER INFO")["cluster_state"] == "ok")  # type: ignore[misc]
            until(lambda node=node: len(ask(node, "CLUSTER SLOTS")) == 3)  # type: ignore[misc]
        yield nodes


def ports_of(nodes: "list[redis.Redis]") -> str:
    return ",".join(f"127.0.0.1:{node.connection_pool.connection_kwargs['port']}" for node in nodes)


async def test_a_queue_works_on_a_cluster_wherever_its_slot_is(
    cluster: "list[redis.Redis]", settings: Settings
) -> None:
    """Queues of three names, so that their slots are on different nodes; everything of one is on one."""
    homes = set()
    for name in ("main", "second", "third", "fourth"):
        own = settings.model_copy(update={"redis_url": f"redis+cluster://{ports_of(cluster)}", "queue": name})
        queue = Queue.open(own)
        job_id = await submit(queue, 3)
        await queue.wait_for_work(["digits-d2048"], 5)
        assert await ended(queue, await claim(queue), job_id) == [job_id]
        await audit(queue)
        await queue.close()
        homes.add(tuple(has(node, f"pfgmpp:{{{name}}}:job:{job_id}") for node in cluster))
    assert {sum(home) for home in homes} == {1}
    assert len(homes) > 1


async def test_a_queue_follows_its_slot_to_another_node(cluster: "list[redis.Redis]", settings: Settings) -> None:
    own = settings.model_copy(update={"redis_url": f"redis+cluster://{ports_of(cluster)}"})
    queue = Queue.open(own)
    before = await submit(queue, 1)
    slot = ask(cluster[0], "CLUSTER KEYSLOT", f"pfgmpp:{{{own.queue}}}:load")
    home = next(node for node in cluster if has(node, f"{queue.prefix}load"))
    other = next(node for node in cluster if node is not home)
    ids = {id(node): str(ask(node, "CLUSTER MYID")) for node in (home, other)}
    ask(other, "CLUSTER SETSLOT", slot, "IMPORTING", ids[id(home)])
    ask(home, "CLUSTER SETSLOT", slot, "MIGRATING", ids[id(other)])
    port = other.connection_pool.connection_kwargs["port"]
    for key in ask(home, "CLUSTER GETKEYSINSLOT", slot, 1000):
        ask(home, "MIGRATE", "127.0.0.1", port, key, 0, 5000)
    for node in (other, home, *cluster):
        ask(node, "CLUSTER SETSLOT", slot, "NODE", ids[id(other)])
    with pytest.raises(redis.ConnectionError):  # which workers and the API take for a lost connection
        await queue.read(before)
    job = await queue.read(before)
    assert job
    assert job.status == "queued"
    assert await eventually(lambda: next_batch(queue))
    await queue.close()


async def test_a_queue_is_found_by_a_sentinel(tmp_path: Path, settings: Settings) -> None:
    port, watch = free_port(), free_port()
    with ExitStack() as stack:
        stack.enter_context(server(tmp_path / "master", port, "--appendonly", "yes"))
        file = tmp_path / "sentinel.conf"
        file.write_text(f"sentinel monitor queue 127.0.0.1 {port} 1\n")
        stack.enter_context(server(tmp_path / "sentinel", watch, "--sentinel", file=file))
        url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{watch}/queue"
        queue = Queue.open(settings.model_copy(update={"redis_url": url}))
        job_id = await eventually(lambda: submitted(queue))
        assert await ended(queue, await claim(queue), job_id) == [job_id]
        await queue.close()


async def submitted(queue: Queue) -> str:
    """A job, once the sentinel knows its master."""
    try:
        return await submit(queue, 2)
    except redis.RedisError:
        return ""


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis+ring://a:1", "redis\\+ring:// is no kind of server"),
        ("http+cluster://a:1", "http\\+cluster:// is no kind"),
        ("redis+cluster://:1", "':1' is no HOST:PORT"),
        ("amqp://a", "Redis URL must specify"),
    ],
)
def test_a_url_of_nothing_known_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        connect(url, "main")

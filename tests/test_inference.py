"""The Open Inference Protocol v2: Triton's own client against a real service, and what is refused."""

import gzip
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from bench.running import Service, running
from service.access import Caller, Keys
from service.queue import Queue
from service.routes import whole
from tests.helpers import facts, worker_state

MODEL = "digits-d2048"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys") / "keys.json")


@pytest.fixture(scope="module")
def headers(keys: Keys) -> dict[str, str]:
    return {"Authorization": f"Bearer {keys.add(Caller(name='alice'))}"}


@pytest.fixture(scope="module")
def service(keys: Keys, headers: dict[str, str]) -> Iterator[Service]:
    with running(keys_file=keys.path, models=MODEL, compile=False) as service:
        service.client.headers.update(headers)
        yield service


@pytest.fixture
def triton(service: Service) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(service.url.removeprefix("http://")) as client:
        yield client


def tensor(name: str, values: Sequence[Any], datatype: str = "INT64", is_binary: bool = True) -> InferInput:
    given = InferInput(name, [len(values)], datatype)
    kind = object if datatype == "BYTES" else np.uint64 if datatype == "UINT64" else np.int64
    return given.set_data_from_numpy(np.array(values, dtype=kind), binary_data=is_binary)


def test_it_says_what_it_is(triton: InferenceServerClient, headers: dict[str, str], service: Service) -> None:
    """Its health without a key, the rest with one."""
    assert triton.is_server_live()
    assert triton.is_server_ready()
    with pytest.raises(InferenceServerException, match="a key is needed"):
        triton.get_server_metadata()
    assert triton.get_server_metadata(headers)["extensions"] == ["binary_tensor_data"]
    model = triton.get_model_metadata(MODEL, headers=headers)
    assert [each["name"] for each in model["inputs"]] == ["seed", "label"]
    assert [each["shape"] for each in model["outputs"]] == [[-1, 8, 8, 1], [-1], [-1]]
    (version,) = model["versions"]
    assert service.client.get("/v1/models").json()[0]["checkpoint_sha256"].startswith(version)
    assert triton.get_model_metadata(MODEL, version, headers) == model
    assert triton.is_model_ready(MODEL, headers=headers)
    assert triton.is_model_ready(MODEL, version, headers)
    assert not triton.is_model_ready(MODEL, "1", headers)
    assert not triton.is_model_ready("resnet", headers=headers)
    (entry,) = triton.get_model_repository_index(headers)
    assert (entry["name"], entry["version"], entry["state"]) == (MODEL, version, "READY")


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("is_binary", [True, False])
def test_seeds_become_images(
    triton: InferenceServerClient,
    service: Service,
    headers: dict[str, str],
    is_binary: bool,
    compression: str | None,
) -> None:
    """Those that /v1/samples makes of the same seeds and classes, however they are sent."""
    inputs = [
        tensor("seed", [5, 2**40], "UINT64", is_binary),
        tensor("label", ["7", "3"], "BYTES", is_binary) if is_binary else tensor("label", [7, 3], is_binary=False),
    ]
    outputs = None if is_binary else [InferRequestedOutput(name, binary_data=False) for name in ("image", "label")]
    answer = triton.infer(
        MODEL,
        inputs,
        outputs=outputs,
        request_id="mine",
        headers=headers.copy(),
        parameters={"steps": 9},
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    images, response = answer.as_numpy("image"), answer.get_response()
    assert (images.dtype, images.shape) == (np.uint8, (2, 8, 8, 1))
    assert (response["id"], response["model_name"]) == ("mine", MODEL)
    assert answer.as_numpy("label").tolist() == [7, 3]
    if is_binary:
        assert answer.as_numpy("seed").tolist() == [5, 2**40]
    else:
        assert answer.as_numpy("seed") is None
    job = service.ended(
        service.submit(dataset="digits", D=2048, count=2, seeds=[5, 2**40], labels=[7, 3], steps=9)["id"]
    )
    npz = Path(service.folder, "images.npz")
    npz.write_bytes(service.client.get(job["links"]["npz"]).content)
    with np.load(npz) as expected:
        assert np.array_equal(images, expected["images"])
    assert service.job(response["parameters"]["job"])["status"] == "succeeded"


def test_classes_are_drawn_when_left_out(
    triton: InferenceServerClient, service: Service, headers: dict[str, str]
) -> None:
    (version,) = triton.get_model_metadata(MODEL, headers=headers)["versions"]
    inputs = [tensor("seed", range(20))]
    answers = [triton.infer(MODEL, inputs, version, headers=headers, parameters={"steps": 2}) for _ in range(2)]
    first, again = (answer.as_numpy("label") for answer in answers)
    assert len(set(first.tolist())) > 3
    assert np.array_equal(first, again)
    with pytest.raises(InferenceServerException, match="there is no version '1'"):
        triton.infer(MODEL, inputs, "1", headers=headers)
    with pytest.raises(InferenceServerException, match="there is: digits-d2048"):
        triton.infer("resnet", inputs, headers=headers)


GOOD = {"inputs": [{"name": "seed", "shape": [1], "datatype": "INT64", "data": [1]}]}
SEED, LABEL = ({"name": name, "shape": [1], "datatype": "INT64"} for name in ("seed", "label"))
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"inputs": []}, "inputs"),
    ({"inputs": [LABEL | {"data": [1]}]}, "one that is named seed"),
    ({"inputs": [SEED | {"data": [1]}, SEED | {"data": [1]}]}, "another seed"),
    ({"inputs": [SEED]}, "either data or parameters.binary_data_size"),
    ({"inputs": [SEED | {"data": [1, 2]}]}, "has 2 values"),
    ({"inputs": [SEED | {"data": ["1"]}]}, "is no INT64"),
    ({"inputs": [SEED | {"data": [True]}]}, "inputs.0.data"),
    ({"inputs": [SEED | {"data": [2**63]}]}, "is no INT64"),
    ({"inputs": [SEED | {"data": [2**63], "datatype": "UINT64"}]}, "seed.0: must be less than"),
    ({"inputs": [SEED | {"data": [-1]}]}, "seed.0"),
    ({"inputs": [SEED | {"data": ["x"], "datatype": "BYTES"}]}, "seed.0"),
    ({"inputs": [SEED | {"data": [1.5], "datatype": "FP32"}]}, "datatype"),
    ({"inputs": [SEED | {"data": [[1]], "shape": [1, 1]}]}, "shape"),
    ({"inputs": [SEED | {"parameters": {"binary_data_size": 8}}]}, "of which the body has 0"),
    ({"inputs": [SEED | {"data": [1]}, LABEL | {"data": [10]}]}, "label.0: must be a class index"),
    ({"inputs": [SEED | {"data": [1]}, LABEL | {"data": [1, 2], "shape": [2]}]}, "as many values as seed"),
    (GOOD | {"inputs": [{"name": "image", "shape": [1], "datatype": "UINT8", "data": [1]}]}, "inputs.0.name"),
    (GOOD | {"outputs": [{"name": "logits"}]}, "outputs.0.name"),
    (GOOD | {"outputs": [{"name": "image", "parameters": {"classification": 2}}]}, "classification"),
    (GOOD | {"parameters": {"steps": 999}}, "parameters.steps: must be at most 256"),
    (GOOD | {"parameters": {"scale": 2}}, "parameters.scale"),
    (GOOD | {"parameters": {"window": {"width": 8, "height": 8}}}, "parameters.window"),
    ({"inputs": [SEED | {"data": list(range(257)), "shape": [257]}]}, "seed: must be at most 256"),
]


@pytest.mark.parametrize(("body", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_wrong_is_named(service: Service, body: dict[str, Any], words: str) -> None:
    refused = service.client.post(f"/v2/models/{MODEL}/infer", json=body)
    assert refused.status_code == 400, refused.text
    assert list(refused.json()) == ["error"]
    assert words in refused.json()["error"]


def with_bytes(count: int, content: bytes, datatype: str = "INT64") -> tuple[bytes, dict[str, str]]:
    """A request whose seeds are so many bytes behind the JSON."""
    parameters = {"binary_data_size": len(content)}
    head = {"inputs": [SEED | {"shape": [count], "datatype": datatype, "parameters": parameters}]}
    text = json.dumps(head).encode()
    return text + content, {"Inference-Header-Content-Length": str(len(text))}


EIGHT, HEADER = with_bytes(1, b"\1" + bytes(7))
PLAIN = json.dumps(GOOD).encode()


@pytest.mark.parametrize(
    ("body", "said", "status", "words"),
    [
        (*with_bytes(1, b"1234567"), 400, "is no INT64"),
        (*with_bytes(2, bytes(8)), 400, "has 1 values"),
        (*with_bytes(1, struct.pack("<I", 9) + b"short", "BYTES"), 400, "longer than what is left"),
        (*with_bytes(1, b"\1\0", "BYTES"), 400, "is no BYTES"),
        (*with_bytes(1, struct.pack("<I", 1) + b"\xff", "BYTES"), 400, "is no BYTES"),
        (EIGHT + b"more", HEADER, 400, "4 bytes behind the last input"),
        (EIGHT, {}, 400, "invalid JSON"),
        (EIGHT, {"Inference-Header-Content-Length": "-1"}, 400, "how many bytes of the body are JSON"),
        (EIGHT, {"Inference-Header-Content-Length": "9" * 400}, 400, "how many bytes of the body are JSON"),
        (EIGHT, {"Inference-Header-Content-Length": "²"}, 400, "how many bytes of the body are JSON"),
        (PLAIN, {"Content-Encoding": "gzip"}, 400, "is not what Content-Encoding says"),
        (gzip.compress(PLAIN, mtime=0)[:-4], {"Content-Encoding": "gzip"}, 400, "too early"),
        (gzip.compress(PLAIN, mtime=0) * 2, {"Content-Encoding": "gzip"}, 400, "too late"),
        (zlib.compress(bytes(2_000_000)), {"Content-Encoding": "deflate"}, 413, "larger than 1,000,000 bytes"),
        (PLAIN, {"Content-Encoding": "br"}, 415, "gzip and deflate are"),
        (PLAIN, {"Content-Type": "text/plain"}, 415, "application/octet-stream"),
        (PLAIN, {"Origin": "https://example.com"}, 415, "application/octet-stream"),
        (b"\xff\xfe", {}, 400, "invalid JSON"),
    ],
    ids=lambda value: "" if isinstance(value, bytes | dict) else None,
)
def test_bytes_that_are_wrong_are_refused(
    service: Service, body: bytes, said: dict[str, str], status: int, words: str
) -> None:
    headers = {name.encode(): value.encode() for name, value in said.items()}
    refused = service.client.post(f"/v2/models/{MODEL}/infer", content=body, headers=headers)
    assert (refused.status_code, words in refused.json()["error"]) == (status, True), refused.text


@pytest.mark.anyio
async def test_refusals_are_worded_as_the_protocol_has_it(
    client: httpx.AsyncClient, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "MOST_SECONDS", 0.05)

    async def refused(method: str, path: str, **body: Any) -> tuple[int, list[str]]:
        response = await client.request(method, path, **body)
        return response.status_code, list(response.json())

    assert (await client.get("/v2/health/live")).json() == {"live": True}
    assert await refused("GET", "/v2/health/ready") == (503, ["error"])
    assert await refused("GET", "/v2/models/x/stats") == (404, ["error"])
    assert await refused("GET", f"/v2/models/{MODEL}/infer") == (405, ["error"])
    assert await refused("POST", f"/v2/models/{MODEL}/infer", json=GOOD) == (503, ["error"])
    await queue.announce(worker_state(facts("faces", resolution=1024, channels=3, classes=())))
    assert (await client.get("/v2/models/faces-d2048")).json()["inputs"] == [SEED | {"shape": [-1]}]
    too_long = await client.post("/v2/models/faces-d2048/infer", json=GOOD)
    assert "ask for it with binary_data" in too_long.json()["error"]
    no_label = await client.post("/v2/models/faces-d2048/infer", json=GOOD | {"outputs": [{"name": "label"}]})
    assert "no classes" in no_label.json()["error"]
    in_vain = GOOD | {"parameters": {"binary_data_output": True}}
    assert await refused("POST", "/v2/models/faces-d2048/infer", json=in_vain) == (504, ["error"])
    (job,) = (await client.get("/v1/jobs")).json()["jobs"]
    assert job["status"] == "canceled"

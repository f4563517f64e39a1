"""Tensors of the Open Inference Protocol v2: what a request and an answer look like, as JSON and as bytes behind it."""

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from service.problems import BodyTooLarge, UnknownEncoding, parsed, wrong
from service.request import SampleOptions

Array = np.ndarray[Any, Any]

INTEGERS = {"INT32": "<i4", "INT64": "<i8", "UINT32": "<u4", "UINT64": "<u8"}
DATATYPES = {"uint8": "UINT8", "int64": "INT64"}
"""Of what is answered, by numpy's names."""

MOST_JSON_VALUES = 1_000_000
"""In one tensor as JSON; a number takes some ten times its bytes there."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class InputParameters(_Part):
    """Where an input is."""

    binary_data_size: int | None = Field(None, ge=0, description="Its bytes behind the JSON; left out, `data` has it.")


class InputTensor(_Part):
    """Seeds, or classes, one for each image."""

    name: Literal["seed", "label"]
    shape: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, max_length=1, description="How many images.")
    datatype: Literal["INT32", "INT64", "UINT32", "UINT64", "BYTES"] = Field(
        description="Classes are integers, or by name BYTES."
    )
    parameters: InputParameters = InputParameters()
    data: list[int | str] | None = None


class OutputParameters(_Part):
    """How an output is wanted."""

    binary_data: bool | None = Field(None, description="As bytes behind the JSON.")


class RequestedOutput(_Part):
    """An output that is wanted."""

    name: Literal["image", "label", "seed"]
    parameters: OutputParameters = OutputParameters()


class InferParameters(SampleOptions):
    """How to sample, as in the body of `/v1/samples`, and how all outputs are wanted."""

    binary_data_output: bool = Field(False, description="All outputs as bytes behind the JSON, unless one says.")


class InferRequest(_Part):
    """A request for images of the seeds in `seed`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "inputs": [
                        {"name": "seed", "shape": [2], "datatype": "INT64", "data": [1, 2]},
                        {"name": "label", "shape": [2], "datatype": "BYTES", "data": ["7", "3"]},
                    ],
                    "parameters": {"steps": 18},
                }
            ]
        }
    )

    id: str | None = Field(None, max_length=255, description="Comes back with the answer.")
    parameters: InferParameters = InferParameters()
    inputs: list[InputTensor] = Field(min_length=1, max_length=2)
    outputs: list[RequestedOutput] | None = Field(None, min_length=1, max_length=3, description="All if left out.")

    def is_binary(self, name: str) -> bool:
        """Whether an output goes as bytes."""
        for output in self.outputs or ():
            if output.name == name and output.parameters.binary_data is not None:
                return output.parameters.binary_data
        return self.parameters.binary_data_output


class OutputTensor(BaseModel):
    """What is answered."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = Field(None, description="`binary_data_size`, of its bytes behind the JSON.")
    data: list[int] | None = Field(None, description="Row by row, if not as bytes.")


class InferResponse(BaseModel):
    """Images, with their seeds and classes."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, str] = Field(description="`job`, by whose id `/v1/jobs/{id}` knows more.")
    outputs: list[OutputTensor]


def inflated(body: bytes, encoding: str, most: int) -> bytes:
    """A body as it was before it was sent with such a Content-Encoding.

    Raises UnknownEncoding, BodyTooLarge for more than so many bytes, or InvalidRequest.
    """
    if encoding in {"", "identity"}:
        return body
    if encoding not in {"gzip", "deflate"}:
        raise UnknownEncoding(f"the Content-Encoding {encoding[:32]!r} is not known; gzip and deflate are")
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)  # of either kind
    try:
        inflated = stream.decompress(body, most + 1)
    except zlib.error as error:
        raise wrong("body", f"is not what Content-Encoding says ({error})") from error
    if len(inflated) > most:
        raise BodyTooLarge(f"the body is larger than {most:,} bytes")
    if not stream.eof or stream.unused_data:
        raise wrong("body", "is not what Content-Encoding says: it ends too early, or too late")
    return inflated


def unpacked(body: bytes, header_length: str | None) -> tuple[InferRequest, Mapping[str, Sequence[int | str]]]:
    """A request, and the values of its inputs by name; its JSON ends where Inference-Header-Content-Length says.

    Raises InvalidRequest.
    """
    end = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdecimal() and int(header_length[:20]) <= len(body)):
            raise wrong("Inference-Header-Content-Length", "must be how many bytes of the body are JSON")
        end = int(header_length)
    request = parsed(InferRequest, body[:end])
    return request, _inputs(request, body[end:])


def _inputs(request: InferRequest, behind: bytes) -> dict[str, Sequence[int | str]]:
    found: dict[str, Sequence[int | str]] = {}
    for k, tensor in enumerate(request.inputs):
        size = tensor.parameters.binary_data_size
        if tensor.name in found:
            raise wrong(f"inputs.{k}", f"there is another {tensor.name}")
        if (size is None) == (tensor.data is None):
            raise wrong(f"inputs.{k}", "must have either data or parameters.binary_data_size")
        if size is not None and size > len(behind):
            raise wrong(f"inputs.{k}", f"has {size} bytes, of which the body has {len(behind)}")
        try:
            values = _read(tensor, behind[:size]) if size is not None else _checked(tensor)
        except (ValueError, OverflowError, struct.error) as error:
            raise wrong(f"inputs.{k}", f"is no {tensor.datatype} ({error})") from error
        if len(values) != tensor.shape[0]:
            raise wrong(f"inputs.{k}", f"has {len(values)} values, but its shape is {tensor.shape}")
        found[tensor.name] = values
        behind = behind[size or 0 :]
    if behind:
        raise wrong("body", f"has {len(behind)} bytes behind the last input")
    if "seed" not in found:
        raise wrong("inputs", "must have one that is named seed, with a seed for each image")
    if "label" in found and len(found["label"]) != len(found["seed"]):
        raise wrong("inputs", "label must have as many values as seed")
    return found


def _read(tensor: InputTensor, content: bytes) -> Sequence[int | str]:
    """The values in the bytes of an input. Raises ValueError or struct.error."""
    if tensor.datatype == "BYTES":
        return list(_strings(content))
    values: list[int | str] = np.frombuffer(content, INTEGERS[tensor.datatype]).tolist()
    return values


def _strings(content: bytes) -> Iterator[str]:
    """Texts, each behind its length. Raises ValueError or struct.error."""
    place = 0
    while place < len(content):
        (length,) = struct.unpack_from("<I", content, place)
        place += 4
        if length > len(content) - place:
            raise ValueError("a text is longer than what is left")
        yield content[place : place + length].decode()
        place += length


def _checked(tensor: InputTensor) -> Sequence[int | str]:
    """The values that an input has as JSON. Raises ValueError or OverflowError."""
    values, kind = tensor.data or [], str if tensor.datatype == "BYTES" else int
    if not all(isinstance(value, kind) for value in values):
        raise ValueError("other values are among it")
    if kind is int:
        np.array(values, INTEGERS[tensor.datatype])
    return values


def packed(response: InferResponse, tensors: Mapping[str, Array], request: InferRequest) -> tuple[bytes, int | None]:
    """An answer with these outputs, and how many bytes of it are JSON if there are others."""
    behind = []
    for name, tensor in tensors.items():
        output = OutputTensor(name=name, datatype=DATATYPES[str(tensor.dtype)], shape=list(tensor.shape))
        if request.is_binary(name):
            behind.append(tensor.tobytes())
            output.parameters = {"binary_data_size": len(behind[-1])}
        else:
            output.data = tensor.ravel().tolist()
        response.outputs.append(output)
    head = response.model_dump_json(exclude_none=True).encode()
    return b"".join((head, *behind)), len(head) if behind else None

"""Files as the official code writes them: those recorded from it, and others of the same build with any contents."""

import io
import json
import lzma
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.models.helpers import FIXTURES, recorded

RECORDED = FIXTURES / "official"
INDEX: dict[str, Any] = json.loads((RECORDED / "index.json").read_text())
"""The recorded files by name: their SHA-256, whose weights they hold, and where each tensor lies."""

SOURCE = "raise RuntimeError('source code inside a checkpoint was executed')\n"


def recorded_file(name: str) -> bytes:
    """A recorded file to the byte: it is kept without the weights, which are also those of a recorded network."""
    content = bytearray(lzma.decompress((RECORDED / f"{name}.xz").read_bytes()))
    tensors = load_file(FIXTURES / f"{INDEX[name]['weights']}.safetensors")
    for key, places in INDEX[name]["places"].items():
        raw = tensors[key].numpy().tobytes()
        for place in places:
            content[place : place + len(raw)] = raw
    return bytes(content)


class Module:
    """An object of a class of the official code, pickled as those are."""

    def __init__(self, kind: str, **state: Any):
        self.kind = kind
        self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.kind, "state": self.state}
        return _reconstruct_persistent_obj, (meta,)

    def part(self, name: str) -> "Module":
        """The module of a dotted name."""
        found = self
        for each in name.split("."):
            found = found.state["_modules"][each]
        return found


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> Any:
    raise AssertionError(f"called for {meta['class_name']}")


@contextmanager
def official_names() -> Iterator[None]:
    """Within it, the function above can be pickled under the name that it has in the official code."""
    module = ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    _reconstruct_persistent_obj.__module__ = module.__name__
    parent = ModuleType("torch_utils")
    parent.persistence = module  # type: ignore[attr-defined]
    sys.modules |= {"torch_utils": parent, module.__name__: module}
    try:
        yield
    finally:
        del sys.modules["torch_utils"], sys.modules[module.__name__]


def pickled(**contents: Any) -> bytes:
    """A `network-snapshot` file."""
    with official_names():
        return pickle.dumps(contents, protocol=4)


def saved(**contents: Any) -> bytes:
    """A `training-state` file."""
    file = io.BytesIO()
    with official_names():
        torch.save(contents, file)
    return file.getvalue()


def network(name: str) -> Module:
    """A recorded network as a module of the official code, with the options that it was recorded with."""
    options = recorded("networks")[name]
    tensors = load_file(FIXTURES / f"{name}.safetensors")
    state = {key.removeprefix("state."): tensor for key, tensor in tensors.items() if key.startswith("state.")}
    own = {key: options[key] for key in ("img_resolution", "img_channels", "label_dim")}
    kwargs = {
        key: value for key, value in options.items() if key not in {"precond", "sigma_min", "sigma_max", "params"}
    }
    root = tree(options.get("precond", "EDMPrecond"), state)
    root.state |= own | {"_init_kwargs": kwargs}
    model = root.part("model")
    model.kind = options["model_type"]
    model.state |= {"_init_kwargs": {key: value for key, value in kwargs.items() if key != "model_type"}}
    fourier = "map_noise" in model.state["_modules"]
    model.state["_modules"].setdefault("map_noise", Module("PositionalEmbedding"))
    model.part("map_noise").kind = "FourierEmbedding" if fourier else "PositionalEmbedding"
    for part in model.part("enc").state["_modules"].values():
        if "num_heads" in part.state:
            part.state |= {"dropout": options["dropout"]}
            part.state["_init_kwargs"] = {"resample_filter": options.get("resample_filter", [1, 1])}
    return root


def tree(kind: str, tensors: dict[str, Tensor]) -> Module:
    """Modules with these tensors by their dotted names, and with the attributes that official ones have."""
    module = Module(kind, _parameters={}, _buffers={}, _modules={})
    children: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if rest:
            children.setdefault(first, {})[rest] = tensor
        elif first in {"u", "freqs", "resample_filter"}:
            module.state["_buffers"][first] = tensor
        else:
            module.state["_parameters"][first] = nn.Parameter(tensor)
    module.state["_modules"] |= {name: tree("Module", below) for name, below in children.items()}
    if "weight" in tensors and tensors["weight"].dim() > 1:
        outputs, inputs = tensors["weight"].shape[:2]
        module.state |= {"in_features": inputs, "out_features": outputs, "out_channels": outputs}
    if "conv0.weight" in tensors:
        module.state |= {"out_channels": len(tensors["conv0.weight"]), "num_heads": int("qkv.weight" in tensors)}
    return module

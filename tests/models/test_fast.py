"""The precision `fast`: each way to run a network, against running it plainly."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models import checkpoint
from models.card import SHIPPED, ExactOptions, UNetOptions, checkpoint_files
from models.checkpoint import Model
from models.fast import Way, WinogradConv, fastest, gain, winograd_pays
from models.generate import Generator, UInt8Array
from models.layers import Conv
from models.shapes import random_batch
from tests.models.helpers import card, random_tensors, relative_error, shapes

WINOGRAD = Way(winograd=("model.enc.16x16_block0.conv1", "model.dec.16x16_block1.conv0"))


@pytest.fixture(scope="module")
def ddpmpp(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A DDPM++ network with random weights, in two resolutions and with attention."""
    architecture = UNetOptions(model_channels=32, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(8,))
    own = card(resolution=16, architecture=architecture)
    path = tmp_path_factory.mktemp("ddpmpp") / "model.safetensors"
    checkpoint.save(path, own, random_tensors(own))
    return checkpoint.load(path)


def psnr(one: UInt8Array, other: UInt8Array) -> float:
    """The mean peak signal-to-noise ratio of pairs of images in dB; 100 for equal ones."""
    squared = np.square(one.astype(np.float64) - other).mean((1, 2, 3))
    return float(np.minimum(100, 10 * np.log10(255**2 / np.maximum(squared, 1e-9))).mean())


def plain_3x3(network: nn.Module) -> tuple[str, ...]:
    """The convolutions that Winograd's algorithm could do."""
    return tuple(
        name
        for name, module in network.named_modules()
        if isinstance(module, Conv) and module.kernel_size == (3, 3) and not module.resampling
    )


def in_way(model: Model, way: Way) -> Model:
    return Model(model.card, way.of(model.network), model.sha256, model.device)


@pytest.mark.parametrize("size", [(1, 4, 4), (2, 16, 16), (1, 5, 7), (3, 1, 9), (1, 33, 18), (40, 8, 8)])
@pytest.mark.parametrize("channels", [(1, 1), (3, 8), (64, 32)])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_winograd_is_the_convolution(size: tuple[int, int, int], channels: tuple[int, int], bias: bool) -> None:
    """In whole tiles and in parts of them, in one piece and in several."""
    torch.manual_seed(0)
    conv = nn.Conv2d(*channels, 3, padding=1, bias=bias)
    images, height, width = size
    x = torch.randn(images, channels[0], height, width).to(memory_format=torch.channels_last)
    assert relative_error(WinogradConv(conv)(x), conv(x)) < 5e-6


@torch.inference_mode()
def test_winograd_keeps_constant_images_and_single_pixels() -> None:
    """Ones under a filter of ones count the pixels in reach; a pixel shows the filter, turned round."""
    conv = nn.Conv2d(1, 1, 3, padding=1)
    conv.weight.fill_(1)
    conv.bias.fill_(0.5)  # type: ignore[union-attr]
    counted = WinogradConv(conv)(torch.ones(1, 1, 3, 4))[0, 0]
    torch.testing.assert_close(
        counted, torch.tensor([[4.5, 6.5, 6.5, 4.5], [6.5, 9.5, 9.5, 6.5], [4.5, 6.5, 6.5, 4.5]])
    )
    conv.weight.copy_(torch.arange(9.0).view(1, 1, 3, 3))
    pixel = torch.zeros(1, 1, 5, 5)
    pixel[0, 0, 2, 2] = 1
    shown = WinogradConv(conv)(pixel)[0, 0, 1:4, 1:4] - 0.5
    torch.testing.assert_close(shown, torch.arange(9.0).view(3, 3).flip(0, 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("way", "error"), [(WINOGRAD, 1e-5), (Way("bfloat16"), 0.03), (Way("float16"), 0.01)], ids=str)
@torch.inference_mode()
def test_an_estimate_is_nearly_that_of_the_plain_network(ddpmpp: Model, way: Way, error: float) -> None:
    batch = random_batch(ddpmpp, 3)
    found, plain = way.of(ddpmpp.network)(*batch), ddpmpp.network(*batch)
    assert found.dtype == torch.float32
    assert 0 < relative_error(found, plain) < error


@pytest.mark.parametrize("way", [WINOGRAD, Way("bfloat16"), Way("float16")], ids=str)
def test_another_way_leaves_the_model_as_it_is_and_shares_its_tensors(ddpmpp: Model, way: Way) -> None:
    before = {name: tensor.clone() for name, tensor in ddpmpp.network.state_dict().items()}
    other = way.of(ddpmpp.network)
    for name, tensor in ddpmpp.network.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.dtype == torch.float32
    plain, found = dict(ddpmpp.network.named_parameters()), dict(other.named_parameters())
    shared = {name for name in found if plain[name] is found[name]}
    if way.winograd:
        assert shared == found.keys()
        assert plain.keys() - found.keys() == {f"{name}.weight" for name in way.winograd}
    else:
        outer = (".map_", ".enc.16x16_conv.", ".dec.16x16_aux_")
        assert shared == {name for name in plain if any(part in name for part in outer)}


def test_the_plain_way_is_the_network_itself(ddpmpp: Model) -> None:
    assert Way().of(ddpmpp.network) is ddpmpp.network


@pytest.mark.parametrize(
    ("way", "name"), [(Way(), "float32"), (Way("bfloat16"), "bfloat16"), (WINOGRAD, "float32-winograd")]
)
def test_a_way_has_a_name(way: Way, name: str) -> None:
    assert str(way) == name


def test_the_fastest_way_is_one_that_runs(ddpmpp: Model) -> None:
    way = fastest(ddpmpp)
    assert str(way) in {"float32", "float32-winograd", "bfloat16"}
    batch = random_batch(ddpmpp, 2)
    with torch.inference_mode():
        assert relative_error(way.of(ddpmpp.network)(*batch), ddpmpp.network(*batch)) < 0.03


def test_a_network_that_is_no_unet_is_run_as_it_is(tmp_path: Path) -> None:
    own = card(architecture=ExactOptions(examples=3))
    checkpoint.save(tmp_path / "m.safetensors", own, random_tensors(own) | {"data_class": torch.arange(3)})
    model = checkpoint.load(tmp_path / "m.safetensors")
    way = fastest(model)
    assert str(way) == "float64"
    assert way.of(model.network) is model.network


@torch.inference_mode()
def test_winograd_is_tried_on_plain_3x3_convolutions_of_large_images_alone(
    ddpmpp: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.fast.WORTH", 0.0)
    every = {name for name in plain_3x3(ddpmpp.network) if "16x16" in name}
    assert set(winograd_pays(ddpmpp.network, *random_batch(ddpmpp, 1))) == every
    monkeypatch.setattr("models.fast.WORTH", math.inf)
    assert winograd_pays(ddpmpp.network, *random_batch(ddpmpp, 1)) == ()


def test_doing_nothing_is_a_gain() -> None:
    x = torch.zeros(200, 200)
    assert gain(lambda x: x @ x @ x, lambda x: x, x) > 1


@pytest.mark.parametrize("file", [*checkpoint_files(SHIPPED)], ids=lambda path: path.stem)
def test_nobody_sees_the_difference(file: Path) -> None:
    """Every way against exact, from the same seeds, with Winograd wherever it can be.

    Measured on 64 images: all bytes equal with Winograd; bfloat16 47.5 dB at D = 1 and 59 dB at the others, float16 61
    and 80 dB.
    """
    model = checkpoint.load(file)
    seeds, labels = range(8), [seed % 10 for seed in range(8)]
    exact = Generator(model, shapes(8)).images(seeds, labels, 18)
    for way in (fastest(model), Way(winograd=plain_3x3(model.network)), Way("bfloat16")):
        found = Generator(in_way(model, way), shapes(8)).images(seeds, labels, 18)
        assert psnr(found, exact) >= 40

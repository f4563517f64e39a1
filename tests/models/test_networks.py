"""DDPM++, NCSN++ and ADM: recorded outputs, whatever the preconditioning, and the tensors of the published models."""

from functools import cache

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.card import VP, UNetOptions
from models.checkpoint import build
from models.levels import LevelsError, iddpm_levels, rounded
from models.precond import Denoiser, vp_time
from tests.models.helpers import FIXTURES, card, options, parameters, recorded, relative_error

NETWORKS = recorded("networks")
PUBLISHED = recorded("published")
TOLERANCE = 1e-4
"""Promised; 4e-7 is what we measure. An error in the graph shows as 1e-2 or more, as the weights are random."""

EVERY_NETWORK = pytest.mark.parametrize("name", NETWORKS)


@cache
def numbers(name: str) -> dict[str, Tensor]:
    return load_file(FIXTURES / f"{name}.safetensors")


@cache
def network(name: str) -> Denoiser:
    """A recorded network with its recorded weights."""
    given = NETWORKS[name]
    network = Denoiser(options(given), given["img_resolution"], given["img_channels"], given["label_dim"])
    prefix = "state."
    network.load_state_dict(
        {key.removeprefix(prefix): tensor for key, tensor in numbers(name).items() if key.startswith(prefix)}
    )
    return network.eval().requires_grad_(False)


@EVERY_NETWORK
def test_denoised_images_are_the_recorded_ones(name: str) -> None:
    given = numbers(name)
    denoised = network(name)(given["x"], given["sigma"], given.get("class_labels"))
    assert relative_error(denoised, given["denoised"]) < TOLERANCE
    for one, expected in zip(denoised, given["denoised"], strict=True):
        assert relative_error(one, expected) < TOLERANCE
    assert parameters(network(name)) == NETWORKS[name]["params"]


@pytest.mark.parametrize("name", [name for name, given in NETWORKS.items() if given["label_dim"]])
def test_absent_labels_count_as_zeros(name: str) -> None:
    given = numbers(name)
    for labels in (None, torch.zeros_like(given["class_labels"])):
        denoised = network(name)(given["x"], given["sigma"], labels)
        assert relative_error(denoised, given["denoised_null_label"]) < TOLERANCE
        assert relative_error(denoised, given["denoised"]) > 0.1


@pytest.mark.parametrize("name", [name for name, given in NETWORKS.items() if given.get("augment_dim")])
def test_augmentation_labels_condition_the_network(name: str) -> None:
    given = numbers(name)
    denoised = network(name)(given["x"], given["sigma"], given.get("class_labels"), given["augment_labels"])
    assert relative_error(denoised, given["denoised_augmented"]) < TOLERANCE
    assert relative_error(denoised, given["denoised"]) > 0.05


@EVERY_NETWORK
def test_images_at_different_noise_levels_share_a_call(name: str) -> None:
    given = numbers(name)
    x, sigma, labels = given["x"], given["sigma"], given.get("class_labels")
    together = network(name)(x, sigma, labels)
    for i in range(len(x)):
        own = None if labels is None else labels[i : i + 1]
        alone = network(name)(x[i : i + 1], sigma[i : i + 1], own)
        assert relative_error(together[i : i + 1], alone) < 1e-5


def test_an_iddpm_network_is_asked_at_the_noise_levels_of_its_table_alone() -> None:
    table = network("adm-iddpm").table
    assert table == pytest.approx(iddpm_levels(), rel=2e-3)
    assert rounded([table[3] * 1.01, table[4], 0.0], table) == [table[3], table[4], 0.0]
    with pytest.raises(LevelsError, match="2 steps are too many"):
        rounded([table[3] * 1.01, table[3], 0.0], table)
    assert network("ddpmpp-vp").table == ()
    assert rounded([1.5, 0.0], ()) == [1.5, 0.0]


def test_vp_time_is_the_inverse_of_its_noise_level() -> None:
    t, vp = torch.linspace(1e-5, 1, 50, dtype=torch.float64), VP()
    sigma = (0.5 * vp.beta_d * t.square() + vp.beta_min * t).expm1().sqrt()
    torch.testing.assert_close(vp_time(sigma, vp), t, rtol=1e-8, atol=0)
    assert float(sigma[-1]) == pytest.approx(NETWORKS["ddpmpp-vp"]["sigma_max"], rel=1e-6)


def test_a_float64_state_is_denoised_in_float32() -> None:
    given = numbers("ncsnpp-edm-uncond")
    model = network("ncsnpp-edm-uncond")
    denoised = model(given["x"].to(torch.float64), given["sigma"].to(torch.float64))
    assert denoised.dtype == torch.float32
    assert torch.equal(denoised, model(given["x"], given["sigma"]))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_full_size_model_takes_exactly_the_published_tensors(name: str) -> None:
    given = PUBLISHED[name]
    config = given["config"]
    network = build(
        card(
            resolution=config["img_resolution"],
            channels=config["img_channels"],
            classes=tuple(map(str, range(config["label_dim"]))),
            architecture=options(config),
        )
    )
    tensors = network.state_dict()
    assert {key: list(tensor.shape) for key, tensor in tensors.items()} == given["tensors"]
    assert {tensor.device.type for tensor in tensors.values()} == {"meta"}
    assert parameters(network) == given["params"]


@pytest.mark.parametrize("encoder", ["standard", "residual"])
def test_an_untrained_network_gives_back_what_skips_it(encoder: str) -> None:
    """Its last layer is near zero: D(x, sigma) is c_skip x."""
    changes = {"encoder": encoder, "embedding": "positional" if encoder == "standard" else "fourier"}
    architecture = UNetOptions.model_validate(card().architecture.model_dump() | changes)
    network = Denoiser(architecture, 8, 3, 3)
    network.model.init_weights()
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.01, 0.5, 1.0, 80.0])
    c_skip = (0.25 / (sigma.square() + 0.25))[:, None, None, None]
    torch.testing.assert_close(network(x, sigma), c_skip * x, atol=1e-3, rtol=1e-3)

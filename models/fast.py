"""Networks for the precision `fast`: as quick as the device allows, by a difference nobody can see.

Half precision where the device has units for it, else float32 with Winograd's convolutions where they pay. The choice
is measured: on a CPU with AMX, bfloat16 is 4 times as fast as float32; on one without, 300 times slower.
"""

import copy
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import Model
from models.layers import Block, Conv
from models.precond import Denoiser
from models.shapes import Network, Shapes, random_batch, timed, timed_shapes

Precision = Literal["exact", "fast"]

N = TypeVar("N", bound=nn.Module)

PROBE_SIZE = 4
"""Images in the batch by which ways are compared."""

WORTH = 1.15
"""What promises less of a gain is not worth another network's memory."""


@dataclass(frozen=True)
class Way:
    """How a network is run: the precision inside it, and the convolutions done by Winograd's algorithm."""

    dtype: str = "float32"
    winograd: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.dtype}-winograd" if self.winograd else self.dtype

    def of(self, network: nn.Module) -> nn.Module:
        """A network that runs so and shares with this one what tensors it can; this one if nothing is different."""
        if isinstance(network, Denoiser) and self.dtype != "float32":
            return in_precision(network, getattr(torch, self.dtype))
        if self.winograd:
            return with_winograd(network, self.winograd)
        return network


@dataclass(frozen=True)
class Fast:
    """The fastest way found, and the batch sizes in which to run it."""

    way: Way
    shapes: Shapes


def fastest_with_shapes(model: Model, largest: int) -> Fast:
    """The fastest way to run a model's network, with the sizes 1, 2, 4 ... up to `largest`."""
    way = fastest(model)
    return Fast(way, timed_shapes(model, largest, way.of(model.network)))


@torch.inference_mode()
def fastest(model: Model) -> Way:
    """The fastest way found to run a model's network on its device, and all others of the same make.

    Takes a few evaluations of a small batch. A network that is not a U-Net is run as it is.
    """
    network, batch = model.network, random_batch(model, PROBE_SIZE)
    if not isinstance(network, Denoiser):
        return Way(str(network(*batch).dtype).removeprefix("torch."))
    dtype = torch.float16 if model.device.type == "cuda" else torch.bfloat16
    if units_gain(dtype, model.device) > WORTH and gain(network, in_precision(network, dtype), *batch) > WORTH:
        return Way(str(dtype).removeprefix("torch."))
    return Way(winograd=winograd_pays(network, *batch) if model.device.type == "cpu" else ())


def gain(plain: Network, candidate: Network, *batch: Tensor) -> float:
    """How many times faster a candidate answers a batch than the plain network."""
    return timed(plain, batch)[1] / timed(candidate, batch)[1]


def units_gain(dtype: torch.dtype, device: torch.device) -> float:
    """How many times faster a small convolution is in a dtype than in float32."""
    conv = nn.Conv2d(64, 64, 3, padding=1, device=device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.zeros(PROBE_SIZE, 64, 16, 16, device=device).to(memory_format=torch.channels_last)
    plain = timed(conv, [x])[1]
    return plain / timed(conv.to(dtype), [x.to(dtype)])[1]


def in_precision(network: Denoiser, dtype: torch.dtype) -> Denoiser:
    """The network with its inner layers in another precision.

    The embedding stays in float32, and so do the first and the last convolution: at D = 1 the images are far from unit
    variance, and rounding them costs 8 dB (bfloat16 against float32, digits: 47.5 dB as it is, 39.5 dB without).
    """
    inner = network.model
    layers = [
        layer
        for name, layer in [*inner.enc.items(), *inner.dec.items()]
        if isinstance(layer, Block) or "residual" in name
    ]
    tensors = [tensor for layer in layers for tensor in (*layer.parameters(), *layer.buffers())]
    lower = copied(network, {tensor: tensor.to(dtype) for tensor in tensors})
    lower.model.dtype = dtype
    return lower


def with_winograd(network: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """The network with those of its convolutions done by Winograd's algorithm."""
    faster = copied(network, {})
    for name in names:
        faster.set_submodule(name, WinogradConv(cast("Conv", network.get_submodule(name))))
    return faster


def copied(network: N, replaced: dict[Tensor, Tensor]) -> N:
    """A copy of a network with the same tensors, but for those replaced."""
    memo: dict[int, object] = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
    for old, new in replaced.items():
        memo[id(old)] = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
    return copy.deepcopy(network, memo)


def winograd_pays(network: nn.Module, *batch: Tensor) -> tuple[str, ...]:
    """The names of the convolutions that Winograd's algorithm makes faster by WORTH on this batch.

    It takes 4 times the memory of the weights it stands for, so it is left out below 16 tiles an image (16x16 pixels),
    where of a DDPM++ network for 32x32 pixels a third of the weights take a twentieth of the time.
    """
    pays: dict[tuple[int, ...], bool] = {}
    chosen: list[str] = []

    def try_out(name: str, conv: nn.Module, x: Tensor) -> None:
        if not isinstance(conv, Conv) or conv.kernel_size != (3, 3) or conv.resampling or x[0, 0].numel() < 256:
            return
        make = (*x.shape, conv.out_channels)
        if make not in pays:
            pays[make] = gain(conv.forward, WinogradConv(conv), x) > WORTH
        if pays[make]:
            chosen.append(name)

    hooks = [
        module.register_forward_pre_hook(lambda module, inputs, name=name: try_out(name, module, inputs[0]))
        for name, module in network.named_modules()
    ]
    try:
        network(*batch)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(chosen)


class WinogradConv(nn.Module):
    """A 3x3 convolution by Winograd's F(4x4, 3x3) (Lavin and Gray, 2016): a quarter of the multiplications.

    Tiles of 6x6 pixels, 4 apart, are transformed by B^T d B, multiplied with transformed weights as 36 matrix products
    over the channels, and transformed back to 4x4 pixels by A^T m A. Error 2e-6, direct convolution's 3e-7 (256
    channels). At 256 channels and 8 images, 1.9 to 2.3 times as fast as oneDNN's direct convolution, which runs at the
    peak of the CPU's (AVX2) multipliers.
    """

    TILES = 128
    """So many tiles are done at once: what lies between the steps then stays in the cache (8x256x32x32: 1.5 times)."""

    G = (
        torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64)
        / 24
    )
    B_T = torch.tensor(
        [
            [4.0, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ]
    )
    A_T = torch.tensor([[1.0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        out_channels, in_channels = conv.weight.shape[:2]
        rows = conv.weight.permute(2, 3, 1, 0).reshape(9, -1).to(torch.float64)
        transformed = (torch.kron(self.G, self.G) @ rows).to(torch.float32).view(36, in_channels, out_channels)
        self.register_buffer("weight", transformed, persistent=False)
        self.register_buffer("to_tiles", torch.kron(self.B_T, self.B_T), persistent=False)
        self.register_buffer("from_tiles", torch.kron(self.A_T, self.A_T), persistent=False)
        self.weight: Tensor
        self.to_tiles: Tensor
        self.from_tiles: Tensor
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H, W] for a convolution with stride 1 and padding 1."""
        batch, _, height, width = x.shape
        down, across = -(-height // 4), -(-width // 4)
        padded = F.pad(x.movedim(1, -1), (0, 0, 1, 4 * across - width + 1, 1, 4 * down - height + 1))
        y = x.new_empty(batch, down, 4, across, 4, self.weight.shape[-1])
        images = max(1, self.TILES // (down * across))
        for part, out in zip(padded.split(images), y.split(images), strict=True):  # type: ignore[no-untyped-call]
            tiles = part.unfold(1, 6, 4).unfold(2, 6, 4).permute(4, 5, 0, 1, 2, 3)  # [6, 6, images, down, across, in]
            transformed = self.to_tiles @ tiles.reshape(36, -1)
            product = torch.bmm(transformed.view(36, -1, tiles.shape[-1]), self.weight)
            if self.bias is not None:
                product[7] += self.bias  # the column of A^T (x) A^T that is 1 everywhere
            back = (self.from_tiles @ product.view(36, -1)).view(4, 4, *out.shape[:2], across, -1)
            out.copy_(back.permute(2, 3, 0, 4, 1, 5))
        return y.view(batch, 4 * down, 4 * across, -1)[:, :height, :width].movedim(-1, 1)

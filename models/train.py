"""Training: the loop around the objective, Adam, and an average of the weights that becomes the checkpoint."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.card import Card, CheckpointError, field_errors, format_D
from models.checkpoint import check_tensors, load
from models.data import Dataset
from models.objective import Draws, Examples, stable_target, weighted_error
from models.precond import Denoiser
from models.recipe import Recipe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

STATE_KEY = "pfgmpp-run"


class TrainError(ValueError):
    """A run cannot begin or go on; the message names the setting or file."""


class Progress(NamedTuple):
    """Where a training run stands: images seen, the mean loss since the last report, and the norm of the gradient."""

    images: int
    loss: float
    learning_rate: float
    gradient_norm: float


class Place(NamedTuple):
    """Which process of a run this is, and of how many; each computes its part of every batch."""

    rank: int = 0
    world: int = 1


ALONE = Place()


def learning_rate_factor(images: int, recipe: Recipe) -> float:
    """The share of the learning rate in use after so many images: a linear rise, then half a cosine to zero, or 1."""
    if images < recipe.warmup_images:
        return images / recipe.warmup_images
    if recipe.decay == "none":
        return 1.0
    done = (images - recipe.warmup_images) / max(1, recipe.images - recipe.warmup_images)
    return (1 + math.cos(math.pi * min(1.0, done))) / 2


@torch.no_grad()
def average(ema: nn.Module, network: nn.Module, images: int, recipe: Recipe) -> None:
    """Move the average of the weights towards the weights, after so many images.

    Its half-life grows with the run at first (EDM, F.2); or weights count by a power of the time (Karras et al., 2024,
    eq. 1).
    """
    if recipe.ema_power:
        towards = 1 - (1 - min(1.0, recipe.batch / images)) ** (recipe.ema_power + 1)
    else:
        halflife = min(recipe.ema_halflife_images, recipe.ema_rampup * images)
        towards = 1 - 0.5 ** (recipe.batch / halflife)
    means: list[Tensor] = [*ema.parameters()]
    torch._foreach_lerp_(means, [*network.parameters()], towards)


@dataclass
class Run:
    """One training run: `step` until `is_done`, then `tensors` and `card` make the checkpoint.

    A run that goes on from its `state` takes the same steps as one that was never interrupted.
    """

    recipe: Recipe
    D: float
    data: Dataset
    device: torch.device
    place: Place = ALONE
    compiles: bool = False
    images_seen: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)
    """Of all its processes' lives together."""
    sizes: dict[int, float] = field(init=False)
    """How likely a step is to see images, or patches, of so many pixels."""
    recent: list[Tensor] = field(default_factory=list, init=False)
    """Loss and gradient norm [2] of every step since the last report."""

    def __post_init__(self) -> None:
        recipe = self.recipe
        if recipe.batch % self.place.world:
            raise TrainError(f"batch, {recipe.batch}, must be a multiple of the processes, {self.place.world}")
        share = recipe.batch // self.place.world
        self._micro = min(recipe.micro_batch or share, share)
        if share % self._micro:
            raise TrainError(f"micro_batch, {self._micro}, must divide the batch of a process, {share}")
        if recipe.stable_target and self._micro != recipe.batch:
            raise TrainError("stable_target needs the batch on one device at once: no micro_batch, one process")
        torch.manual_seed(recipe.seed)
        self._draws = Draws(recipe, self.D, self.data)
        try:
            self.sizes = self._draws.shares
            self.card(Progress(0, 0.0, 0.0, 0.0))
        except ValidationError as error:
            raise TrainError(f"the recipe does not suit its data: {field_errors(error)}") from error
        except ValueError as error:
            raise TrainError(f"the recipe does not suit its data: {error}") from error
        channels, resolution, _ = self.data.shape
        network = Denoiser(recipe.architecture, resolution, channels, len(self.data.classes))
        network.model.init_weights()
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = deepcopy(self.network).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=recipe.learning_rate)
        self._forward: nn.Module = self.network
        if self.place.world > 1:
            self._forward = DistributedDataParallel(self._forward)
        if self.compiles:
            self._forward = torch.compile(self._forward)  # type: ignore[assignment]
        self._drawing = ThreadPoolExecutor(1, "draw")
        self._next: Any = None

    @property
    def steps_left(self) -> int:
        return max(0, -(-(self.recipe.images - self.images_seen) // self.recipe.batch))

    @property
    def is_done(self) -> bool:
        return self.steps_left == 0

    def step(self) -> None:
        """One batch and one update; adds to `recent` the loss per element before it, and the norm of its gradient."""
        recipe, number = self.recipe, self.images_seen // self.recipe.batch
        torch.manual_seed(hash((recipe.seed, number, self.place.rank)) & (2**63 - 1))  # of dropout
        self.network.train()
        loss = torch.zeros((), device=self.device)
        pieces = list(self._drawn(number))
        for k, examples in enumerate(pieces):
            waits = self.place.world > 1 and k + 1 < len(pieces)
            with self._forward.no_sync() if waits else nullcontext():  # type: ignore[operator]
                part = self._loss(examples.to(self.device)) / len(pieces)
                part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), recipe.gradient_clip or math.inf)
        self.images_seen += recipe.batch
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        average(self.ema, self.network, self.images_seen, recipe)
        self.recent.append(torch.stack([loss, norm]))

    @property
    def learning_rate(self) -> float:
        return self.recipe.learning_rate * learning_rate_factor(self.images_seen, self.recipe)

    def _drawn(self, number: int) -> Iterator[Examples]:
        """This process's part of a batch, piece by piece; the next ones are drawn meanwhile."""
        share = self.recipe.batch // self.place.world
        for start in range(self.place.rank * share, (self.place.rank + 1) * share, self._micro):
            at = (number, start)
            ready = self._next[1] if self._next and self._next[0] == at else self._draw(at)
            follows = start + self._micro
            is_last = follows == (self.place.rank + 1) * share
            after = (number + 1, self.place.rank * share) if is_last else (number, follows)
            self._next = (after, self._draw(after))
            yield ready.result()

    def _draw(self, at: tuple[int, int]) -> Any:
        """The piece of a step that begins with that place; of smaller patches each stands for as many as fit across."""
        number, start = at
        growth = self._draws.growth(number)
        return self._drawing.submit(self._draws.examples, number, growth * start, growth * (start + self._micro))

    def _loss(self, examples: Examples) -> Tensor:
        """The mean weighted error per element."""
        y, changes = examples.y.contiguous(memory_format=torch.channels_last), examples.changes
        if changes:
            y = changes.apply(y)
        sigma = examples.sigma.to(y)
        x = y + sigma[:, None, None, None] * examples.noise
        target = y
        if examples.reference is not None:
            target = stable_target(x, sigma, examples.labels, examples.reference, examples.reference_labels, self.D)
        with torch.autocast(self.device.type, DTYPES[self.recipe.precision], self.recipe.precision != "float32"):
            denoised = self._forward(x, sigma, examples.labels, changes.labels if changes else None, examples.corners)
        return weighted_error(denoised, target, sigma, self.recipe.architecture.precond).mean()

    def tensors(self) -> dict[str, Tensor]:
        """The averaged weights: what the checkpoint holds."""
        return dict(self.ema.state_dict())

    def card(self, progress: Progress) -> Card:
        """The card of the checkpoint, with the facts of this run."""
        recipe, (channels, resolution, _) = self.recipe, self.data.shape
        sigma_min, sigma_max = recipe.architecture.precond.sigma_range
        return Card(
            dataset=self.data.name,
            D=self.D,
            resolution=resolution,
            channels=channels,
            classes=self.data.classes,
            architecture=recipe.architecture,
            sigma_min=sigma_min,
            sigma_max=sigma_max * recipe.noise_scale,
            default_steps=recipe.default_steps,
            max_steps=recipe.max_steps,
            stored=recipe.stored,
            label_dropout=recipe.label_dropout,
            license=self.data.license,
            training={
                "recipe": recipe.model_dump(exclude={"architecture"}),
                "images": self.images_seen,
                "seconds": round(self.seconds, 1),
                "images_per_second": round(self.images_seen / max(self.seconds, 1e-9), 1),
                "final_loss": round(progress.loss, 4),
                "device": _device_name(self.device),
                "processes": self.place.world,
                "torch": torch.__version__,
            },
        )

    def transfer(self, path: Path) -> None:
        """Begin with the weights of a checkpoint.

        Raises CheckpointError when it is none, TrainError when it is of another network.
        """
        model = load(path, self.device)
        tensors = model.network.state_dict()
        try:
            check_tensors(path, self.network.state_dict(), tensors)
        except CheckpointError as error:
            others = _differences(model.card.architecture.model_dump(), self.recipe.architecture.model_dump())
            raise TrainError(f"{error}: architecture.{others}" if others else str(error)) from error
        self.network.load_state_dict(tensors)
        self.ema.load_state_dict(tensors)

    def save(self, path: Path) -> None:
        """Write all that it takes to go on, as safetensors; it appears under its name only when it is complete."""
        moments = {f"{k}.{name}": value for k, each in self._moments().items() for name, value in each.items()}
        tensors = {
            **{f"network.{name}": value for name, value in self.network.state_dict().items()},
            **{f"ema.{name}": value for name, value in self.ema.state_dict().items()},
            **{f"optimizer.{name}": value for name, value in moments.items()},
            "recent": torch.stack(self.recent) if self.recent else torch.zeros(0, 2),
        }
        about = {"recipe": self.recipe.model_dump(mode="json"), "D": format_D(self.D)}
        about |= {"images_seen": self.images_seen, "seconds": self.seconds}
        temporary = path.with_suffix(".partial")
        stored = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(stored, temporary, metadata={STATE_KEY: json.dumps(about)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        """Go on where a state was saved. Raises TrainError when it is none, or of another run."""
        try:
            with safe_open(path, "pt", device=str(self.device)) as file:
                about = json.loads(file.metadata()[STATE_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            recipe, D = about["recipe"], about["D"]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise TrainError(f"{path}: not a state of a training run ({type(error).__name__})") from error
        own = self.recipe.model_dump(mode="json")
        free = dict.fromkeys(("images", "micro_batch"))
        if others := _differences(recipe | free | {"D": D}, own | free | {"D": format_D(self.D)}):
            raise TrainError(f"{path}: is of another run: {others}")
        self.network.load_state_dict(_under("network", tensors))
        self.ema.load_state_dict(_under("ema", tensors))
        state = self.optimizer.state_dict()
        state["state"] = dict[int, dict[str, Tensor]]()
        for name, tensor in _under("optimizer", tensors).items():
            k, _, what = name.partition(".")
            state["state"].setdefault(int(k), {})[what] = _channels_last(tensor)
        self.optimizer.load_state_dict(state)
        self.images_seen, self.seconds = about["images_seen"], about["seconds"]
        self.recent = list(tensors["recent"])

    def _moments(self) -> dict[int, dict[str, Tensor]]:
        """What the optimizer keeps of every weight."""
        return self.optimizer.state_dict()["state"]  # type: ignore[no-any-return]

    def close(self) -> None:
        """Draw nothing more."""
        self._drawing.shutdown(wait=True, cancel_futures=True)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The settings that were different, and how; "" if none was."""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return "; ".join(f"{name} was {before.get(name)}, not {now.get(name)}" for name in names)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix and a dot, without them."""
    return {name.removeprefix(f"{prefix}."): each for name, each in tensors.items() if name.startswith(f"{prefix}.")}


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


@dataclass
class Folder:
    """Where a run leaves its log, its state and its sample grids."""

    path: Path

    @property
    def state(self) -> Path:
        return self.path / "state.safetensors"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    def begin(self, images_seen: int) -> None:
        """Keep of the log what a run has done that goes on from here."""
        self.path.mkdir(parents=True, exist_ok=True)
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        kept = [line for line in lines if _images_of(line) <= images_seen]
        temporary = self.log.with_suffix(".partial")
        temporary.write_text("".join(f"{line}\n" for line in kept))
        os.replace(temporary, self.log)

    def note(self, progress: Progress, seconds: float) -> None:
        """Add a line to the log."""
        with self.log.open("a") as file:
            print(json.dumps({**progress._asdict(), "seconds": round(seconds, 2)}), file=file)


def _images_of(line: str) -> float:
    """The images of a line of the log; infinite for one that was not finished."""
    try:
        return float(json.loads(line)["images"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def train(
    run: Run,
    report: Callable[[Progress], object],
    folder: Folder | None = None,
    report_every: int = 20,
    save_seconds: float = 300.0,
    on_save: Callable[[Run], object] = lambda run: None,
    is_to_stop: Callable[[], bool] = lambda: False,
) -> Progress:
    """Take a run to its end, or to where it is to stop; where it then stands.

    Reports after so many steps. Saves the state after a report, when so many seconds have passed, and at the end; so
    the last one saved is always good. Raises FloatingPointError at the report that finds the loss not finite.
    """
    saved = began = time.monotonic()
    before = run.seconds
    progress = Progress(run.images_seen, math.nan, 0.0, math.nan)
    try:
        while not run.is_done:
            run.step()
            is_due = run.images_seen // run.recipe.batch % report_every == 0 or run.is_done
            if not is_due and not (run.place.world == 1 and is_to_stop()):
                continue
            loss, norm = torch.stack(run.recent).mean(0).tolist()
            loss, stops = _mean_of_all(run, loss, float(is_to_stop()))
            progress = Progress(run.images_seen, loss, run.learning_rate, norm)
            run.seconds = before + time.monotonic() - began
            if not math.isfinite(loss):
                kept = f"; the last good state is {folder.state}" if folder and folder.state.exists() else ""
                raise FloatingPointError(f"the loss is {loss} after {run.images_seen:,} images at D = {run.D}{kept}")
            if is_due:
                run.recent.clear()
                report(progress)
            if run.place.rank == 0 and folder:
                if is_due:
                    folder.note(progress, run.seconds)
                if time.monotonic() - saved > save_seconds or run.is_done or stops:
                    run.save(folder.state)
                    on_save(run)
                    saved = time.monotonic()
            if stops:
                break
    finally:
        run.close()
    return progress


def _mean_of_all(run: Run, *numbers: float) -> list[float]:
    """The means over all processes."""
    if run.place.world == 1:
        return list(numbers)
    total = torch.tensor(numbers, device=run.device)
    torch.distributed.all_reduce(total)
    return [float(each) / run.place.world for each in total]

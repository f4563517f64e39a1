"""Official checkpoints, imported: the recorded files to the bit, and every family and preconditioning."""

import hashlib
import json
import math
import os
import re
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner, Result

from models import checkpoint, commands
from models.card import SHIPPED, CheckpointError, read_card
from models.levels import LevelsError, noise_levels, rounded
from models.official import LICENSE, Official, convert, describe, open_official, read_classes
from models.pickles import Record, read
from tests.models.helpers import FIXTURES, options, parameters, recorded
from tests.models.officials import INDEX, Module, network, pickled, recorded_file, saved

SHARED = Path(__file__).parents[3] / "shared/reference/checkpoints"

PICKLE = "network-snapshot-ddpmpp-edm-cond.pkl"
STATE = "training-state-ncsnpp-edm-uncond.pt"
NETWORKS = recorded("networks")

app = typer.Typer()
app.command("import")(commands.import_official)
app.command("inspect")(commands.inspect)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded files, under their own names."""
    folder = tmp_path_factory.mktemp("official")
    for name in INDEX:
        (folder / name).write_bytes(recorded_file(name))
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "official.pkl"


def opened(path: Path, **contents: Any) -> Official:
    """A `network-snapshot` file with these contents, opened."""
    path.write_bytes(pickled(**contents))
    return open_official(path)


@pytest.mark.parametrize("name", INDEX)
def test_the_recorded_files_are_the_official_ones(folder: Path, name: str) -> None:
    assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == INDEX[name]["sha256"]
    if SHARED.is_dir():
        assert (SHARED / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("name", INDEX)
def test_an_imported_file_is_the_network_that_was_recorded(folder: Path, tmp_path: Path, name: str) -> None:
    """Every tensor to the bit, the options as recorded, and what the network makes of its inputs."""
    weights = INDEX[name]["weights"]
    output = tmp_path / "store" / "model.safetensors"
    done = run("import", folder / name, "--dataset", "tiny", "--D", "128", "--out", output)
    assert done.exit_code == 0, done.output
    assert [each.name for each in output.parent.iterdir()] == [output.name]
    model, numbers = checkpoint.load(output), load_file(FIXTURES / f"{weights}.safetensors")
    state = {f"state.{key}": tensor for key, tensor in model.network.state_dict().items()}
    assert state.keys() == {key for key in numbers if key.startswith("state.")}
    assert all(torch.equal(tensor, numbers[key]) for key, tensor in state.items())
    assert model.card.architecture == options(NETWORKS[weights])
    assert model.card.name == "tiny-d128"
    assert model.card.classes == tuple("0123456789"[: NETWORKS[weights]["label_dim"]])
    with torch.inference_mode():
        found = model.network(numbers["x"], numbers["sigma"], numbers.get("class_labels"))
    torch.testing.assert_close(found, numbers["denoised"], rtol=1e-4, atol=1e-4)


def test_the_card_tells_licence_source_and_hash(folder: Path) -> None:
    for name in (PICKLE, STATE):
        card, _ = convert(open_official(folder / name), "tiny", 128)
        assert card.license == LICENSE == "CC BY-NC-SA 4.0"
        assert card.training["source"] == name
        assert card.training["sha256"] == INDEX[name]["sha256"]
        assert card.training["class"] == "EDMPrecond of SongUNet"
    assert card.training["container"] == "torch.save (ZIP)"
    assert card.training["step"] == 1000


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("container", [pickled, saved])
def test_every_family_and_preconditioning_is_imported(path: Path, name: str, container: Any) -> None:
    path.write_bytes(container(ema=network(name)))
    card, tensors = convert(open_official(path), "tiny", math.inf)
    expected = load_file(FIXTURES / f"{name}.safetensors")
    assert card.architecture == options(NETWORKS[name])
    assert all(torch.equal(tensor, expected[f"state.{key}"]) for key, tensor in tensors.items())
    assert open_official(path).parameters == NETWORKS[name]["params"] == parameters(checkpoint.build(card))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_options_are_found_in_the_modules_too(path: Path, name: str) -> None:
    """What a network was made with is noted only as far as its maker gave it."""
    bare = network(name)
    del bare.state["_init_kwargs"], bare.part("model").state["_init_kwargs"]
    assert opened(path, ema=bare).options() == options(NETWORKS[name])


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("ddpmpp-edm-uncond", (0.002, 80)),
        ("ncsnpp-ve", (0.02, 100)),
        ("ddpmpp-vp", (0.002, 80)),
        ("adm-iddpm", (0.0064223, 80)),
    ],
)
def test_the_noise_levels_are_those_that_the_network_knows(path: Path, name: str, levels: tuple[float, float]) -> None:
    card, _ = convert(opened(path, ema=network(name)), "tiny", math.inf)
    assert (card.sigma_min, card.sigma_max) == pytest.approx(levels, rel=1e-4)
    assert card.sigma_min >= NETWORKS[name]["sigma_min"]


def test_a_network_of_few_noise_levels_takes_as_many_steps_as_it_can(path: Path) -> None:
    """iDDPM's, which knows some: with one step more two would be at the same level."""
    card, tensors = convert(opened(path, ema=network("adm-iddpm")), "tiny", math.inf)
    table, ends = tensors["u"].tolist(), (card.sigma_min, card.sigma_max)
    assert 18 == card.default_steps < card.max_steps < 256
    assert rounded(noise_levels(card.max_steps, *ends), table)
    with pytest.raises(LevelsError):
        rounded(noise_levels(card.max_steps + 1, *ends), table)


def test_old_models_of_pfgmpp_have_higher_noise_levels(path: Path) -> None:
    """sqrt(1 + N/D) times as high, N = 3 x 8 x 8, and so is every level on a path."""
    official = opened(path, ema=with_D(D=64))
    usual, old = official.card("tiny"), official.card("tiny", is_aligned=True)
    assert (old.sigma_min, old.sigma_max) == pytest.approx((2 * usual.sigma_min, 2 * usual.sigma_max))
    levels = (noise_levels(18, card.sigma_min, card.sigma_max) for card in (usual, old))
    assert [old_level / level for level, old_level in zip(*levels, strict=True) if level] == pytest.approx([2] * 18)
    with pytest.raises(CheckpointError, match="--align is for a finite D"):
        opened(path, ema=with_D()).card("tiny", math.inf, is_aligned=True)


def test_the_numbers_of_a_preconditioning_are_taken_from_the_file(path: Path) -> None:
    vp = network("ddpmpp-vp")
    vp.state |= {"beta_d": 4.0, "beta_min": 0.5, "M": 500, "epsilon_t": 0.01}
    card, _ = convert(opened(path, ema=vp), "tiny", math.inf)
    assert card.architecture.precond.model_dump() == {  # type: ignore[union-attr]
        "kind": "vp",
        "beta_d": 4.0,
        "beta_min": 0.5,
        "M": 500,
        "epsilon_t": 0.01,
    }
    assert card.sigma_min == pytest.approx(math.sqrt(math.expm1(4 / 2 * 0.01**2 + 0.5 * 0.01)))
    assert card.sigma_max == pytest.approx(math.sqrt(math.expm1(4 / 2 + 0.5)))


def with_D(**noted: Any) -> Module:
    made = network("ddpmpp-edm-uncond")
    made.state |= noted
    return made


@pytest.mark.parametrize(
    ("noted", "given", "D"),
    [
        ({}, 2048, 2048),
        ({}, math.inf, math.inf),
        ({"D": 128, "pfgmpp": True}, None, 128),
        ({"D": 128, "pfgmpp": True}, 128, 128),
        ({"D": 0.5}, None, 0.5),
        ({"D": 128, "pfgmpp": False}, 128, 128),
        ({"D": 128, "pfgmpp": False}, math.inf, math.inf),
        ({"D": None}, 3, 3),
    ],
)
def test_D_is_what_is_noted_or_given(path: Path, noted: dict[str, Any], given: float | None, D: float) -> None:
    assert opened(path, ema=with_D(**noted)).card("tiny", given).D == D


@pytest.mark.parametrize(
    ("noted", "given", "reason"),
    [
        ({}, None, "does not note its D; give it with --D"),
        ({"D": -1}, None, "does not note its D"),
        ({"D": 128, "pfgmpp": True}, 64, "--D 64 contradicts the file, which suits --D 128"),
        ({"D": 128, "pfgmpp": True}, math.inf, "--D inf contradicts the file, which suits --D 128"),
        ({"D": 128, "pfgmpp": False}, None, "pfgmpp is off; say which it is with --D 128 or --D inf"),
        ({"D": 128, "pfgmpp": False}, 2, "--D 2 contradicts the file, which suits --D 128 or --D inf"),
    ],
)
def test_a_D_that_is_missing_or_wrong_is_refused(path: Path, noted: Any, given: float | None, reason: str) -> None:
    official = opened(path, ema=with_D(**noted))
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: ") + ".*" + re.escape(reason)):
        official.card("tiny", given)


@pytest.mark.parametrize(
    ("noted", "given", "dataset"),
    [
        ("./datasets/CIFAR10-32x32.zip", None, "cifar10-32x32"),
        (r"C:\data\ffhq.zip", None, "ffhq"),
        ("x.zip", "cats", "cats"),
        (None, "cats", "cats"),
    ],
)
def test_the_data_set_is_given_or_noted(path: Path, noted: str | None, given: str | None, dataset: str) -> None:
    official = opened(path, ema=with_D(D=2), dataset_kwargs={"path": noted})
    assert official.card(given).dataset == dataset


@pytest.mark.parametrize("noted", [None, {}, {"path": "two words.zip"}, {"path": 3}])
def test_a_data_set_that_is_not_noted_must_be_given(path: Path, noted: Any) -> None:
    with pytest.raises(CheckpointError, match="name it with --dataset"):
        opened(path, ema=with_D(D=2), dataset_kwargs=noted).card()
    with pytest.raises(CheckpointError, match="dataset: "):
        opened(path, ema=with_D(D=2), dataset_kwargs=noted).card("Two words")
    with pytest.raises(CheckpointError, match="dataset: must be 1 to 64 of a-z"):
        opened(path, ema=with_D(D=2), dataset_kwargs={"path": "x.zip"}).card("")


@pytest.mark.parametrize("text", ['["aeroplane", "car"]', "aeroplane\ncar\n"])
def test_classes_have_the_names_in_a_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "names"
    path.write_text(text)
    assert read_classes(path) == ("aeroplane", "car")


@pytest.mark.parametrize("content", [b"[1, 2]", b"{}", b"[[", b"\xff", b"[" * 100_000, b"a" * 5_000_000, None])
def test_a_file_of_other_things_than_names_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "names"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path}: not a list of names"):
        read_classes(path)


def test_names_of_classes_are_as_many_as_classes(path: Path) -> None:
    official = opened(path, ema=network("ncsnpp-edm-cond"))
    names = tuple("abcdefghij")
    assert official.card("tiny", 2, names).classes == names
    with pytest.raises(CheckpointError, match=f"{path}: has 10 classes, but 2 names are given"):
        official.card("tiny", 2, ("a", "b"))
    with pytest.raises(CheckpointError, match="different names"):
        official.card("tiny", 2, ("a",) * 10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_become_float32(path: Path, dtype: torch.dtype) -> None:
    made = network("ddpmpp-edm-uncond")
    layer = made.part("model.map_layer0").state["_parameters"]
    layer["weight"] = nn.Parameter(layer["weight"].detach().to(dtype))
    _, tensors = convert(opened(path, ema=made), "tiny", 2)
    found = tensors["model.map_layer0.weight"]
    assert found.dtype == torch.float32
    assert torch.equal(found, layer["weight"].detach().to(torch.float32))


def test_tensors_that_share_a_storage_or_lie_otherwise_are_read(path: Path) -> None:
    made = network("ddpmpp-edm-uncond")
    layer = made.part("model.map_layer0").state["_parameters"]
    expected = layer["weight"].detach()
    layer["weight"] = nn.Parameter(torch.cat([torch.ones(3), expected.T.flatten()])[3:].view(expected.T.shape).T)
    assert not layer["weight"].is_contiguous()
    _, tensors = convert(opened(path, ema=made), "tiny", 2)
    assert torch.equal(tensors["model.map_layer0.weight"], expected)


def damaged(change: str) -> Module:
    """A network with a fault in its weights or options."""
    made = network("ddpmpp-edm-uncond")
    layer = made.part("model.map_layer0").state["_parameters"]
    weight = layer["weight"].detach().clone()
    match change:
        case "nan" | "inf" | "-inf":
            weight[3, 2] = float(change)
        case "too large":
            weight = torch.full(weight.shape, 1e300, dtype=torch.float64)
        case "shape":
            weight = weight[:, :-1].contiguous()
        case "dtype":
            weight = weight.to(torch.int64)
        case "unexpected":
            layer["more"] = nn.Parameter(torch.zeros(1))
    layer["weight"] = nn.Parameter(weight, requires_grad=False)
    if change == "missing":
        del layer["weight"]
    return made


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("nan", "tensor 'model.map_layer0.weight' holds values that are not finite"),
        ("inf", "not finite"),
        ("-inf", "not finite"),
        ("too large", "not finite"),
        ("shape", r"tensor 'model.map_layer0.weight' is torch.float32 \[64, 15\], but .* \[64, 16\]"),
        ("dtype", "is torch.int64"),
        ("missing", "tensor 'model.map_layer0.weight' is missing"),
        ("unexpected", "tensor 'model.map_layer0.more' does not belong"),
    ],
)
def test_wrong_tensors_are_named(path: Path, change: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"{path}: .*{reason}"):
        convert(opened(path, ema=damaged(change)), "tiny", 2)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"decoder_type": "skip"}, "decoder_type"),
        ({"encoder_type": "skip"}, "encoder"),
        ({"embedding_type": "other"}, "embedding"),
        ({"channel_mult": [0]}, "channel_mult"),
        ({"channel_mult": [[[1]]]}, "channel_mult"),
        ({"model_channels": 10**15}, "model_channels"),
        ({"model_channels": 20}, "is torch.float32"),
        ({"channel_mult": [1] * 5}, "halved"),
        ({"num_blocks": "many"}, "num_blocks"),
    ],
    ids=str,
)
def test_options_that_are_not_supported_are_named(path: Path, changes: dict[str, Any], reason: str) -> None:
    made = network("ddpmpp-edm-uncond")
    made.part("model").state["_init_kwargs"] |= changes
    with pytest.raises(CheckpointError, match=f"{path}: .*{reason}"):
        convert(opened(path, ema=made), "tiny", 2)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ({"net": Module("EDMPrecond")}, "no network under 'ema'"),
        ({"ema": {}}, "no network under 'ema'"),
        ({"ema": Module("Precond2")}, "class 'Precond2' is none of EDMPrecond"),
        ({"ema": Module("EDMPrecond")}, "has no part 'model'"),
        ({"ema": Module("EDMPrecond", _modules={"model": Module("Other")})}, "class 'Other' is none of SongUNet"),
        ({"ema": Module("EDMPrecond", _modules={"model": Module("SongUNet")})}, "does not note its img_channels"),
    ],
)
def test_other_contents_are_refused(path: Path, contents: Any, reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"{path}: .*{reason}"):
        opened(path, **contents).card("tiny", 2)


def test_how_often_labels_were_left_out_is_kept(path: Path) -> None:
    made = network("ncsnpp-edm-cond")
    made.part("model").state["label_dropout"] = 0.1
    assert opened(path, ema=made).card("tiny", 2).label_dropout == 0.1


def test_a_legacy_file_of_torch_save_is_read(path: Path) -> None:
    torch.save({"a": torch.arange(6.0).view(2, 3).T}, path, _use_new_zipfile_serialization=False)
    root = read(path).root
    assert isinstance(root, dict)
    assert root["a"].values().tolist() == [[0, 3], [1, 4], [2, 5]]


def test_lists_sets_and_dictionaries_of_modules_become_records(path: Path) -> None:
    torch.save({"ema": nn.ModuleDict(), "more": nn.ModuleList(), "names": {"a"}}, path)
    root = read(path).root
    assert isinstance(root, dict)
    assert isinstance(root["ema"], Record)
    assert root["ema"].kind == "torch.nn.modules.container.ModuleDict"
    assert root["names"] == ["a"]


def rows(output: str) -> dict[str, str]:
    """What `pfgmpp inspect` printed, by the names of its rows."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", output).splitlines()
    return {name.strip(): fact.strip() for name, _, fact in (line.partition("  ") for line in lines)}


def test_inspect_tells_what_an_official_file_holds(folder: Path) -> None:
    done = run("inspect", folder / STATE)
    assert done.exit_code == 0, done.output
    found = describe(folder / STATE)
    assert rows(done.stdout) == found
    assert found["class"] == "EDMPrecond of SongUNet"
    assert found["parameters"] == "191,107"
    assert found["step"] == "1000"
    assert found["D"].startswith("128 is noted, but also that pfgmpp is off")
    assert found["licence"] == LICENSE
    assert found["sha256"] == INDEX[STATE]["sha256"]


def test_inspect_says_what_is_not_recorded(path: Path) -> None:
    opened(path, ema=network("ddpmpp-edm-uncond"))
    found = describe(path)
    assert found["D"] == found["step"] == found["data set"] == "not recorded"


def test_inspect_tells_what_a_checkpoint_of_ours_holds() -> None:
    path = SHIPPED / "digits-d2048.safetensors"
    found = describe(path)
    assert rows(run("inspect", path).stdout) == found
    assert found["model"] == "digits-d2048"
    assert found["sha256"] == checkpoint.load(path).sha256
    assert found["parameters"] == f"{parameters(checkpoint.load(path).network):,}"


def test_inspect_prints_no_control_characters(tmp_path: Path) -> None:
    card = read_card(SHIPPED / "digits-d1.safetensors").model_copy(update={"training": {"note": "\x1b[31mred\r\n\x9b"}})
    checkpoint.save(tmp_path / "a.safetensors", card, load_file(SHIPPED / "digits-d1.safetensors"))
    done = run("inspect", tmp_path / "a.safetensors")
    assert r"\u001b[31mred\r\n\x9b" in done.stdout
    assert not {"\x1b", "\r", "\x9b"} & {*done.stdout}


@pytest.mark.parametrize("command", ["import", "inspect"])
@pytest.mark.parametrize("content", [b"", b"text", b"PK\3\4", b"\x80", b"\x80\4}.", b"\x00" * 8 + b"{", None])
def test_a_file_that_is_no_checkpoint_takes_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, content: bytes | None
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a file"
    if content is not None:
        path.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    done = run(command, path)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert re.fullmatch(f"pfgmpp: {path}: [^\n]+\n", done.stderr)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "--D 128 or --D inf"),
        (("--D", "5"), "contradicts"),
        (("--D", "0"), "D must be"),
        (("--D", "128", "--dataset", "A b"), "dataset"),
        (("--D", "128", "--classes", "none.txt"), "none.txt: not a list of names"),
    ],
)
def test_an_import_that_is_refused_writes_nothing(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    done = run("import", folder / PICKLE, *arguments, "--out", tmp_path / "new" / "a.safetensors")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_file_itself_is_never_written_over(folder: Path, tmp_path: Path) -> None:
    path = shutil.copy(folder / PICKLE, tmp_path / "own.pkl")
    before = Path(path).read_bytes()
    done = run("import", path, "--D", "128", "--out", path)
    assert (done.exit_code, "is the file that is imported" in done.stderr) == (2, True)
    assert Path(path).read_bytes() == before
    os.mkfifo(tmp_path / "pipe")
    done = run("import", path, "--D", "128", "--out", tmp_path / "pipe")
    assert (done.exit_code, "no file that could be replaced" in done.stderr) == (2, True)
    (tmp_path / "a.partial").write_text("mine")
    assert run("import", path, "--D", "128", "--out", tmp_path / "a.safetensors").exit_code == 0
    assert (tmp_path / "a.partial").read_text() == "mine"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.partial", "a.safetensors", "own.pkl", "pipe"]


def test_a_write_that_fails_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    """The limit on the size of files stands for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        done = run("import", folder / PICKLE, "--D", "128", "--out", tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.exit_code == 2
    assert done.stderr.startswith(f"pfgmpp: {tmp_path}/a.safetensors: cannot be written (")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_a_name_the_file_is_named_by_the_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = tmp_path / "names.json"
    names.write_text(json.dumps([f"digit {each}" for each in range(10)]))
    done = run("import", folder / PICKLE, "--D", "inf", "--classes", names)
    assert done.exit_code == 0, done.output
    card = read_card(tmp_path / "x-dinf.safetensors")
    assert card.classes[3] == "digit 3"

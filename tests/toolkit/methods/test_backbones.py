"""Backbones: torchvision's features, weights from files of both kinds, and a sentence for every file that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from adedge.errors import DataError
from adedge.methods import backbones


@pytest.fixture(scope="module")
def resnet() -> torch.nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).eval()


@pytest.fixture(scope="module")
def resnet_file(resnet: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet.state_dict(), path)
    return path


def test_resnet_features_are_those_of_torchvision(resnet: torch.nn.Module, resnet_file: Path) -> None:
    network = backbones.untrained("resnet18").eval()
    backbones.fill(network, "resnet18", str(resnet_file))
    x = torch.rand(2, 3, 64, 96)
    wanted: dict[str, torch.Tensor] = {}
    hooks = [
        getattr(resnet, name).register_forward_hook(lambda _, __, out, name=name: wanted.__setitem__(name, out))
        for name in ("layer1", "layer2", "layer3")
    ]
    with torch.inference_mode():
        resnet(x)
        found = network(x)
    for hook in hooks:
        hook.remove()
    for features, name, channels in zip(found, ("layer1", "layer2", "layer3"), network.channels, strict=True):
        torch.testing.assert_close(features, wanted[name])
        assert features.shape[1] == channels


def test_vgg_features_are_its_last_four_poolings() -> None:
    network = backbones.untrained("vgg16").eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        found = network(x)
        wanted = [network.features[:stop](x) for stop in (10, 17, 24, 31)]  # type: ignore[index]
    assert [tuple(one.shape) for one in found] == [(1, 128, 16, 16), (1, 256, 8, 8), (1, 512, 4, 4), (1, 512, 2, 2)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_file_of_the_needed_layers_is_enough_and_the_digest_is_of_the_values(
    resnet: torch.nn.Module, resnet_file: Path, tmp_path: Path
) -> None:
    needed = {
        name: value.clone()
        for name, value in resnet.state_dict().items()
        if not name.startswith(("layer4", "fc")) and not name.endswith("num_batches_tracked")
    }
    save_file(needed, tmp_path / "part.safetensors")
    digest = backbones.digest("resnet18", str(tmp_path / "part.safetensors"))
    assert digest == backbones.digest("resnet18", str(resnet_file))
    needed["conv1.weight"][0, 0, 0, 0] += 1
    save_file(needed, tmp_path / "other.safetensors")
    assert backbones.digest("resnet18", str(tmp_path / "other.safetensors")) != digest
    assert backbones.digest("resnet18", "none") == ""


def test_none_leaves_the_network_as_it_was() -> None:
    network = backbones.untrained("resnet18")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    backbones.fill(network, "resnet18", "none")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer2.0.conv1.weight"), r"'layer2.0.conv1.weight' is missing"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("layer1")], r"and \d+ others are missing"),
        (lambda s: s.update(stranger=torch.zeros(1)), r"'stranger' is unknown"),
        (
            lambda s: s.update({"conv1.weight": torch.zeros(64, 1, 7, 7)}),
            r"has shape \(64, 1, 7, 7\), not \(64, 3, 7, 7\)",
        ),
        (lambda s: s["bn1.bias"].fill_(torch.nan), r"not finite in 'bn1.bias'"),
    ],
)
def test_weights_that_do_not_fit_are_named(resnet, tmp_path, change, message) -> None:  # type: ignore[no-untyped-def]
    state = {name: value.clone() for name, value in resnet.state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(DataError, match=message):
        backbones.digest("resnet18", str(tmp_path / "w.pth"))


def test_files_that_are_no_weights_are_refused(tmp_path: Path, resnet: torch.nn.Module) -> None:
    (tmp_path / "text.pth").write_text("not weights\n")
    (tmp_path / "text.safetensors").write_text("not weights\n")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    torch.save(resnet, tmp_path / "pickled.pth")  # a whole module would need arbitrary code to load
    for name in ("text.pth", "text.safetensors", "pickled.pth"):
        with pytest.raises(DataError, match="cannot be read as weights"):
            backbones.digest("resnet18", str(tmp_path / name))
    with pytest.raises(DataError, match="not a state dict"):
        backbones.digest("resnet18", str(tmp_path / "tensor.pth"))
    with pytest.raises(DataError, match="is not there"):
        backbones.digest("resnet18", str(tmp_path / "absent.pth"))


def test_a_download_that_fails_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(DataError, match="--weights FILE"):
        backbones.digest("vgg16", "torchvision")

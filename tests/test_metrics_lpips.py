"""LPIPS against the lpips package, against a plain recomputation, and from files good and bad."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from metric_weights import drawn, pair
from safetensors.torch import save_file
from torch import Tensor, nn

from tokkit.errors import DataError
from tokkit.metrics.lpips import Lpips, load_lpips, trunk_names

# lpips 0.1.4, LPIPS(net="vgg", pretrained=False, pnet_rand=True) with these weights.
REFERENCE_LPIPS = [0.22201482951641083, 0.22332657873630524]

# VGG16's layers in torchvision's order; "M" is a max pooling.
LAYERS = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]


def vgg16() -> nn.Sequential:
    """The convolutional part of VGG16, numbered as torchvision numbers it."""
    layers: list[nn.Module] = []
    channels = 3
    for layer in LAYERS:
        if isinstance(layer, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, layer, 3, padding=1), nn.ReLU()]
            channels = layer
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def weights() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    trunk = drawn({f"features.{name}": value.shape for name, value in vgg16().state_dict().items()})
    heads = drawn({f"lin{i}.model.1.weight": torch.Size((1, c, 1, 1)) for i, c in enumerate((64, 128, 256, 512, 512))})
    return trunk, heads


@pytest.fixture(scope="module")
def files(weights: tuple[dict[str, Tensor], dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("lpips")
    trunk, heads = folder / "vgg16.pth", folder / "vgg.safetensors"
    torch.save({**weights[0], "classifier.0.weight": torch.zeros(2, 2)}, trunk)
    save_file(weights[1], heads)
    return trunk, heads


@pytest.fixture(scope="module")
def network(files: tuple[Path, Path]) -> Lpips:
    return load_lpips(*files)[0]


def test_it_agrees_with_the_lpips_package(network: Lpips) -> None:
    np.testing.assert_allclose(network.distance(*pair()).numpy(), REFERENCE_LPIPS, rtol=1e-5)


def test_it_agrees_with_a_plain_recomputation(network: Lpips, weights: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    trunk, heads = weights
    layers = vgg16().double()
    layers.load_state_dict({name.removeprefix("features."): value for name, value in trunk.items()})
    original, worse = pair(33, 32, 1)
    x, y = ((p[0].permute(2, 0, 1).double() / 127.5 - 1)[None] for p in (original, worse))
    shift, scale = (torch.tensor(v).double().view(3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    x, y = (x - shift) / scale, (y - shift) / scale
    total, stage = 0.0, 0
    with torch.no_grad():
        for i, layer in enumerate(layers):
            x, y = layer(x), layer(y)
            if i in (3, 8, 15, 22, 29):  # the last ReLU before each pooling
                for row in range(x.shape[2]):
                    for column in range(x.shape[3]):
                        a, b = x[0, :, row, column], y[0, :, row, column]
                        difference = (a / a.norm() - b / b.norm()) ** 2
                        head = heads[f"lin{stage}.model.1.weight"].double().flatten()
                        total += float((difference * head).sum()) / (x.shape[2] * x.shape[3])
                stage += 1
    assert network.distance(original, worse).item() == pytest.approx(total, rel=1e-5)


def test_equal_pictures_have_no_distance_and_batches_do_not_mix(network: Lpips) -> None:
    original, worse = pair(count=3)
    assert network.distance(original, original).tolist() == [0.0] * 3
    apart = torch.cat([network.distance(original[i : i + 1], worse[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network.distance(original, worse), apart, rtol=1e-6, atol=0)


def test_a_file_is_named_by_its_bytes(files: tuple[Path, Path]) -> None:
    import hashlib

    assert load_lpips(*files)[1] == {
        "trunk": hashlib.sha256(files[0].read_bytes()).hexdigest(),
        "heads": hashlib.sha256(files[1].read_bytes()).hexdigest(),
    }


def test_the_trunk_has_torchvisions_names() -> None:
    assert set(trunk_names().values()) == {f"features.{name}" for name in vgg16().state_dict()}


def test_wrong_files_are_told_of(files: tuple[Path, Path], tmp_path: Path) -> None:
    trunk, heads = files
    with pytest.raises(DataError, match="no such file"):
        load_lpips(tmp_path / "absent.pth", heads)
    with pytest.raises(DataError, match=r"no features\.0\.weight"):
        load_lpips(heads, heads)
    with pytest.raises(DataError, match=r"no lin0\.model\.1\.weight"):
        load_lpips(trunk, trunk)
    (tmp_path / "cut.pth").write_bytes(trunk.read_bytes()[:5000])
    with pytest.raises(DataError, match="damaged"):
        load_lpips(tmp_path / "cut.pth", heads)
    (tmp_path / "cut.safetensors").write_bytes(heads.read_bytes()[:50])
    with pytest.raises(DataError, match="damaged"):
        load_lpips(trunk, tmp_path / "cut.safetensors")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(DataError, match="holds a list"):
        load_lpips(tmp_path / "list.pth", heads)
    torch.save({"lin0.model.1.weight": torch.zeros(1, 3, 1, 1)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match=r"\[1, 3, 1, 1\], not \[1, 64, 1, 1\]"):
        load_lpips(trunk, tmp_path / "other.pth")


def test_a_pickle_of_more_than_tensors_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(a=1)}, tmp_path / "pickle.pth")
    with pytest.raises(DataError, match="not a plain file of tensors"):
        load_lpips(files[0], tmp_path / "pickle.pth")

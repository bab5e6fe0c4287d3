"""encodec imports beside an absent, a broken and a working torchaudio, and nobody else sees what stands in for it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tokkit.errors import UsageError
from tokkit.tokenizers.audio import encodec_package
from tokkit.tokenizers.audio.encodec_package import Spectrogram, import_encodec

OURS = ("encodec", "torchaudio")


def _is_ours(name: str) -> bool:
    return name.split(".")[0] in OURS


@pytest.fixture
def _fresh() -> Iterator[None]:
    """As in a process that has imported neither; afterwards everything is as it was."""
    kept = {name: module for name, module in sys.modules.items() if _is_ours(name)}
    for name in kept:
        del sys.modules[name]
    yield
    for name in [name for name in sys.modules if _is_ours(name)]:
        del sys.modules[name]
    sys.modules.update(kept)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _fresh: None) -> Path:
    """A folder that packages are found in first."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def _package(site: Path, name: str, **files: str) -> None:
    folder = site / name
    folder.mkdir()
    for file, text in files.items():
        (folder / f"{file}.py").write_text(text)
    importlib.invalidate_caches()


def _discriminator_spectrogram() -> type:
    found = sys.modules["encodec.msstftd"].torchaudio.transforms.Spectrogram
    assert isinstance(found, type)
    return found


def _encodes() -> None:
    encoder = import_encodec().modules.SEANetEncoder(n_filters=2, dimension=4)
    assert encoder(torch.zeros(1, 1, 640)).shape == (1, 4, 2)


def _no_torchaudio_left() -> None:
    assert [name for name in sys.modules if name.split(".")[0] == "torchaudio"] == []


def test_absent(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        """Where torchaudio is installed after all."""

        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name.split(".")[0] == "torchaudio":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Nothing(), *sys.meta_path])
    _encodes()
    assert _discriminator_spectrogram() is Spectrogram
    _no_torchaudio_left()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("torchaudio")


@pytest.mark.parametrize("error", ["OSError('libc10_cuda.so')", "RuntimeError('built for another torch')", "ImportError('no')"])
def test_broken(site: Path, error: str) -> None:
    _package(site, "torchaudio", __init__=f"import torchaudio.half\nraise {error}\n", half="here = True\n")
    _encodes()
    assert _discriminator_spectrogram() is Spectrogram
    _no_torchaudio_left()
    with pytest.raises((OSError, RuntimeError, ImportError)):  # as broken as before, for whoever asks
        importlib.import_module("torchaudio")


def test_broken_further_down(site: Path) -> None:
    _package(site, "torchaudio", __init__="", transforms="raise OSError('no library')\n")
    _encodes()
    assert _discriminator_spectrogram() is Spectrogram
    _no_torchaudio_left()


def test_working(site: Path) -> None:
    real = "import torch\nclass Spectrogram(torch.nn.Module):\n    real = True\nclass Resample: pass\n"
    _package(site, "torchaudio", __init__="from torchaudio import transforms\n", transforms=real)
    _encodes()
    torchaudio = importlib.import_module("torchaudio")
    assert torchaudio.transforms.Spectrogram.real
    assert _discriminator_spectrogram() is torchaudio.transforms.Spectrogram


def test_one_that_was_imported_before_stays(site: Path) -> None:
    real = "class Spectrogram: pass\n"
    _package(site, "torchaudio", __init__="from torchaudio import transforms\n", transforms=real)
    before = importlib.import_module("torchaudio")
    _encodes()
    assert sys.modules["torchaudio"] is before


def test_encodec_that_is_not_there(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name.split(".")[0] == "encodec":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Nothing(), *sys.meta_path])
    with pytest.raises(UsageError, match="pip install --no-deps encodec"):
        import_encodec()
    _no_torchaudio_left()


def test_encodec_that_lacks_something(site: Path) -> None:
    _package(site, "encodec", __init__="import a_package_that_is_nowhere\n")
    with pytest.raises(UsageError, match="pip install a_package_that_is_nowhere"):
        import_encodec()
    (site / "encodec" / "__init__.py").write_text("raise RuntimeError('of its own')\n")
    importlib.invalidate_caches()
    with pytest.raises(UsageError, match="RuntimeError: of its own"):
        import_encodec()
    _no_torchaudio_left()


def test_the_spectrogram_is_a_normalized_stft() -> None:
    """Against a sum written out; against torchaudio's own it was found bit-equal."""
    wave = torch.randn(2, 1, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spectrogram = Spectrogram(n_fft=64, win_length=64, hop_length=16, normalized=True).double()
    found = spectrogram(wave)
    assert found.shape == (2, 1, 33, (1000 - 64) // 16 + 1)
    window = torch.hann_window(64).double()
    for frame, bin_ in ((0, 0), (3, 5), (58, 32)):
        n = torch.arange(64)
        turned = torch.exp(-2j * torch.pi * bin_ * n / 64)
        expected = (wave[1, 0, frame * 16 : frame * 16 + 64] * window * turned).sum() / window.pow(2).sum().sqrt()
        assert torch.allclose(found[1, 0, bin_, frame], expected)
    with pytest.raises(NotImplementedError):
        Spectrogram(64, 64, 16, power=2.0)


def test_the_discriminator_runs() -> None:
    import_encodec()
    discriminator = sys.modules["encodec.msstftd"].MultiScaleSTFTDiscriminator(filters=2)
    logits, features = discriminator(torch.zeros(1, 1, 4000))
    assert len(logits) == len(features) == 3
    with pytest.raises(NotImplementedError):
        encodec_package._Resample(44100, 24000)

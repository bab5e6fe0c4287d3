"""Reference implementations' checkpoints and what they themselves answered: every code equal, features and pictures close."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from tokkit.media.images import decode_image
from tokkit.media.transforms import BoxHalving, Preprocessing
from tokkit.pipelines.codec import EncodeConfig, encode_pictures
from tokkit.pipelines.import_tokenizer import ImportConfig, import_tokenizer
from tokkit.pipelines.progress import SilentProgress
from tokkit.tokenizers.image import load_image_tokenizer
from tokkit.tokenizers.image.importers.load import import_image_tokenizer
from tokkit.tokenizers.image.model import ImageTokenizer

FILES = {
    "taming_small": "last.ckpt",
    "chameleon_small": "vqgan.ckpt",
    "llamagen_vq16_small": "vq_ds16_c2i.pt",
    "llamagen_vq8_small": "vq_ds8_c2i.pt",
}
INPUTS = ("photo0.jpg", "photo1.jpg", "rgba.png")
ADM = Preprocessing(size=256, resize=BoxHalving(), background="dropped")
# The references' pictures are kept as float16, whose steps are up to 2^-10 between 2 and 4.
HALF = 2.0**-11


@dataclass(frozen=True)
class Case:
    """A checkpoint imported and, apart, saved and loaded again; its references."""

    folder: Path
    imported: ImageTokenizer
    loaded: ImageTokenizer
    expected: dict[str, npt.NDArray[np.generic]]
    inputs: Path

    @property
    def both(self) -> tuple[ImageTokenizer, ImageTokenizer]:
        return self.imported, self.loaded

    def pixels(self, name: str, preprocessing: Preprocessing = ADM) -> torch.Tensor:
        return torch.from_numpy(preprocessing.apply(decode_image((self.inputs / name).read_bytes())))


@pytest.fixture(scope="module", params=FILES)
def case(request: pytest.FixtureRequest, shared_golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = shared_golden / "image_tokenizers"
    folder = root / request.param
    imported = import_image_tokenizer(folder / FILES[request.param]).tokenizer
    out = tmp_path_factory.mktemp(request.param)
    import_tokenizer(ImportConfig(checkpoint=folder / FILES[request.param], out=out), SilentProgress())
    with np.load(folder / "expected.npz") as file:
        expected = dict(file)
    return Case(folder, imported, load_image_tokenizer(out), expected, root / "inputs")


@pytest.mark.parametrize("name", INPUTS)
def test_codes_and_features_of_one_picture(case: Case, name: str) -> None:
    stem = Path(name).stem
    pixels = case.pixels(name)[None]
    for tokenizer in case.both:
        assert np.array_equal(tokenizer.encode(pixels).flatten().numpy(), case.expected[f"{stem}.codes_256"])
    features = case.expected.get(f"{stem}.features_256")
    if features is not None:
        found = case.imported.quant_conv(case.imported.encoder(case.imported.normalize(pixels)))[0, :8]
        assert np.abs(found.numpy() - features).max() < 1e-4


def test_codes_in_every_slot_of_a_batch(case: Case) -> None:
    pixels = torch.stack([case.pixels(name) for name in INPUTS])
    for tokenizer in case.both:
        for turn in range(len(INPUTS)):
            codes = tokenizer.encode(pixels.roll(turn, 0)).roll(-turn, 0)
            for name, found in zip(INPUTS, codes, strict=True):
                assert np.array_equal(found.flatten().numpy(), case.expected[f"{Path(name).stem}.codes_256"]), (name, turn)


@pytest.mark.parametrize("name", INPUTS)
def test_reconstructions(case: Case, name: str) -> None:
    stem = Path(name).stem
    side = 256 // case.imported.downsample
    codes = torch.from_numpy(case.expected[f"{stem}.codes_256"].astype(np.int64)).view(1, side, side)
    wanted = case.expected[f"{stem}.reconstruction_256"].astype(np.float32)
    allowed = 1e-4 + HALF * np.maximum(np.abs(wanted), 2.0**-14)
    for tokenizer in case.both:
        assert tokenizer.decoder is not None
        assert tokenizer.post_quant_conv is not None
        found = tokenizer.decoder(tokenizer.post_quant_conv(tokenizer.quantizer.features_from_codes(codes)))[0].numpy()
        assert (np.abs(found - wanted) <= allowed).all()
        levels = (wanted.transpose(1, 2, 0).clip(-1, 1) * 0.5 + 0.5) * 255
        assert np.abs(tokenizer.decode(codes)[0].numpy() - levels).max() < 0.7  # half a step, and float16


@pytest.mark.parametrize("name", INPUTS)
def test_chameleons_own_pipeline_from_the_picture_file(case: Case, name: str) -> None:
    wanted = case.expected.get(f"{Path(name).stem}.codes_from_pil_512")
    if wanted is None:
        pytest.skip("only Chameleon's references hold these")
    for tokenizer in case.both:
        pixels = case.pixels(name, tokenizer.config.preprocessing)[None]
        assert np.array_equal(tokenizer.encode(pixels).flatten().numpy(), wanted)


def test_the_encode_job_gives_the_references_codes(case: Case, tmp_path: Path) -> None:
    """From files on disk through the tokenizer's own preprocessing, batched and padded."""
    case.loaded.save(tmp_path / "vq")
    config = EncodeConfig(tokenizer=tmp_path / "vq", input=case.inputs, out=tmp_path / "codes.npz", batch_size=2)
    encode_pictures(config, SilentProgress())
    kind = "codes_from_pil_512" if "photo0.codes_from_pil_512" in case.expected else "codes_256"
    with np.load(tmp_path / "codes.npz") as codes:
        assert sorted(codes) == sorted(INPUTS)
        for name in INPUTS:
            assert np.array_equal(codes[name].flatten(), case.expected[f"{Path(name).stem}.{kind}"])


def test_transparent_pixels_by_each_layouts_rule(case: Case) -> None:
    """Chameleon blends on white and cuts fractions off; the others ignore alpha."""
    picture = decode_image((case.inputs / "rgba.png").read_bytes())
    found = case.imported.config.preprocessing
    assert picture.mode == "RGBA"
    if found.background == "white-truncated":
        rounded = found.model_copy(update={"background": (255, 255, 255)})
        assert not np.array_equal(found.apply(picture), rounded.apply(picture))
    else:
        opaque = Image.open(case.inputs / "rgba.png").convert("RGB")
        assert np.array_equal(found.apply(picture), found.apply(opaque))


def test_what_was_derived(case: Case) -> None:
    name, config = case.folder.name, case.imported.config
    multipliers = {"taming_small": (1, 1, 1, 2, 2), "chameleon_small": (1, 1, 1, 2, 2), "llamagen_vq16_small": (1, 1, 2, 2, 2)}
    assert config.architecture.multipliers == multipliers.get(name, (1, 2, 2, 2))
    assert (config.architecture.encoder_blocks, config.architecture.decoder_blocks) == (1, 2)
    assert sum(config.architecture.attention) == (0 if name == "chameleon_small" else 1)
    assert config.architecture.middle_attention
    assert (config.quantizer.codebook_size, config.quantizer.dim) == ((1024, 8) if name.startswith("llamagen") else (512, 64))
    assert str(config.licence).startswith("Chameleon Research" if name == "chameleon_small" else "MIT")

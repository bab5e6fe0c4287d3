"""`tokkit encode` and `tokkit decode`: the tokenizer's own codes and pictures, and an account of every file."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import architecture_of, taming_names, tokenizer_of
from PIL import Image

from tokkit.cli.main import app
from tokkit.errors import DataError, UsageError
from tokkit.media.images import decode_image
from tokkit.pipelines.codec import DecodeConfig, EncodeConfig, decode_pictures, encode_pictures
from tokkit.pipelines.progress import SilentProgress
from tokkit.tokenizers.image import load_image_tokenizer
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.tokenizers.image.presets import configure

SILENT = SilentProgress()


@pytest.fixture(scope="module")
def vq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vq")
    tokenizer_of(architecture_of((1, 1, 2))).save(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five pictures (two of one name but for the suffix, one named as NumPy's parameter), a broken one, a text, one below."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "a.jpg", "b.PNG", "file.png", "below/c.webp"):
        pixels = rng.integers(0, 256, (40, 57, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:400])
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_there_and_back(vq: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "codes.npz"
    result = encode_pictures(EncodeConfig(tokenizer=vq, input=pictures, out=out, batch_size=2), SILENT)
    assert (result.pictures, result.ignored) == (5, ["notes.txt"])
    assert [(u.file, u.reason) for u in result.rejects] == [("broken.jpg", "image-truncated")]
    described = json.loads((tmp_path / "codes.npz.json").read_text())
    tokenizer = load_image_tokenizer(vq)
    assert (described["fingerprint"], described["grid"], described["pictures"]) == (tokenizer.fingerprint, [8, 8], 5)
    assert described["rejects"][0]["file"] == "broken.jpg"
    with np.load(out) as codes:
        assert sorted(codes) == ["a.jpg", "a.png", "b.PNG", "below/c.webp", "file.png"]
        for name in codes:
            pixels = tokenizer.config.preprocessing.apply(decode_image((pictures / name).read_bytes()))
            assert codes[name].dtype == np.int32
            assert np.array_equal(codes[name], tokenizer.encode(torch.from_numpy(pixels)[None])[0].numpy())
        decoded = decode_pictures(DecodeConfig(tokenizer=vq, codes=out, out=tmp_path / "back", batch_size=3), SILENT)
        assert decoded.files == {
            "a.jpg": "a.jpg.png",
            "a.png": "a.png.png",
            "b.PNG": "b.png",
            "below/c.webp": "below/c.png",
            "file.png": "file.png",
        }
        for name, file in decoded.files.items():
            wanted = tokenizer.decode(torch.from_numpy(codes[name])[None])[0].numpy()
            assert np.abs(np.asarray(Image.open(tmp_path / "back" / file)).astype(int) - wanted).max() <= 1


def test_the_same_pictures_give_the_same_bytes(vq: Path, pictures: Path, tmp_path: Path) -> None:
    for out in ("one.npz", "two.npz"):
        encode_pictures(EncodeConfig(tokenizer=vq, input=pictures, out=tmp_path / out), SILENT)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_one_picture(vq: Path, pictures: Path, tmp_path: Path) -> None:
    encode_pictures(EncodeConfig(tokenizer=vq, input=pictures / "b.PNG", out=tmp_path / "b.npy"), SILENT)
    codes = np.load(tmp_path / "b.npy")
    assert (codes.dtype, codes.shape) == (np.int32, (8, 8))
    result = decode_pictures(DecodeConfig(tokenizer=vq, codes=tmp_path / "b.npy", out=tmp_path / "back"), SILENT)
    assert result.files == {"b": "b.png"}
    assert Image.open(tmp_path / "back" / "b.png").size == (32, 32)


def test_what_cannot_be_encoded_is_told(vq: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "codes.npz"
    with pytest.raises(DataError, match="image-truncated"):
        encode_pictures(EncodeConfig(tokenizer=vq, input=pictures / "broken.jpg", out=out), SILENT)
    assert not out.exists()
    with pytest.raises(UsageError, match="no pictures in it"):
        encode_pictures(EncodeConfig(tokenizer=vq, input=vq, out=out), SILENT)
    with pytest.raises(UsageError, match="no such file"):
        encode_pictures(EncodeConfig(tokenizer=vq, input=tmp_path / "absent", out=out), SILENT)
    with pytest.raises(UsageError, match=r"name a \.npz"):
        encode_pictures(EncodeConfig(tokenizer=vq, input=pictures, out=tmp_path / "codes.npy"), SILENT)
    with pytest.raises(UsageError, match=r"name a \.npz"):
        encode_pictures(EncodeConfig(tokenizer=vq, input=pictures, out=tmp_path / "codes.bin"), SILENT)


def test_codes_of_another_tokenizer_are_refused(vq: Path, pictures: Path, tmp_path: Path) -> None:
    encode_pictures(EncodeConfig(tokenizer=vq, input=pictures, out=tmp_path / "codes.npz"), SILENT)
    ImageTokenizer(configure("fsq-tiny", resolution=32)).save(tmp_path / "other")
    with pytest.raises(DataError, match="another tokenizer"):
        decode_pictures(DecodeConfig(tokenizer=tmp_path / "other", codes=tmp_path / "codes.npz", out=tmp_path / "x"), SILENT)
    (tmp_path / "codes.npz.json").write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        decode_pictures(DecodeConfig(tokenizer=vq, codes=tmp_path / "codes.npz", out=tmp_path / "x"), SILENT)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.full((4, 4), 64), "has the code 64"),
        (np.full((4, 4), -1), "has the code -1"),
        (np.zeros((4, 4)), "float64"),
        (np.zeros(4, dtype=int), r"\[4\]|no file of codes|not integers"),
        (np.zeros((0, 4), dtype=int), "not integers"),
    ],
)
def test_codes_that_are_none(vq: Path, tmp_path: Path, codes: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "codes.npz", one=codes)
    with pytest.raises(DataError, match=message):
        decode_pictures(DecodeConfig(tokenizer=vq, codes=tmp_path / "codes.npz", out=tmp_path / "x"), SILENT)


def test_damaged_files_and_names_that_lead_elsewhere(vq: Path, tmp_path: Path) -> None:
    path = tmp_path / "codes.npz"
    for content in (b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"text"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"codes\.npz"):
            decode_pictures(DecodeConfig(tokenizer=vq, codes=path, out=tmp_path / "x"), SILENT)
    for name in ("../up", "/etc/x", "a/../../b"):
        np.savez(path, **{name: np.zeros((2, 2), dtype=int)})  # type: ignore[arg-type]
        with pytest.raises(DataError, match="no name of a file"):
            decode_pictures(DecodeConfig(tokenizer=vq, codes=path, out=tmp_path / "x"), SILENT)
    assert not (tmp_path / "x").exists()


def test_damage_is_told_whatever_the_readers_make_of_it(vq: Path, tmp_path: Path) -> None:
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "<i4", "fortran_order": False, "shape": (1 << 20, 1 << 20)})
    np.savez_compressed(tmp_path / "squeezed.npz", one=np.arange(4096).reshape(64, 64) % 64)
    squeezed = bytearray((tmp_path / "squeezed.npz").read_bytes())
    squeezed[80:120] = bytes(byte ^ 0xFF for byte in squeezed[80:120])
    (tmp_path / "squeezed.npz").write_bytes(squeezed)
    (tmp_path / "huge.npy").write_bytes(huge.getvalue())
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("notes.txt", "no array")
    for name, message in (("squeezed.npz", "damaged"), ("huge.npy", "damaged"), ("text.npz", "notes.txt is no array")):
        with pytest.raises(DataError, match=message):
            decode_pictures(DecodeConfig(tokenizer=vq, codes=tmp_path / name, out=tmp_path / "x"), SILENT)


def test_a_folder_that_cannot_be_written_to_is_not_blamed_on_the_codes(vq: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "codes.npy", np.zeros((4, 4), dtype=int))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file/x"):
        decode_pictures(DecodeConfig(tokenizer=vq, codes=tmp_path / "codes.npy", out=tmp_path / "file" / "x"), SILENT)


@pytest.mark.parametrize(
    "names",
    [["a.png", "a.jpg", "a.jpg.png"], ["a", "a.png", "a.png.png"], ["a.b", "a.b.c", "a.b.c.d"], ["d/a.png", "d/a.png.x"]],
)
def test_no_picture_takes_another_ones_name(vq: Path, tmp_path: Path, names: list[str]) -> None:
    np.savez(tmp_path / "codes.npz", **{name: np.zeros((2, 2), dtype=int) for name in names})  # type: ignore[arg-type]
    decode_pictures(DecodeConfig(tokenizer=vq, codes=tmp_path / "codes.npz", out=tmp_path / "out"), SILENT)
    assert sum(path.is_file() for path in (tmp_path / "out").rglob("*")) == len(names)


def test_the_commands(capfd: pytest.CaptureFixture[str], pictures: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": taming_names(tokenizer_of(architecture_of()))}, tmp_path / "vqgan.ckpt")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            app([str(a) for a in arguments])
        return int(caught.value.code or 0), *capfd.readouterr()

    vq, codes = tmp_path / "vq", tmp_path / "codes.npz"
    code, output, errors = run("import", tmp_path / "vqgan.ckpt", "--out", vq, "--size", 32)
    assert code == 0, errors
    assert "Chameleon Research License" in output
    code, output, _ = run("encode", vq, pictures, "--out", codes)
    assert code == 0
    assert "broken.jpg: image-truncated" in output
    assert "codes of 5 pictures, 1 not encoded, 1 other files" in output
    code, output, _ = run("decode", vq, codes, "--out", tmp_path / "back", "--json")
    assert len(json.loads(output)["files"]) == 5
    code, _, errors = run("import", tmp_path / "vqgan.ckpt", "--out", tmp_path / "o", "--layout", "dalle")
    assert code == 2
    assert "no layout 'dalle'" in errors
    assert "Traceback" not in errors

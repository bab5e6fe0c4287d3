"""``tokkit eval``: the figures are those of the pictures, nothing is left out in silence, and the page stands alone."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from metric_weights import drawn
from PIL import Image as PILImage
from safetensors.torch import save_file
from sources_helpers import tar_bytes
from typer.testing import CliRunner

from tokkit.cli.main import app
from tokkit.documents import Image
from tokkit.errors import ConfigError, DataError, UsageError
from tokkit.metrics.fid import FeatureStatistics
from tokkit.metrics.inception import Inception, load_inception
from tokkit.metrics.lpips import Lpips, load_lpips, trunk_names
from tokkit.metrics.ssim import ssim
from tokkit.pipelines.eval_scores import Example, PictureScore, Shown, Summary
from tokkit.pipelines.evaluate import EvalResult, EvaluateConfig, evaluate
from tokkit.pipelines.pictures import find_pictures
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.settings import validated
from tokkit.tokenizers.image import load_image_tokenizer
from tokkit.tokenizers.image.presets import configure
from tokkit.training.image_task import fresh_tokenizer
from tokkit.training.items import is_held_out

GOOD = 11  # pictures; two more have the same bytes, and two are broken


def png(seed: int) -> bytes:
    """A picture of smooth noise, not square."""
    pixels = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).resize((50, 40), PILImage.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(GOOD):
        (folder / f"{i:02d}.png").write_bytes(png(i))
    (folder / "03-again.png").write_bytes(png(3))
    (folder / "04-again.png").write_bytes(png(4))
    (folder / "cut.png").write_bytes(png(20)[:400])
    (folder / "none.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An FSQ tokenizer at 32 px and a VQ one at 48, both with drawn weights."""
    folder = tmp_path_factory.mktemp("tokenizers")
    small = {"architecture.channels": 16, "architecture.z_channels": 16}
    fsq = configure("fsq-tiny", {**small, "quantizer.levels": [8, 5, 5]}, 32)
    vq = configure("vq-tiny", {**small, "quantizer.codebook_size": 64}, 48)
    for name, config in (("fsq", fsq), ("vq", vq)):
        fresh_tokenizer(config, 1).save(folder / name)
    return folder / "fsq", folder / "vq"


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files to measure with, of drawn weights."""
    folder = tmp_path_factory.mktemp("networks")
    lpips, inception = Lpips().state_dict(), Inception().state_dict()
    save_file(drawn({theirs: lpips[ours].shape for ours, theirs in trunk_names().items()}), folder / "vgg.safetensors")
    heads = {f"lin{i}.model.1.weight": lpips[f"heads.{i}"].shape for i in range(5)}
    torch.save(drawn(heads), folder / "heads.pth")
    save_file(drawn({k: v.shape for k, v in inception.items() if "tracked" not in k}), folder / "inception.safetensors")
    return {
        "lpips_vgg": folder / "vgg.safetensors",
        "lpips_heads": folder / "heads.pth",
        "inception": folder / "inception.safetensors",
    }


def run(out: Path, tokenizers: tuple[Path, ...], pictures: Path, **options: Any) -> EvalResult:
    config = {"tokenizers": tokenizers, "inputs": (str(pictures),), "out": out, "threads": 1, "batch_size": 4, "examples": 3}
    return evaluate(validated(EvaluateConfig, "test", config | options), SilentProgress())


def by_hand(folder: Path, pictures: Path, size: int | None = None) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Originals, reconstructions and code counts of all good pictures, one at a time, in the order of their names."""
    tokenizer = load_image_tokenizer(folder)
    rule = tokenizer.config.preprocessing
    rule = rule if size is None else rule.model_copy(update={"size": size})
    originals, reconstructions, counts = [], [], np.zeros(tokenizer.codebook_size, dtype=np.int64)
    for path in sorted(pictures.glob("[0-9]*.png")):
        pixels = torch.from_numpy(rule.apply(PILImage.open(path).convert("RGB")))[None]
        codes = tokenizer.encode(pixels)
        originals.append(pixels)
        reconstructions.append(tokenizer.decode(codes))
        np.add.at(counts, codes.flatten().numpy(), 1)
    return torch.cat(originals), torch.cat(reconstructions), counts


def distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Some distance of the same two sets."""
    return float(((a.mean - b.mean) ** 2).sum() + np.abs(np.trace(a.covariance) - np.trace(b.covariance)))


def test_figures_are_those_of_every_picture(tmp_path: Path, tokenizers: tuple[Path, ...], pictures: Path) -> None:
    result = run(tmp_path, tokenizers, pictures, batch_size=1)
    assert (result.pictures, result.seen) == (GOOD + 2, GOOD + 4)
    assert sum(result.rejects.values()) == 2
    assert set(result.rejects) <= {"image-truncated", "image-damaged"}
    for folder, scores, side in zip(tokenizers, result.tokenizers, (32, 48), strict=True):
        originals, reconstructions, counts = by_hand(folder, pictures)
        errors = ((originals.double() - reconstructions.double()) ** 2).mean((1, 2, 3))
        decibels = 10 * np.log10(255**2 / errors.numpy())
        assert scores.psnr.mean == pytest.approx(decibels.mean())
        assert scores.psnr.minimum == pytest.approx(decibels.min())
        assert scores.ssim is not None
        assert scores.ssim.mean == pytest.approx(ssim(originals, reconstructions).mean().item())
        share = counts[counts > 0] / counts.sum()
        assert scores.codebook.used == np.count_nonzero(counts)
        assert scores.codebook.codes == counts.sum() == (GOOD + 2) * (side // 8) ** 2
        assert scores.codebook.usage == pytest.approx(np.count_nonzero(counts) / counts.size)
        assert scores.codebook.perplexity == pytest.approx(np.prod(share**-share))
        assert (scores.resolution, scores.tokens) == (side, (side // 8) ** 2)
        assert scores.bits_per_pixel == pytest.approx(np.log2(counts.size) / 64)
        names = [p.name for p in sorted(pictures.glob("[0-9]*.png"))]
        first_worst, first_best = names[int(decibels.argmin())], names[int(decibels.argmax())]
        assert scores.worst[0].locator.split("/")[-1].startswith(first_worst)
        assert scores.best[0].locator.split("/")[-1].startswith(first_best)
        assert scores.worst[0].psnr <= scores.worst[1].psnr <= scores.best[1].psnr <= scores.best[0].psnr


def test_missing_weights_are_named_with_where_to_get_them(tmp_path: Path, tokenizers: tuple[Path, ...], pictures: Path) -> None:
    result = run(tmp_path, tokenizers, pictures)
    assert {m.metric: list(m.tokenizers) for m in result.missing} == {m: [*map(str, tokenizers)] for m in ("lpips", "rfid")}
    written, page = json.loads((tmp_path / "eval.json").read_text()), (tmp_path / "eval.html").read_text()
    for text, where in (("--lpips-vgg", "PerceptualSimilarity"), ("--inception", "pytorch-fid")):
        assert any(text in m["provide"] and where in m["provide"] for m in written["missing"])
        assert text in page
        assert where in page
    assert written["tokenizers"][0]["rfid"] is None
    assert len((tmp_path / "rejects.jsonl").read_text().splitlines()) == 2


def test_with_weights_lpips_and_rfid_are_measured(
    tmp_path: Path,
    tokenizers: tuple[Path, ...],
    networks: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tokkit.pipelines.eval_scores.frechet_distance", distance)  # the real one takes seconds
    (pictures := tmp_path / "few").mkdir()
    for i in range(3):
        (pictures / f"{i}.png").write_bytes(png(i))
    result = run(tmp_path, tokenizers[:1], pictures, **networks)
    scores = result.tokenizers[0]
    assert not result.missing
    originals, reconstructions, _ = by_hand(tokenizers[0], pictures)
    lpips, inception = load_lpips(networks["lpips_vgg"], networks["lpips_heads"])[0], load_inception(networks["inception"])[0]
    assert scores.lpips is not None
    assert scores.lpips.mean == pytest.approx(lpips.distance(originals, reconstructions).mean().item(), rel=1e-4)
    sets = []
    for part in (originals, reconstructions):
        sets.append(FeatureStatistics(2048))
        sets[-1].add(inception.features(part).numpy())
    assert scores.rfid == pytest.approx(distance(*sets), rel=1e-3)
    assert set(result.weights) == {"lpips-trunk", "lpips-heads", "inception"}

    again = run(tmp_path / "same", tokenizers[:1], pictures, inception=networks["inception"], reference=(str(pictures),))
    assert again.tokenizers[0].rfid == pytest.approx(scores.rfid, rel=1e-6)
    assert (again.reference_pictures, sum(again.reference_rejects.values())) == (3, 0)
    (tmp_path / "other").mkdir()
    for i in (50, 51):
        (tmp_path / "other" / f"{i}.png").write_bytes(png(i))
    other = run(tmp_path / "o", tokenizers[:1], pictures, inception=networks["inception"], reference=(str(tmp_path / "other"),))
    assert other.reference_pictures == 2
    assert other.tokenizers[0].rfid != pytest.approx(scores.rfid, rel=1e-3)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, tokenizers: tuple[Path, ...], pictures: Path) -> None:
    for name, threads in (("a", 1), ("b", 1), ("a", 2)):
        run(tmp_path / name, tokenizers, pictures, threads=threads)
    for file in ("eval.json", "eval.html", "rejects.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_page_stands_alone(tmp_path: Path, tokenizers: tuple[Path, ...], pictures: Path) -> None:
    run(tmp_path, tokenizers, pictures)
    page = (tmp_path / "eval.html").read_text()
    assert "<script" not in page
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert not re.search(r"url\(|@import|<link|href=", page)
    assert page.count("<svg") == 4
    # per tokenizer: three of each kind, with their originals
    assert page.count("<img") == 2 * 3 * 3 * 2
    assert "different resolutions" in page
    run(tmp_path, tokenizers, pictures, resolution=40)
    page = (tmp_path / "eval.html").read_text()
    assert "different resolutions" not in page
    assert page.count("<img") == 2 * 3 * 3 * 2 - 3  # the sample's originals stand once


def test_another_resolution_is_by_each_tokenizers_own_rule(
    tmp_path: Path, tokenizers: tuple[Path, ...], pictures: Path
) -> None:
    result = run(tmp_path, tokenizers, pictures, resolution=64)
    for folder, scores in zip(tokenizers, result.tokenizers, strict=True):
        originals, reconstructions, _ = by_hand(folder, pictures, 64)
        errors = ((originals.double() - reconstructions.double()) ** 2).mean((1, 2, 3))
        assert scores.psnr.mean == pytest.approx((10 * torch.log10(255**2 / errors)).mean().item())
        assert scores.resolution == 64
        assert (scores.tokens, scores.codebook.codes) == (64, 64 * (GOOD + 2))  # the last batch is not full
    with pytest.raises(UsageError, match="no multiple of its downsampling factor 8"):
        run(tmp_path, tokenizers, pictures, resolution=60)


def test_too_small_pictures_leave_a_metric_out_by_name(
    tmp_path: Path, tokenizers: tuple[Path, ...], pictures: Path, networks: dict[str, Path]
) -> None:
    given = {"lpips_vgg": networks["lpips_vgg"], "lpips_heads": networks["lpips_heads"]}
    result = run(tmp_path, tokenizers, pictures, resolution=8, **given)
    assert {m.metric: m.why for m in result.missing if m.metric != "rfid"} == {
        "ssim": "pictures smaller than its 11x11 window",
        "lpips": "pictures smaller than 16x16",
    }
    assert result.tokenizers[0].ssim is None


def test_held_out_takes_what_a_training_left_out(tmp_path: Path, tokenizers: tuple[Path, ...], pictures: Path) -> None:
    expected = [p for p in sorted(pictures.glob("[0-9]*.png")) if is_held_out(Image(p.read_bytes(), p.name), 0.4)]
    assert 0 < len(expected) < GOOD
    result = run(tmp_path, tokenizers[:1], pictures, held_out=0.4)
    assert result.pictures == len(expected)
    assert f"{len(expected)} pictures" in (tmp_path / "eval.html").read_text()


def test_a_limit_bounds_the_pictures(tmp_path: Path, tokenizers: tuple[Path, ...], pictures: Path) -> None:
    assert run(tmp_path, tokenizers[:1], pictures, limit=5).seen == 5


def test_pictures_come_from_files_folders_globs_and_corpora(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "tars").mkdir()
    members = [("000.png", png(1)), ("000.txt", b"a"), ("001.png", png(2)), ("001.txt", b"b")]
    (tmp_path / "tars" / "00000.tar").write_bytes(tar_bytes(members))
    (tmp_path / "tars" / "beside.png").write_bytes(png(3))
    (tmp_path / "deep" / "class").mkdir(parents=True)
    (tmp_path / "deep" / "class" / "x.PNG").write_bytes(png(4))
    (tmp_path / "deep" / "labels.txt").write_text("a caption")
    (tmp_path / "deep" / ".hidden.png").write_bytes(png(5))

    def found(*inputs: object) -> list[str]:
        given = find_pictures([str(i) for i in inputs], SilentProgress()).pictures()
        return sorted(p.locator for p in given)

    assert found(tmp_path / "deep") == ["deep/class/x.PNG"]
    assert found(tmp_path / "deep/class/x.PNG") == ["class/x.PNG"]
    assert found(tmp_path / "tars") == ["tars/00000.tar#000", "tars/00000.tar#001"]
    assert found(tmp_path / "tars", tmp_path / "de*") == ["deep/class/x.PNG", "tars/00000.tar#000", "tars/00000.tar#001"]
    assert len(found(f"{pictures}/0[0-4].png")) == 5
    with pytest.raises(ConfigError, match="named by an earlier input"):
        found(tmp_path / "deep", tmp_path / "deep/class")
    with pytest.raises(ConfigError):
        found(tmp_path / "nowhere")
    with pytest.raises(ConfigError):
        found()


def test_the_first_files_are_of_all_folders(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(20):
            (tmp_path / label / f"{i}.png").write_bytes(png(i))
    order = [p.locator for p in find_pictures([str(tmp_path)], SilentProgress()).pictures()]
    assert len({locator.split("/")[-2] for locator in order[:8]}) == 2
    assert sorted(order) == sorted(find_pictures([str(tmp_path)], SilentProgress()).files)


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for parent in "ab":
        (tmp_path / parent / "p").mkdir(parents=True)
        (tmp_path / parent / "p" / "x.png").write_bytes(png(ord(parent)))
    inputs = find_pictures([str(tmp_path / "a/p"), str(tmp_path / "b/p")], SilentProgress())
    assert sorted(inputs.files) == ["p/x.png", "p/x.png-2"]


def test_real_pictures_of_many_formats(tmp_path: Path, tokenizers: tuple[Path, ...], shared_data: Path) -> None:
    result = run(tmp_path, tokenizers[:1], shared_data / "image_folder", held_out=0.3)
    assert result.pictures > 10
    assert not result.rejects
    broken = run(tmp_path, tokenizers[:1], shared_data / "bad", limit=60)
    assert broken.pictures + sum(broken.rejects.values()) == 60
    assert len(broken.rejects) > 3


def test_names_are_shown_as_text(tmp_path: Path, tokenizers: tuple[Path, ...]) -> None:
    folder = tmp_path / "<b>bold<" / "pictures"
    folder.mkdir(parents=True)
    (folder / "<img src=x onerror=alert(1)>.png").write_bytes(png(1))
    run(tmp_path / "out", tokenizers[:1], folder)
    page = (tmp_path / "out" / "eval.html").read_text()
    assert "<b>bold<" not in page
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_wrong_options_are_told_before_the_work(
    tmp_path: Path, tokenizers: tuple[Path, ...], pictures: Path, networks: dict[str, Path]
) -> None:
    with pytest.raises(ConfigError, match="needs both"):
        run(tmp_path, tokenizers, pictures, lpips_vgg=networks["lpips_vgg"])
    with pytest.raises(ConfigError, match="needs inception"):
        run(tmp_path, tokenizers, pictures, reference=("x",))
    with pytest.raises(ConfigError, match="named twice"):
        run(tmp_path, (tokenizers[0], tokenizers[0]), pictures)
    with pytest.raises(UsageError, match="device"):
        run(tmp_path, tokenizers, pictures, device="abacus")
    with pytest.raises(UsageError, match="float64"):
        run(tmp_path, tokenizers, pictures, device="meta")
    with pytest.raises(DataError, match="no such file"):
        run(tmp_path, tokenizers, pictures, inception=tmp_path / "absent.pth")
    with pytest.raises(DataError):
        run(tmp_path, (pictures,), pictures)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "cut.png").write_bytes(png(1)[:300])
    with pytest.raises(UsageError, match=r"no picture to measure.*1 could not be used"):
        run(tmp_path, tokenizers, tmp_path / "broken")


def test_a_tokenizer_without_decoder_is_refused(tmp_path: Path, pictures: Path) -> None:
    small = {"architecture.channels": 16, "architecture.z_channels": 16, "architecture.decoder_blocks": 0}
    fresh_tokenizer(configure("fsq-tiny", small, 32), 1).save(tmp_path / "encoder")
    with pytest.raises(UsageError, match="has no decoder"):
        run(tmp_path / "out", (tmp_path / "encoder",), pictures)


def test_the_command_line(tmp_path: Path, tokenizers: tuple[Path, ...], pictures: Path) -> None:
    first, second = map(str, tokenizers)
    arguments = ["eval", first, str(pictures), "--out", str(tmp_path / "a"), "--compare", second, "--threads", "1"]
    done = CliRunner().invoke(app, [*arguments, "--json", "-q"])
    assert done.exit_code == 0, done.output
    written = json.loads(done.stdout)
    assert [t["label"] for t in written["tokenizers"]] == [first, second]
    shown = CliRunner().invoke(app, [*arguments, "-q"])
    assert "PSNR" in shown.stdout
    assert "rfid not measured" in shown.stdout
    wrong = CliRunner().invoke(app, ["eval", first, str(tmp_path / "nowhere"), "--out", str(tmp_path / "b")])
    assert wrong.exit_code == 2


def test_a_summary_is_of_all_values() -> None:
    found = Summary.of([1.0, 2.0, 3.0, 6.0])
    assert (found.mean, found.minimum, found.median, found.maximum) == (3.0, 1.0, 2.5, 6.0)
    assert found.deviation == pytest.approx(3.5**0.5)


def test_few_pictures_are_kept_and_each_once() -> None:
    shown = Shown(2)
    nothing = np.zeros((1, 1, 3), np.uint8)
    for key, content in ((3.0, "a"), (1.0, "b"), (1.0, "b"), (2.0, "c"), (4.0, "d")):
        shown.offer(key, Example(PictureScore(content, key, None, None), content, nothing, nothing))
    assert [example.hash for example in shown.examples] == ["b", "c"]

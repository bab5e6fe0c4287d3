"""The command line's conventions: exit codes, one message an error, JSON on standard output, progress on standard error."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from shard_corpus import write_corpus, write_tokenizers

from tokkit.cli.common import size
from tokkit.cli.main import app
from tokkit.pipelines.progress import LineProgress, duration


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Corpus, text model, image tokenizer."""
    folder = tmp_path_factory.mktemp("cli")
    corpus = write_corpus(folder / "corpus").folder
    return corpus, *write_tokenizers(folder / "tokenizers")


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command."""
    with pytest.raises(SystemExit) as caught:
        app([str(a) for a in arguments])
    out, err = capfd.readouterr()
    return int(caught.value.code or 0), out, err


def shard_arguments(made: tuple[Path, Path, Path], out: Path, workers: int = 0) -> list[object]:
    corpus, text, image = made
    inputs = [corpus / name for name in ("pairs", "documents", "texts", "audio")]
    return ["shard", *inputs, "--out", out, "--text-tokenizer", text, "--image-tokenizer", image, "--workers", workers]


def test_the_main_way(capfd: pytest.CaptureFixture[str], made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "shards"
    code, output, errors = run(capfd, *shard_arguments(made, out, workers=1), "--pack", 256, "--val-fraction", 0.2)
    assert code == 0, errors
    assert "What became of every document and media item" in output
    assert "Packing" in output
    assert "no-audio-tokenizer" in output
    assert "encode: " in errors
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 3
    assert "&lt;image&gt;" in page
    assert "<image>" not in page

    code, output, _ = run(capfd, "verify", out)
    assert code == 0
    assert "agrees with itself" in output

    code, output, _ = run(capfd, "pack", out, "--seq-len", 512, "--json")
    assert code == 0
    assert json.loads(output)["splits"]["train"]["seq_len"] == 512

    code, output, _ = run(capfd, "inspect", out, "--json")
    assert json.loads(output)["documents"]["committed"] > 0

    code, output, _ = run(capfd, "inspect", out, "--document", "00000.tar#000000003", "--out", tmp_path / "look")
    assert code == 0
    assert "A picture, number 3" in output
    assert {p.name for p in (tmp_path / "look").iterdir()} == {"document.md", "image-0.png"}
    from PIL import Image

    assert Image.open(tmp_path / "look" / "image-0.png").size == (32, 32)

    code, output, _ = run(capfd, "inspect", out, "--document", "val:0", "--json")
    assert json.loads(output)["split"] == "val"


def test_json_is_all_that_is_on_standard_output(
    capfd: pytest.CaptureFixture[str], made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    code, output, errors = run(capfd, *shard_arguments(made, tmp_path / "shards"), "--json", "--quiet")
    assert code == 0
    assert errors == ""
    result = json.loads(output)
    assert result["manifest"]["documents"]["committed"] > 0
    assert result["summary"]["workers"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["verify", "NOWHERE"], 1, "holds no token shards"),
        (["inspect", "NOWHERE"], 1, "holds no token shards"),
        (["pack", "NOWHERE", "--seq-len", "128"], 1, "holds no token shards"),
        (["pack", "NOWHERE", "--seq-len", "1"], 2, "seq_len"),
        (["inspect", "NOWHERE", "--out", "x"], 2, "--out needs --document"),
        (["shard", "NOWHERE/*.tar", "--out", "NOWHERE", "--text-tokenizer", "NOWHERE/t.model"], 2, "text_tokenizer"),
        (["train-text", "NOWHERE/a.txt", "--out", "NOWHERE/t.model"], 2, "NOWHERE"),
        (["train-vq", "NOWHERE", "--out", "NOWHERE/vq", "--set", "nonsense"], 2, "'nonsense' is not KEY=VALUE"),
        (["train-vq", "NOWHERE", "--out", "NOWHERE/vq", "--set", "quantizer.nothing=1"], 2, "quantizer.nothing"),
        (["train-vq", "NOWHERE", "--out", "NOWHERE/vq", "--preset", "none"], 2, "fsq-tiny"),
    ],
)
def test_errors_are_one_message_and_an_exit_code(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    real = [a.replace("NOWHERE", str(tmp_path / "nowhere")) for a in arguments]
    found, output, errors = run(capfd, *real)
    assert found == code
    assert output == ""
    assert message.replace("NOWHERE", str(tmp_path / "nowhere")) in errors
    assert errors.startswith("tokkit: ")
    assert "Traceback" not in errors
    found, output, errors = run(capfd, *real, "--json")
    assert found == code
    assert json.loads(output)["exit_code"] == code


def test_debug_shows_the_traceback(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "Traceback" in run(capfd, "verify", tmp_path / "nowhere", "--debug")[2]


def test_an_unknown_flag_is_wrong_usage(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "shard", "--nonsense")[0] == 2


def test_verify_leaves_with_1_where_something_is_wrong(
    capfd: pytest.CaptureFixture[str], made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    assert run(capfd, *shard_arguments(made, out), "--quiet")[0] == 0
    (out / "tokens" / "train" / "00000.bin").write_bytes(b"")
    code, output, errors = run(capfd, "verify", out)
    assert code == 1
    assert "has 0 bytes" in output
    assert "1 problem found (size 1)" in errors
    code, output, _ = run(capfd, "verify", out, "--json")
    assert code == 1
    assert json.loads(output)["ok"] is False


def test_sizes() -> None:
    import typer

    assert [size(s) for s in ("64", "64MB", "64 MiB", "1.5k", "2G", None)] == [64, 64 * 10**6, 64 << 20, 1500, 2 * 10**9, None]
    for wrong in ("", "many", "64 parsecs", "-"):
        with pytest.raises(typer.BadParameter):
            size(wrong)


def test_progress_in_a_log_file_is_plain_lines() -> None:
    out = io.StringIO()
    progress = LineProgress(out, every=0.0)
    progress.log("begin")
    with progress.task("encode", total=3, unit="units") as task:
        task.fields(rate="7/s")
        task.advance()
        task.advance(2)
    lines = out.getvalue().splitlines()
    assert lines[0] == "begin"
    assert lines[1].startswith("encode: 1/3 units (33 %), rate 7/s, ")
    assert lines[1].endswith(" left")
    assert lines[-1].startswith("encode: 3/3 units (100 %)")
    assert "\x1b" not in out.getvalue()
    assert "\r" not in out.getvalue()
    assert [duration(s) for s in (5, 187, 8100)] == ["5 s", "3:07 min", "2:15 h"]


def test_small_amounts_keep_their_decimals() -> None:
    out = io.StringIO()
    with LineProgress(out).task("read", total=0.31, unit="MB") as task:
        task.advance(0.31)
    assert out.getvalue().startswith("read: 0.31/0.31 MB (100 %)")


def test_inspect_shows_untrusted_text_without_its_control_characters() -> None:
    from tokkit.cli.inspect import harmless

    assert harmless("a\x1b[2Jb\tc\nd\ud800\x00\r é 日本 \u202e") == "a\\x1b[2Jb\tc\nd\\ud800\\x00\\r é 日本 \u202e"


def test_every_option_of_shard_is_one_of_its_job() -> None:
    """One that is not would be refused whenever it is given, and one that is not listed could not be told by its flag."""
    import inspect

    from tokkit.cli.shard import NO_FIELDS, as_fields, shard
    from tokkit.pipelines.shard import ShardConfig

    own = [name for name in inspect.signature(shard).parameters if name not in NO_FIELDS]
    fields = as_fields(dict.fromkeys(own, "1"))
    limits = {name: fields.pop(name) for name in ("image_limits", "audio_limits")}
    assert set(fields) <= set(ShardConfig.model_fields)
    for name, given in limits.items():
        kind = type(ShardConfig.model_fields[name].get_default(call_default_factory=True))
        assert set(given) <= set(inspect.signature(kind).parameters)
    assert len(fields) + sum(map(len, limits.values())) == len(own)  # no two are the same one
    assert fields["unit_bytes"] == "1"
    assert as_fields(dict.fromkeys(own)) == {"inputs": None}
    assert as_fields({"inputs": [], "strict": False, "seed": 0, "min_seconds": 0.0}) == {
        "inputs": None,
        "seed": 0,
        "audio_limits": {"min_seconds": 0.0},
    }

"""Several processes train one tokenizer together (torchrun, gloo): the same weights and codebook statistics in all of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from test_train_codec import GRID, RATE, TINY
from test_train_codec import drawn as voice
from test_train_vq import drawn

from tokkit.pipelines.inspect import write_wav
from tokkit.tokenizers.audio import load_audio_tokenizer

# What both processes hold at the end, compared: networks, averages, optimisers, codebook statistics, window.
SCRIPT = """
    import hashlib, importlib, json, sys
    from pathlib import Path
    import torch
    from torch import distributed
    from vector_quantize_pytorch import VectorQuantize

    VectorQuantize(dim=4, codebook_size=8)  # built before the processes know of each other
    torch.set_num_threads(1)
    from tokkit.pipelines.progress import SilentProgress

    name = sys.argv[3]
    job = importlib.import_module(f"tokkit.pipelines.{name}")
    config = {"train_vq": "TrainVQConfig", "train_codec": "TrainCodecConfig"}[name]
    config = getattr(job, config).model_validate(json.loads(sys.argv[2]) | {"out": Path(sys.argv[1]) / "out"})

    def digest(value):
        if isinstance(value, torch.Tensor):
            return hashlib.sha256(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        if isinstance(value, dict):
            return {str(k): digest(v) for k, v in value.items()}
        return [digest(v) for v in value] if isinstance(value, list | tuple) else repr(value)

    write = job._Run._write

    def compared(self, end):
        mine = digest(self.engine.state()) | {"window": digest([torch.from_numpy(self.window.counts)])}
        found = [None] * self.world.size
        if self.world.size > 1:
            distributed.all_gather_object(found, mine)
        else:
            found = [mine]
        if self.world.main:
            different = [k for k in mine if any(other[k] != mine[k] for other in found)]
            answer = {"different": different, "size": self.world.size, "counted": int(self.window.counts.sum())}
            Path(sys.argv[1], "answer.json").write_text(json.dumps(answer))
        return write(self, end)

    job._Run._write = compared
    getattr(job, name)(config, SilentProgress())
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def together(tmp_path: Path, processes: int, options: dict[str, object], job: str = "train_vq") -> dict[str, object]:
    """Train in so many processes, into ``tmp_path / "out"``; what they compared, and the result."""
    tmp_path.mkdir()
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes)}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), json.dumps(options), job],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        for process in started:
            _, told = process.communicate(timeout=280)
            assert process.returncode == 0, told
    finally:
        for process in started:
            process.kill()
    result = json.loads((tmp_path / "out" / "training.json").read_text())["result"]
    return json.loads((tmp_path / "answer.json").read_text()) | result


@pytest.mark.slow
def test_two_processes_have_one_tokenizer(tmp_path: Path) -> None:
    """A GAN with a VQ codebook whose dead codes are revived, in two parts each: everything equal, bit for bit."""
    (tmp_path / "in").mkdir()
    for number in range(16):
        (tmp_path / "in" / f"{number}.png").write_bytes(drawn(number))
    options: dict[str, object] = {
        "inputs": [str(tmp_path / "in")],
        "preset": "vq-tiny",
        "overrides": {"architecture.channels": 16, "architecture.z_channels": 16, "quantizer.codebook_size": 64}
        | {"quantizer.entropy_weight": 0.1},
        "resolution": 32,
        "steps": 12,
        "batch_size": 8,
        "val_fraction": 0.2,
        "threads": 1,
        "recipe": "gan",
        "gan_start": 0.3,
        "gan_adaptive": True,
        "discriminator_channels": 8,
        "lecam": 0.01,
        "ema": 0.9,
        "log_every": 4,
        "lr": 1e-3,
    }
    two = together(tmp_path / "two", 2, options | {"accumulate": 2})
    assert two["size"] == 2
    assert two["different"] == []
    assert two["counted"] == 12 * 8 * 16  # codes of both processes
    one = together(tmp_path / "one", 1, options)
    assert one["counted"] == two["counted"]
    # the same pictures in each step; only what is drawn for dead codes and the order of sums differ
    assert abs(float(str(one["val_psnr"])) - float(str(two["val_psnr"]))) < 1.5


def sounds(folder: Path) -> dict[str, object]:
    """Sixteen recordings of different lengths, and what to do with them."""
    folder.mkdir()
    for number in range(16):
        write_wav(folder / f"{number}.wav", voice(number, 0.4 + 0.1 * number), RATE)
    return {"inputs": [str(folder)], "batch_size": 8, "crop": 0.5, "val_fraction": 0.2, "threads": 1, "log_every": 4}


@pytest.mark.slow
def test_two_processes_have_one_codec_with_a_grid(tmp_path: Path) -> None:
    """The grid lies where the frames of both say, and the run is that of one process: only sums have another order."""
    options = sounds(tmp_path / "in") | {"overrides": GRID, "steps": 10, "quantize_from": 0.2, "ema": 0.9}
    two = together(tmp_path / "two", 2, options, "train_codec")
    assert two["size"] == 2
    assert two["different"] == []
    assert two["counted"] == 8 * 8 * 125  # codes of both processes, from the third step on
    one = together(tmp_path / "one", 1, options, "train_codec")
    assert one["counted"] == two["counted"]
    first, second = (load_audio_tokenizer(tmp_path / name / "out").weights() for name in ("one", "two"))
    assert first.keys() == second.keys()
    assert float(first["grid"][1].min()) > 1e-3  # it was laid
    apart = max((float((tensor - second[name]).abs().max()), name) for name, tensor in first.items())
    assert apart[0] < 1e-3, apart
    assert float(str(one["val_mel_distance"])) == pytest.approx(float(str(two["val_mel_distance"])), rel=1e-2)
    norms = [json.loads((tmp_path / name / "out" / "metrics.jsonl").read_text().splitlines()[-1]) for name in ("one", "two")]
    assert norms[0]["grad_norm"] == pytest.approx(norms[1]["grad_norm"], rel=0.1)  # it would be half


@pytest.mark.slow
def test_two_processes_have_one_codec_with_tables(tmp_path: Path) -> None:
    """Four losses balanced, a discriminator, tables whose dead vectors are replaced, two parts each: everything equal."""
    options = sounds(tmp_path / "in") | {"overrides": TINY | {"quantizer.codebook_size": 64}, "steps": 10, "gan_start": 0.3}
    two = together(tmp_path / "two", 2, options | {"accumulate": 2, "books": [1, 3], "ema": 0.9}, "train_codec")
    assert two["size"] == 2
    assert two["different"] == []
    assert two["counted"] == 9 * 8 * 125 * 3

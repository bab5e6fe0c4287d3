"""The house stands as designed: light imports, imports down only, one package in the wheel, docs that name real options."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "webdataset", "vector_quantize_pytorch", "numba", "pyarrow", "PIL", "sentencepiece", "transformers", "numpy")


@pytest.mark.parametrize(
    "code",
    [
        "import tokkit",
        "import tokkit.pipelines, tokkit.sources, tokkit.tokenizers, tokkit.features, tokkit.cli.main",
        "import sys; sys.argv = ['tokkit', '--help']; from tokkit.cli.main import app; app(standalone_mode=False)",
        "import sys; sys.argv = ['tokkit', 'shard', '--help']; from tokkit.cli.main import app; app(standalone_mode=False)",
        "import sys; sys.argv = ['tokkit', 'features', '--help']; from tokkit.cli.main import app; app(standalone_mode=False)",
    ],
)
def test_help_and_bare_imports_load_nothing_heavy(code: str) -> None:
    check = f"{code}\nimport sys; print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "[]"


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_go_down_only() -> None:
    for folder, above in (("tokkit", ("tokkit.pipelines", "tokkit.cli")), ("pipelines", ("tokkit.cli",))):
        for path in (ROOT / folder).rglob("*.py"):
            wrong = [name for name in _imports(path) if name.startswith(above)]
            assert not wrong, f"{path} imports {wrong}"


def test_nothing_imports_what_does_not_load_here() -> None:
    for folder in ("tokkit", "pipelines", "cli"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not {name.split(".")[0] for name in _imports(path)} & {"torchvision", "torchaudio", "click"}, path


@pytest.mark.slow
def test_the_wheel_holds_the_whole_package_and_nothing_else(tmp_path: Path) -> None:
    """Built without isolation from a copy, so that nothing is fetched and the checkout stays clean."""
    import shutil
    import zipfile

    source = tmp_path / "source"
    ignore = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "demo-out")
    shutil.copytree(ROOT, source, ignore=ignore)
    pytest.importorskip("setuptools", minversion="77")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, source]
    subprocess.run(command, check=True)
    names = {n for n in zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist() if ".dist-info/" not in n}
    expected = set()
    for folder, inside in (("tokkit", "tokkit"), ("pipelines", "tokkit/pipelines"), ("cli", "tokkit/cli")):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                expected.add(f"{inside}/{path.relative_to(ROOT / folder).as_posix()}")
    assert names == expected


def test_the_readme_names_real_commands_and_options() -> None:
    """Every `tokkit COMMAND --option` in README and docs is one that the command knows."""
    import typer

    from tokkit.cli.main import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    groups = {name: (c, *getattr(c, "commands", {}).values()) for name, c in commands.items()}
    known = {
        name: {o for c in group for p in c.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        for name, group in groups.items()
    }
    seen = 0
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"\btokkit ((?:train-|[a-z])[a-z-]* [^`\n]*)", text):
            command, *words = line.split()
            if command not in known:
                continue
            for option in (w.split("=")[0] for w in words if re.match(r"--[a-z]", w)):
                assert option.rstrip(".,)") in known[command], f"{page.name}: tokkit {command} has no {option}"
                seen += 1
    assert seen > 10


def test_the_defaults_that_help_shows_are_the_jobs() -> None:
    import typer

    from tokkit.cli.common import size
    from tokkit.cli.main import app
    from tokkit.pipelines.demo import DemoConfig
    from tokkit.pipelines.features import FeaturesConfig
    from tokkit.pipelines.pack import PackConfig
    from tokkit.pipelines.shard import ShardConfig
    from tokkit.pipelines.train_codec import TrainCodecConfig
    from tokkit.pipelines.train_text import TrainTextConfig
    from tokkit.pipelines.train_vq import DEFAULT_STEPS, TrainVQConfig

    renamed = {"shard_size": "shard_bytes", "unit_size": "unit_bytes", "max_size": "max_bytes", "split": "split_policy"}
    kinds = {
        "shard": ShardConfig,
        "features": FeaturesConfig,
        "train-text": TrainTextConfig,
        "train-vq": TrainVQConfig,
        "train-codec": TrainCodecConfig,
        "pack": PackConfig,
        "demo": DemoConfig,
    }
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    shown = 0
    for command, kind in kinds.items():
        fields = {name: field.get_default(call_default_factory=True) for name, field in kind.model_fields.items()}
        fields |= (
            vars(fields["image_limits"]) if "image_limits" in fields and hasattr(fields["image_limits"], "__dict__") else {}
        )
        for option in commands[command].params:
            if not isinstance(option.show_default, str) or option.name in ("threads", "steps"):
                continue
            name = renamed.get(option.name, option.name)
            limits = "audio_limits" if name in ("min_seconds", "max_seconds") else "image_limits"
            default = fields[name] if name in fields else getattr(fields[limits], name)
            if default is None:
                continue  # described in words
            if option.name in ("unit_size", "shard_size", "shard_tokens", "max_size", "dedup_memory"):
                assert size(option.show_default) == default, f"{command} --{option.name}"
            else:
                assert option.show_default == str(getattr(default, "value", default)), f"{command} --{option.name}"
            shown += 1
    assert shown > 20
    assert DEFAULT_STEPS == 5000


def test_every_preset_is_named_where_people_look() -> None:
    import typer

    from tokkit.cli.main import app
    from tokkit.tokenizers.audio.presets import PRESETS as SOUNDS
    from tokkit.tokenizers.image.presets import PRESETS as PICTURES

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    only_imported = ("encodec-48k", "musicgen-32k", "encodec-tiny")
    trained = [name for name in SOUNDS if name not in only_imported]
    for command, presets, page in (
        ("train-vq", list(PICTURES), "image_tokenizers.md"),
        ("train-codec", trained, "train-codec.md"),
    ):
        shown = next(option.help for option in commands[command].params if option.name == "preset")
        text = (ROOT / "docs" / page).read_text()
        for preset in presets:
            assert preset in shown
            assert f"| `{preset}` |" in text


def test_a_tokenizer_is_read_without_loading_torchs_compiler() -> None:
    """It takes two seconds, and what loads it unasked is arithmetic on the meta device, in every process that begins."""
    code = """
import sys
from tokkit.tokenizers.audio import presets as sounds, storage as sound_storage
from tokkit.tokenizers.image import presets as pictures, storage as picture_storage
for presets, storage in ((pictures, picture_storage), (sounds, sound_storage)):
    for name, preset in presets.PRESETS.items():
        storage.expected_weights(preset, name)
        print("torch._dynamo" in sys.modules, name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 15
    assert [line for line in lines if not line.startswith("False ")] == []

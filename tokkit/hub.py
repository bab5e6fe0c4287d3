"""Models of the Hugging Face hub by name: fetched into its cache, and only where the user allows it."""

from __future__ import annotations

from pathlib import Path

from tokkit.errors import TransientError, UsageError

PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "README.md", "LICENSE*")  # of a repository on the hub


def may_be_named(source: str | Path) -> bool:
    """Whether this could be a name on the hub (``owner/model``): nothing of that path is here, and it has one slash."""
    owner, slash, model = str(source).partition("/")
    return (
        bool(owner and slash and model) and "/" not in model and not owner.startswith((".", "~")) and not Path(source).exists()
    )


def fetch(name: str, allow_download: bool, hint: str) -> Path:
    """The folder of a model in the hub's cache, named by the revision; pickled weights come only where there are no others.

    Args:
        hint: what to install, where the hub's client is not there.

    Raises:
        UsageError: it may not be downloaded, the client is not installed, or the hub has no such model.
        TransientError: the hub did not give it.
    """
    if not allow_download:
        raise UsageError(
            f"{name}: no such file or folder; a model of that name on the Hugging Face hub is fetched only where that is "
            "allowed (--allow-download)"
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import RepositoryNotFoundError
    except ImportError:
        raise UsageError(hint) from None
    try:
        fetched = Path(snapshot_download(name, allow_patterns=list(PATTERNS)))
        if not any(fetched.glob("*.safetensors")):  # older models have pickled weights only
            snapshot_download(name, revision=fetched.name, allow_patterns=["pytorch_model*.bin"])
        return fetched
    except RepositoryNotFoundError:
        raise UsageError(f"{name}: the Hugging Face hub has no public model of that name") from None
    except (OSError, ValueError) as error:
        raise TransientError(f"{name}: could not be fetched from the Hugging Face hub: {error}") from None


def name_of(source: str | Path, found: Path) -> str:
    """What a record calls a model: the name of its file or folder, or the hub's with the revision; never a path."""
    return found.resolve().name if found == Path(source) else f"{source}@{found.name}"

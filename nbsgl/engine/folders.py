"""Where a model and its tokenizer lie.  No torch, so the kernel and the front may ask too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nbsgl.engine.config import EngineConfig
from nbsgl.errors import ModelNotFound

EMBEDDED = Path(__file__).parent / "assets" / "tiny"

Progress = Callable[[float, str], None]  # fraction, note


def resolve_model(path: str, progress: Progress = lambda fraction, note: None) -> Path:
    """The model's folder: "embedded", a local folder, else a hub name (downloaded).  ModelNotFound otherwise."""
    check_model_path(path)
    folder = _folder(path)
    if folder.is_dir():
        return folder
    from nbsgl.engine.hub import download

    return download(path, progress)


def check_model_path(path: str) -> None:
    """ModelNotFound at once for what can only be a local folder, and is none; a hub name passes."""
    folder = _folder(path)
    if folder.is_dir():
        return
    if path == "embedded" or path.startswith((".", "/", "~")) or path.count("/") > 1 or folder.exists():
        raise ModelNotFound(
            f"model_path={path!r}: there is no folder {folder}.",
            file=str(folder),
            field="model_path",
            value=path,
            allowed="'embedded', a folder, or the name of a hub model",
            hint="Check the path, or start the embedded model: model_path='embedded'.",
        )


def local_folder(path: str) -> Path | None:
    """The model's folder if it is on this machine by that name; None for what the hub would be asked for."""
    folder = _folder(path)
    return folder if folder.is_dir() else None


def _folder(path: str) -> Path:
    return EMBEDDED if path == "embedded" else Path(path).expanduser()


def tokenizer_folder(config: EngineConfig, model_folder: Path) -> Path:
    """The folder named by `tokenizer_path` (a hub name is downloaded), else the model's own."""
    return model_folder if config.tokenizer_path is None else resolve_model(config.tokenizer_path)

"""Where an engine's tokenizer lies."""

from __future__ import annotations

from pathlib import Path

from nbsgl.engine.config import EngineConfig


def tokenizer_folder(config: EngineConfig, model_folder: Path) -> Path:
    """The folder named by `tokenizer_path` (a hub name is downloaded), else the model's own."""
    if config.tokenizer_path is None:
        return model_folder
    folder = Path(config.tokenizer_path).expanduser()
    if folder.is_dir():
        return folder
    from nbsgl.engine.hub import download

    return download(config.tokenizer_path)

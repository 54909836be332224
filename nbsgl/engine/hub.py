"""Models by hub name: the only code here that opens a connection, and only for a name the user gave."""

from __future__ import annotations

from pathlib import Path

from nbsgl.errors import ModelNotFound

PATTERNS = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "chat_template*") + (
    "*.safetensors",
    "*.safetensors.index.json",
)


def download(name: str) -> Path:
    """The folder of a hub model in huggingface_hub's cache, downloaded if need be (its progress bars on stderr).

    ModelNotFound if it is neither in the cache nor to be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(PATTERNS)))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise ModelNotFound(
            f"{name!r} is no local folder, and the hub did not give it ({type(error).__name__}).",
            file=name,
            field="model_path",
            value=name,
            allowed="'embedded', a folder, or the name of a hub model",
            hint="Check the name and the net, or give a downloaded folder: model_path='/path/to/model'.",
        ) from error

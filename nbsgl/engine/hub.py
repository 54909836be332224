"""Models by hub name: the only code here that opens a connection, and only for a name the user gave."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from tqdm.std import tqdm

from nbsgl.errors import ModelNotFound

Progress = Callable[[float, str], None]

PATTERNS = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "chat_template*") + (
    "*.safetensors",
    "*.safetensors.index.json",
)


def download(name: str, progress: Progress) -> Path:
    """The folder of a hub model in huggingface_hub's cache, downloaded if need be.

    `progress(fraction, note)` is called as bytes come.  ModelNotFound if it is neither in the cache nor to be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(PATTERNS), tqdm_class=_bar(progress)))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise ModelNotFound(
            f"{name!r} is no local folder, and the hub did not give it ({type(error).__name__}).",
            file=name,
            field="model_path",
            value=name,
            allowed="'embedded', a folder, or the name of a hub model",
            hint="Check the name and the net, or give a downloaded folder: model_path='/path/to/model'.",
        ) from error


def _bar(progress: Progress) -> type[tqdm]:
    """A progress bar that draws nothing and reports the bytes of all files together."""

    class Bar(tqdm):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False})

        def display(self, *args: object, **kwargs: object) -> None:
            if self.unit == "B" and self.total:
                done, total = self.format_sizeof(self.n), self.format_sizeof(self.total)
                progress(min(1.0, self.n / self.total), f"downloading: {done}B of {total}B")

    return Bar

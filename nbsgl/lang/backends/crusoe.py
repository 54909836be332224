"""`Crusoe`: models of Crusoe's managed inference, which speaks OpenAI's protocol."""

from __future__ import annotations

import os
from typing import Any

from nbsgl.chat_templates import ChatTemplate
from nbsgl.lang.backends.openai import OpenAI, key_missing

BASE_URL = "https://managed-inference-api-proxy.crusoecloud.com/v1"


class Crusoe(OpenAI):
    """A chat model of Crusoe's; the key is taken from CRUSOE_API_KEY unless it is given.

    Other keywords are `OpenAI`'s.
    """

    service = "Crusoe"
    key_variable = "CRUSOE_API_KEY"

    def __init__(
        self,
        model_name: str,
        api_key: str | None = None,
        base_url: str | None = None,
        chat_template: ChatTemplate | str | None = None,
        **kwargs: Any,
    ) -> None:
        key = api_key or os.environ.get(self.key_variable)
        if not key:
            raise key_missing(self.service, self.key_variable)
        kwargs.setdefault("is_chat_model", True)
        super().__init__(model_name, chat_template=chat_template, api_key=key, base_url=base_url or BASE_URL, **kwargs)

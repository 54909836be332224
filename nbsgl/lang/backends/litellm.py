"""`LiteLLM`: any of the services that the package litellm knows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from nbsgl.chat_templates import ChatTemplate
from nbsgl.errors import ApiError, Unsupported
from nbsgl.lang.backends.openai import OpenAI


class LiteLLM(OpenAI):
    """A chat model by litellm's name for it ("anthropic/...", "bedrock/...").  Needs the package litellm, which reads
    each service's own key from the environment, and retries.

    Text without any role is sent as a user's message.  Seeds are not sent, as few of the services take any: a run's
    decides nothing here, and a gen's is refused.
    """

    service = "LiteLLM"
    takes_text = True
    takes_seeds = False

    def __init__(
        self,
        model_name: str,
        chat_template: ChatTemplate | str | None = None,
        api_key: str | None = None,
        organization: str | None = None,
        base_url: str | None = None,
        timeout: float | None = 600,
        max_retries: int | None = 1,
        default_headers: Mapping[str, str] | None = None,
    ) -> None:
        try:
            import litellm
        except ImportError as error:
            raise missing("LiteLLM", "litellm") from error
        litellm.suppress_debug_info = True  # it prints advice at every error, and the cell's output is the user's
        given = {
            "api_key": api_key,
            "organization": organization,
            "base_url": base_url,
            "timeout": timeout,
            "max_retries": max_retries,
            "extra_headers": None if default_headers is None else dict(default_headers),
        }
        known = {name: value for name, value in given.items() if value is not None}
        self._begin(model_name, "chat", chat_template, _Package(litellm, known))


class _Package:
    """litellm as a transport of OpenAI's bodies."""

    def __init__(self, package: Any, known: dict[str, Any]) -> None:
        self._package, self._known = package, known

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            answer = await self._package.acompletion(**body, **self._known)
        except Exception as error:  # litellm's classes are those of the services' own packages
            raise refused("LiteLLM", error) from error
        plain: dict[str, Any] = answer.model_dump()
        return plain

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        try:
            async for event in await self._package.acompletion(**body, **self._known):
                yield event.model_dump()
        except Exception as error:
            raise refused("LiteLLM", error) from error

    async def close(self) -> None:
        """litellm keeps its own connections."""


def missing(name: str, package: str) -> Unsupported:
    return Unsupported(f"{name}(...) needs the package {package}.", name=package, hint=f"%pip install {package}")


def refused(service: str, error: Exception) -> ApiError:
    """A package's own exception, told as ours."""
    status = getattr(error, "status_code", None) or getattr(error, "code", None)
    reason = f"{type(error).__name__}: {error}"
    if not isinstance(status, int):
        return ApiError(f"{service}: {reason}", service=service, reason=reason)
    return ApiError(service=service, status=status, reason=reason)

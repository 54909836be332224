"""`python -m nbsgl serve`: an engine with its HTTP door open, until a signal ends it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import secrets
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any

from nbsgl.engine.config import EngineConfig
from nbsgl.errors import Unsupported

KEY_VARIABLE = "NBSGL_API_KEY"
PACKAGES = ("fastapi", "uvicorn")


def main(given: Sequence[str]) -> int:
    """Serve until SIGINT or SIGTERM.  The first line on standard output has the URL, once it answers."""
    args = vars(_parser().parse_args(given))
    host, port, hosts = args.pop("host"), args.pop("port"), args.pop("allow_host")
    key, until_eof = args.pop("api_key") or os.environ.get(KEY_VARIABLE) or None, args.pop("until_eof")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise Unsupported(f"serve needs {' and '.join(missing)}.", hint='Type: pip install "nbsgl[serve]"')
    made = key == "new"
    return _serve(args, host, port, secrets.token_urlsafe(32) if made else key, hosts, until_eof=until_eof, tell=made)


def _serve(
    settings: dict[str, Any], host: str, port: int, key: str | None, hosts: list[str], *, until_eof: bool, tell: bool
) -> int:
    from nbsgl.engine.handle import Engine
    from nbsgl.engine.server import serving
    from nbsgl.engine.server.app import make_app
    from nbsgl.engine.server.guard import Rules

    rules = Rules.of(host, key, hosts)
    with serving.listen(host, port) as listener, Engine(keep=0, **settings) as engine:
        info = engine.info
        server = serving.make_server(make_app(engine, rules))

        def end() -> None:
            server.should_exit = True

        if until_eof:
            serving.end_with_standard_input(end)
        listener.listen(serving.MAX_CONNECTIONS)  # from now on clients can connect
        _write(f"nbsgl serves {info.model} at {serving.address(listener)} (end it with Ctrl-C)")
        if tell and key is not None:
            _write(f"api key: {key}")
        server.run(sockets=[listener])
    return 0


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nbsgl serve",
        description="Serve a model over HTTP with SGLang's routes: /generate, /get_model_info, /get_server_info, "
        "/flush_cache, /health, /health_generate.  Programs use it by sgl.RuntimeEndpoint(URL).",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=30000, help="port (default: 30000; 0: any free one)")
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"clients must send it; 'new' makes one and shows it (default: the variable {KEY_VARIABLE})",
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="another name this server is called by"
    )
    parser.add_argument("--until-eof", action="store_true", help="end when standard input is closed")
    engine = parser.add_argument_group("the engine (see help(nbsgl.ServerArgs))")
    hints = typing.get_type_hints(EngineConfig)
    for name in EngineConfig.__struct_fields__:
        _add(engine, name, hints[name])
    return parser


def _add(group: Any, name: str, hint: Any) -> None:
    """One setting of the engine as an option; what is not given is left to the engine."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType] or [hint]
    flags = [f"--{name.replace('_', '-')}"] + (["--model"] if name == "model_path" else [])
    if kinds[0] is bool:
        group.add_argument(*flags, dest=name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS)
    else:
        metavar = kinds[0].__name__.upper()
        group.add_argument(*flags, dest=name, type=kinds[0], default=argparse.SUPPRESS, metavar=metavar)

"""Who may ask: clients with the key, and pages that reached the service under a name of its own.

Without postponed annotations: FastAPI reads those of functions in functions, too.
"""

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Collection
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from knownot.serve.refused import RefusedError


def key_check(
    api_key: str,
) -> Callable[[HTTPAuthorizationCredentials | None], Awaitable[None]]:
    """A dependency that refuses requests without this key."""
    expected = api_key.encode()

    async def check(
        sent: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> None:
        # As starlette reads headers, byte by byte.
        given = "" if sent is None else sent.credentials
        if not hmac.compare_digest(given.encode("latin-1"), expected):
            raise RefusedError(
                401,
                "wrong_key",
                "send the API key as `Authorization: Bearer <key>`",
                {"WWW-Authenticate": "Bearer"},
            )

    return check


def name_check(names: Collection[str]) -> Callable[[Request], Awaitable[None]]:
    """A dependency that refuses requests to other host names than these, localhost and addresses.

    A page of another site can have its own name lead to this machine ("DNS rebinding"); to the browser
    the service is then that site, whose scripts may read all its answers.
    """
    known = {name.lower().rstrip(".") for name in names}

    async def check(request: Request) -> None:
        name = _host_name(request.headers.get("host", ""))
        if name in known or name == "localhost" or name.endswith(".localhost") or _is_address(name):
            return
        raise RefusedError(
            403,
            "unknown_host",
            f"{name!r} is no name of this service; start it with --allow-host, or with a key "
            "(KNOWNOT_API_KEY)",
        )

    return check


def _host_name(header: str) -> str:
    try:
        return (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:  # brackets around what is no address
        return header


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return not name  # old HTTP names no host, and no browser speaks it
    return True

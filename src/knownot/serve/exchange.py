"""Around every request: its number, security headers, metrics, one log line, and no stack traces."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from knownot.serve.logs import log

_GONE = 499  # the client left; no answer is sent, the number is for metrics and logs
_SECURITY = {
    # The page may show photos that it holds itself, and nothing comes from elsewhere.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; "
        "img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; "
        "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Exchange:
    """ASGI middleware, the outermost one.

    Args:
        app: The application.
        observe: Called with route, status and seconds of every request.
    """

    def __init__(self, app: ASGIApp, observe: Callable[[str, int, float], None]) -> None:
        self.app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        number = uuid.uuid4().hex
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = number
                for name, value in _SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_marked)
        except ClientDisconnect:
            status = _GONE
        except Exception as error:
            log("failed", level=logging.ERROR, exc_info=error, request=number)
            if not status:
                failure = problem(500, "internal_error", f"the service failed; tell {number}")
                await failure(scope, receive, send_marked)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            self._observe(route, status, seconds)
            log(
                "request",
                request=number,
                method=scope["method"],
                route=route,
                status=status,
                milliseconds=round(1000 * seconds, 1),
                **scope.get("state", {}).get("told", {}),
            )


def problem(
    status: int, code: str, message: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error as every route answers it."""
    return JSONResponse({"error": code, "message": message}, status, headers)

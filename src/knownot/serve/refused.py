"""A request that is not answered, and why."""

from __future__ import annotations

from collections.abc import Mapping


class RefusedError(Exception):
    """Becomes a JSON error, or the error of one photo among several.

    Args:
        status: HTTP status.
        code: One word for programs.
        message: One sentence for people, with the remedy.
        headers: More headers of the response.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})

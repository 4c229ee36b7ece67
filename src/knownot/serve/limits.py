"""What the service takes on; everything beyond is refused with a sentence."""

from __future__ import annotations

from dataclasses import dataclass, fields

from knownot.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Bounds of what one request, and all of them together, may cost.

    Attributes:
        upload_bytes: Bytes of one request's body, whatever it says about its length.
        photo_pixels: Width times height of a photo, read from its header before it is decoded.
        photos: Photos in one request.
        queue: Photos accepted and not answered yet, of all requests.
        uploads_bytes: Bytes of the bodies of all requests in progress.
        seconds: Time for one request, its upload included.
        header_seconds: Time that a connection may take over a request's headers.
        connections: Connections open at the same time.

    Raises:
        ConfigError: If a bound is not above 0, or contradicts another.
    """

    upload_bytes: int = 32 * 2**20
    photo_pixels: int = 50_000_000
    photos: int = 16
    queue: int = 64
    uploads_bytes: int = 256 * 2**20
    seconds: float = 30.0
    header_seconds: float = 10.0
    connections: int = 500

    def __post_init__(self) -> None:
        for item in fields(self):
            if not getattr(self, item.name) > 0:
                raise ConfigError(f"{item.name}: expected more than 0")
        if self.queue < self.photos:
            raise ConfigError(
                f"queue: {self.queue} photos cannot hold one request of {self.photos}; raise it"
            )
        if self.uploads_bytes < self.upload_bytes:
            raise ConfigError("uploads_bytes: cannot hold one request; raise it")

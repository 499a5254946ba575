"""Why a request gets no answer: said once here, and in the words of its protocol by each protocol."""

from __future__ import annotations

from typing import Literal

Kind = Literal[
    "invalid",
    "empty",
    "too_large",
    "unknown_model",
    "no_token",
    "forbidden",
    "rate",
    "overloaded",
    "slow_client",
    "late",
    "unready",
    "failed",
]

STATUS: dict[Kind, int] = {
    "invalid": 422,
    "empty": 400,
    "too_large": 413,
    "unknown_model": 404,
    "no_token": 401,
    "forbidden": 403,
    "rate": 429,
    "overloaded": 429,
    "slow_client": 408,
    "late": 504,
    "unready": 503,
    "failed": 500,
}
"""The HTTP status of each kind, where a protocol does not say another."""

CLOSES: frozenset[Kind] = frozenset({"slow_client", "too_large", "unready"})
"""Kinds after which the connection is closed: what the client still sends would have to be read."""


class Refusal(Exception):  # noqa: N818  # most of these are no errors of anybody
    """A request that is not answered.

    Attributes:
        kind: why.
        message: a sentence for whoever sent it.
        retry_after: seconds after which it may be sent again; None: sending it again does not help.
    """

    def __init__(self, kind: Kind, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.message = message
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        """Its HTTP status, where a protocol does not say another."""
        return STATUS[self.kind]

    def headers(self) -> dict[str, str]:
        """What its response says beside the body, in every protocol."""
        found = {}
        if self.retry_after is not None:
            found["Retry-After"] = str(max(1, round(self.retry_after + 0.499)))
        if self.kind == "no_token":
            found["WWW-Authenticate"] = "Bearer"
        if self.kind in CLOSES:
            found["Connection"] = "close"
        return found

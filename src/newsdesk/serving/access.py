"""Who may use the server, how much, and how long a client may take: tokens, rates, and limits on requests."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from newsdesk.errors import UserError
from newsdesk.serving.refusals import Refusal
from newsdesk.stored import read_stored, write_stored

if TYPE_CHECKING:
    from starlette.requests import Request

    from newsdesk.serving.settings import Settings

_FIX = "make a token with newsdesk serve --make-token NAME --tokens FILE"
_BURST_SECONDS = 10.0  # of a token's rate may be used at once


@dataclass(frozen=True)
class Token:
    """One that may use the server, as the file keeps it: nobody can use it who reads the file.

    Attributes:
        name: whose it is, for the logs.
        sha256: of the token, which is random and long enough that nothing slower is needed.
        manage: whether it may load and remove models.
    """

    name: str
    sha256: str
    manage: bool = False


@dataclass(frozen=True)
class Tokens:
    """The file of tokens."""

    tokens: tuple[Token, ...]

    def __post_init__(self) -> None:
        """Raise ValueError for names that do not tell them apart."""
        if len({token.name for token in self.tokens}) != len(self.tokens):
            raise ValueError("two tokens of one name")

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """The tokens in a file. Raises UserError where it is missing or damaged."""
        return read_stored(path, cls, fix=_FIX)

    def found(self, given: str) -> Token | None:
        """The token that was given; every one is compared, each in constant time."""
        digest = hashlib.sha256(given.encode()).hexdigest()
        found = None
        for token in self.tokens:
            if hmac.compare_digest(token.sha256, digest):
                found = token
        return found


def make_token(path: Path, name: str, *, manage: bool = False) -> str:
    """A new token, whose hash is added to the file. It is not kept anywhere: whoever asked has to.

    Raises UserError for a name that the file has already.
    """
    known = Tokens.read(path).tokens if path.exists() else ()
    if any(token.name == name for token in known):
        raise UserError(
            f"{path} has a token called {name!r} already",
            fix="choose another name, or remove its entry from the file",
        )
    made = f"nd_{secrets.token_urlsafe(32)}"
    entry = Token(name, hashlib.sha256(made.encode()).hexdigest(), manage)
    write_stored(path, Tokens((*known, entry)))
    path.chmod(0o600)
    return made


class Allowance:
    """Texts that a token may still ask for: filled at its rate, and at most ten seconds of it are kept."""

    def __init__(self, rate: float) -> None:
        self._rate, self._most = rate, rate * _BURST_SECONDS
        self._left, self._at = self._most, time.monotonic()

    def take(self, texts: int) -> None:
        """Use it. A request for more than is ever kept passes where all is left, and is paid off after that.

        Raises Refusal where there is not enough, and says when there will be.
        """
        now = time.monotonic()
        self._left, self._at = min(self._most, self._left + (now - self._at) * self._rate), now
        if self._left < min(texts, self._most):
            missing = min(texts, self._most) - self._left
            raise Refusal(
                "rate",
                f"this token may ask for {self._rate:g} texts a second",
                retry_after=missing / self._rate,
            )
        self._left -= texts


ANYONE = Token("", "", manage=False)


class Access:
    """Checks requests before they are read, and reads them within limits."""

    def __init__(self, settings: Settings) -> None:
        """Read the tokens. Raises UserError as `Tokens.read`."""
        self._settings = settings
        self._tokens = None if settings.tokens is None else Tokens.read(settings.tokens)
        self._allowances: dict[str, Allowance] = {}
        self._anyone = replace(ANYONE, manage=settings.manage)

    def who(self, request: Request) -> Token:
        """Whose request it is. Raises Refusal without a known token, and for a name that is not ours."""
        hosts = self._settings.hosts
        if hosts is not None and _name_of_host(request.headers.get("host", "")) not in hosts:
            raise Refusal("forbidden", "this server is not called by that name (--allowed-host)")
        if self._tokens is None:
            return self._anyone
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        found = self._tokens.found(given.strip()) if scheme.lower() == "bearer" else None
        if found is None:
            raise Refusal("no_token", "a bearer token that this server knows is needed")
        return replace(found, manage=found.manage and self._settings.manage)

    def require_manager(self, request: Request, who: Token) -> None:
        """Raise Refusal unless the request may load and remove models; pages of other sites may not."""
        if not who.manage:
            raise Refusal("forbidden", "models are not managed by requests here (--manage)")
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("//")[2] != request.headers.get("host"):
            raise Refusal("forbidden", "a page of another site may not manage models")

    def pay(self, who: Token, texts: int) -> None:
        """Count texts against a token's rate. Raises Refusal where it has none left."""
        if self._settings.rate is None:
            return
        if who.name not in self._allowances:
            self._allowances[who.name] = Allowance(self._settings.rate)
        self._allowances[who.name].take(texts)

    async def body(self, request: Request) -> bytes:
        """The body of a request. Raises Refusal where it is too large, or comes too slowly."""
        from starlette.requests import ClientDisconnect

        most, stated = self._settings.max_body, request.headers.get("content-length", "0")
        if stated.isdigit() and int(stated) > most:
            raise _too_large(most)
        found = bytearray()
        try:
            async with asyncio.timeout(self._settings.slow_client):
                async for piece in request.stream():
                    found += piece
                    if len(found) > most:
                        raise _too_large(most)
        except TimeoutError:
            seconds = self._settings.slow_client
            raise Refusal("slow_client", f"the request was not sent within {seconds:g} seconds") from None
        except ClientDisconnect:
            raise Refusal("slow_client", "the request was not sent to its end") from None
        return bytes(found)

    def require_texts_within(self, texts: Sequence[str], *, models: int = 1) -> None:
        """Raise Refusal for more texts, or longer ones, than a request may have."""
        most, longest = self._settings.max_texts, self._settings.max_characters
        if not texts:
            raise Refusal("empty", "there is no text to classify")
        if len(texts) * models > most:
            asked = f"{len(texts)} texts" + (f" for {models} models" if models > 1 else "")
            raise Refusal("too_large", f"{asked}, where a request may have {most}")
        for text in texts:
            if len(text) > longest:
                raise Refusal(
                    "too_large", f"a text of {len(text):,} characters, where {longest:,} are allowed"
                )


def _too_large(most: int) -> Refusal:
    return Refusal("too_large", f"the body is larger than {most:,} bytes")


def _name_of_host(header: str) -> str:
    """The name in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()

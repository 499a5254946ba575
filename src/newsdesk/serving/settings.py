"""What a server is told by the flags of ``newsdesk serve``, each of which is an environment variable too."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from newsdesk.errors import UserError
from newsdesk.prediction.abstention import Promises
from newsdesk.prediction.onnx_session import default_threads

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Settings:
    """How a server behaves.

    Attributes:
        host, port: where it listens; port 0: any that is free.
        threads: that compute; None: as many as physical cores.
        batch_tokens: of a batch, at most, where it has more than one text.
        max_waiting: texts that may be in the server at once; requests beyond are refused.
        max_texts, max_characters: of a request, and of each of its texts.
        max_body: bytes of a request's body.
        max_connections: open at once.
        deadline: seconds within which a request is answered, or refused.
        slow_client: seconds that a client may take to send a request.
        drain: seconds that requests in progress may take once the server is told to stop.
        linger: seconds for which it then still tells those who come that it stops.
        truncates: whether texts that are too long are cut where a request of TEI's protocol does not say.
        promise: what is promised of answers where a request does not ask for anything else.
        tokens: the file of the tokens of whoever may use it; None: everyone who reaches it may.
        rate: texts a second for each token; None: any number.
        allowed_hosts: names by which it may be called, where it listens on loopback.
        manage: whether requests may load models anew and remove them.
        watch: seconds between two looks at the models' folders; 0: they are read once.
        log_texts: whether texts are logged.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    threads: int | None = None
    batch_tokens: int = 512
    max_waiting: int = 2048
    max_texts: int = 256
    max_characters: int = 100_000
    max_body: int = 4 << 20
    max_connections: int = 1000
    deadline: float = 10.0
    slow_client: float = 10.0
    drain: float = 30.0
    linger: float = 0.5
    truncates: bool = True
    promise: Promises = field(default_factory=Promises)
    tokens: Path | None = None
    rate: float | None = None
    allowed_hosts: tuple[str, ...] = ()
    manage: bool = False
    watch: float = 0.0
    log_texts: bool = False

    def __post_init__(self) -> None:
        """Raise UserError for limits that exclude each other."""
        if self.max_texts > self.max_waiting:
            raise UserError(
                "a request of --max-texts would never be accepted",
                found=f"--max-texts {self.max_texts}, --max-waiting {self.max_waiting}",
                fix="raise --max-waiting, or lower --max-texts",
            )
        if self.rate is not None and self.tokens is None:
            raise UserError(
                "--rate is for each token, and there are none",
                fix="give --tokens FILE, or leave --rate out",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        return self.host in _LOOPBACK

    @property
    def hosts(self) -> frozenset[str] | None:
        """The names by which it may be called; None: any, since it is meant to be reached from elsewhere.

        A page that a browser on this machine shows could reach a loopback server by a name of its own (DNS
        rebinding).
        """
        return frozenset({*_LOOPBACK, *self.allowed_hosts}) if self.is_loopback else None

    @property
    def computing_threads(self) -> int:
        """How many threads compute."""
        return self.threads or default_threads()

"""Token: a secret that all ranks hold, where it comes from, and how each proves to the others that it has it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from parallel_topology.errors import GroupArgumentError, LaunchError


@dataclass(frozen=True)
class Seals:
    """Keyed hashes (HMAC-SHA-256) under the token over one meeting's transcript, and so worth nothing in another one.

    Without a token they are empty: whoever has one refuses them.
    """

    token: str | None = field(repr=False)

    def of(self, *parts: str) -> str:
        """The seal of what these say."""
        if self.token is None:
            return ""
        text = "\0".join(f"{len(part)}:{part}" for part in parts)
        return hmac.new(self.token.encode(), text.encode(), hashlib.sha256).hexdigest()

    def fits(self, seal: object, *parts: str) -> bool:
        """Whether `seal` is theirs, compared in constant time."""
        return isinstance(seal, str) and hmac.compare_digest(seal.encode(), self.of(*parts).encode())


def digest(text: str) -> str:
    """A hash without a key."""
    return hashlib.sha256(text.encode()).hexdigest()


def require_token(token: object) -> None:
    """Check a token.

    Raises:
        GroupArgumentError: it is empty, and so no secret, or no text.
    """
    if token is not None and (not isinstance(token, str) or not token.strip()):
        what = "an empty one" if isinstance(token, str) else f"a {type(token).__name__}"
        raise GroupArgumentError(f"token: expected a secret text, or None for a manager without one, got {what}")


def token_from(env: Mapping[str, str]) -> str | None:
    """The token that the environment gives, in a variable or in a file.

    Raises:
        LaunchError: the file cannot be read, or the token is empty.
    """
    token, where = env.get("PARALLEL_TOPOLOGY_TOKEN"), "PARALLEL_TOPOLOGY_TOKEN"
    path = env.get("PARALLEL_TOPOLOGY_TOKEN_FILE")
    if token is None and path is not None:
        where = f"PARALLEL_TOPOLOGY_TOKEN_FILE={path}"
        try:
            token = Path(path).read_text().strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise LaunchError(f"{where}: {reason}") from error
    if token is not None and not token.strip():
        raise LaunchError(f"{where} holds an empty token: put a secret there, or unset it")
    return token

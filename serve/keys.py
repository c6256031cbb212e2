"""API keys: who may ask, how much, until when. Only their SHA-256 is stored.

One key a line, in the environment variable RATIONALE_API_KEYS or in the file that RATIONALE_API_KEYS_FILE
names, which is read again when it changes; `#` starts a comment:

    # name       sha256 of the key     options
    shop-2026    9f86d081884c7d65...   per_minute=600 at_once=8
    shop-2027    60303ae22b998861...   per_minute=600 at_once=8
    dashboard    fd61a03af4f77d87...   scope=read until=2027-01-31

To rotate a key, add the new line, move its users, remove the old one. Limits hold for each replica of the
ingress. `python -m serve.keys NAME [option=value ...]` makes a key: the line on standard output, the key
itself on standard error, once. A key is 256 random bits, so a plain hash is enough: nobody guesses it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import math
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path

from ray_app.errors import ConfigError, RationaleError

LINES, FILE = "RATIONALE_API_KEYS", "RATIONALE_API_KEYS_FILE"
PREFIX = "rk_"
SCOPES = ("read", "write")
LOOK_S = 2.0
"""How often the file's time of change is looked at, at most."""
HINT = "docs/api.md, Keys"
logger = logging.getLogger("rationale.keys")


@dataclass(frozen=True)
class Key:
    """One line."""

    name: str
    digest: str
    scope: str = "write"
    """read: everything but feedback."""
    per_minute: int | None = None
    at_once: int | None = None
    until: date | None = None
    """The last day on which it is good, in UTC."""


def parse(text: str, source: str) -> dict[str, Key]:
    """Keys by digest. Raises ConfigError naming the first line that is none."""
    found: dict[str, Key] = {}
    for number, line in enumerate(re.split(r"[\n;]", text), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            key = _key(words)
        except ValueError as error:
            raise ConfigError(f"{source}, line {number}: {error}: see {HINT}") from None
        if key.digest in found:
            raise ConfigError(
                f"{source}, line {number}: the key of {found[key.digest].name!r} again: remove one"
            )
        found[key.digest] = key
    if not found:
        raise ConfigError(f"{source} holds no key: make one with `python -m serve.keys NAME`")
    return found


class Keys:
    """The keys of now, by digest."""

    def __init__(self, text: str, source: str, file: Path | None = None):
        self._known = parse(text, source)
        self._source, self._file = source, file
        self._changed, self._looked = _changed(file), time.monotonic()

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Keys | None:
        """The keys that the environment gives, or None. Raises ConfigError for unusable ones."""
        lines, file = environment.get(LINES, "").strip(), environment.get(FILE, "").strip()
        if lines and file:
            raise ConfigError(f"{LINES} and {FILE} are both set: leave one out")
        if not file:
            return cls(lines, LINES) if lines else None
        try:
            return cls(Path(file).read_text(), file, Path(file))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{FILE} {file!r} cannot be read ({error}): correct it") from error

    def find(self, secret: str) -> Key | None:
        """The key of this secret."""
        self._follow()
        return self._known.get(hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest())

    def _follow(self) -> None:
        """Take up a changed file; a broken one is logged, and the keys from before stay good."""
        if self._file is None or time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        if (changed := _changed(self._file)) == self._changed:
            return
        self._changed = changed
        try:
            self._known = parse(self._file.read_text(), self._source)
        except (OSError, UnicodeDecodeError, RationaleError) as error:
            logger.error("keys not taken up: %s", error)


class Refused(Exception):
    """Why a request is not let in, with the status and, for 429, the seconds to wait."""

    def __init__(self, status: int, detail: str, retry_s: int = 0):
        super().__init__(detail)
        self.status, self.detail, self.retry_s = status, detail, retry_s


class Door:
    """Lets requests in by their key, within its limits (a token bucket of `per_minute`)."""

    def __init__(self, keys: Keys, clock: Callable[[], float] = time.time):
        self._keys, self._clock = keys, clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._working: dict[str, int] = {}

    def enter(self, headers: Mapping[bytes, bytes], writes: bool) -> Key:
        """The key, now at work: `leave` when the request is done. Raises Refused."""
        secret = _secret(headers)
        if secret is None:
            raise Refused(401, "no API key: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        key = self._keys.find(secret)
        if key is None:
            raise Refused(401, "this API key is not known: send a valid one")
        if key.until is not None and datetime.fromtimestamp(self._clock(), UTC).date() > key.until:
            raise Refused(403, f"the API key {key.name!r} was good until {key.until}: use its successor")
        if writes and key.scope != "write":
            raise Refused(403, f"the API key {key.name!r} may only read: use one with scope=write")
        working = self._working.get(key.name, 0)
        if key.at_once is not None and working >= key.at_once:
            raise Refused(429, f"{working} requests of {key.name!r} are at work: wait for one to end", 1)
        self._take(key)
        self._working[key.name] = working + 1
        return key

    def leave(self, key: Key) -> None:
        self._working[key.name] -= 1

    def _take(self, key: Key) -> None:
        if key.per_minute is None:
            return
        now = self._clock()
        left, then = self._buckets.get(key.name, (float(key.per_minute), now))
        left = min(key.per_minute, left + max(0.0, now - then) * key.per_minute / 60)
        if left < 1:
            wait = math.ceil((1 - left) * 60 / key.per_minute)
            raise Refused(
                429, f"{key.name!r} has asked {key.per_minute} times in a minute: wait {wait} s", wait
            )
        self._buckets[key.name] = left - 1, now


def check_hosts(hosts: Iterable[str], keys: Keys | None) -> None:
    """Raise ConfigError where the service would listen beyond loopback and let everybody in."""
    open_to = [host for host in hosts if not is_loopback(host)]
    if open_to and keys is None:
        raise ConfigError(
            f"the service would answer everybody on {open_to[0]!r}: set {LINES} or {FILE}, "
            f"or listen on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def make(name: str, options: Iterable[str] = ()) -> tuple[str, str]:
    """(a new key, its line). Raises ConfigError for options that cannot be used."""
    secret = PREFIX + secrets.token_urlsafe(32)
    line = " ".join([name, hashlib.sha256(secret.encode()).hexdigest(), *options])
    parse(line, "the new key")
    return secret, line


def _key(words: list[str]) -> Key:
    name, digest, *options = [*words, ""] if len(words) == 1 else words
    if not re.fullmatch(r"[\w.-]{1,64}", name):
        raise ValueError(f"name {name[:40]!r} is not made of letters, digits, `.`, `_`, `-`")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise ValueError(f"{name!r} has no SHA-256 of 64 hexadecimal digits as its second word")
    key = Key(name, digest.lower())
    for option in options:
        field, _, value = option.partition("=")
        if field in ("per_minute", "at_once") and value.isdecimal() and int(value) > 0:
            key = replace(key, **{field: int(value)})
        elif field == "scope" and value in SCOPES:
            key = replace(key, scope=value)
        elif field == "until":
            key = replace(key, until=date.fromisoformat(value))
        else:
            raise ValueError(
                f"option {option[:40]!r} is not per_minute=N, at_once=N, scope=read|write or until=DATE"
            )
    return key


def _secret(headers: Mapping[bytes, bytes]) -> str | None:
    scheme, _, value = headers.get(b"authorization", b"").decode("latin-1").strip().partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return headers.get(b"x-api-key", b"").decode("latin-1").strip() or None


def _changed(file: Path | None) -> tuple[int, int]:
    try:
        facts = os.stat(file) if file else None
    except OSError:
        return 0, 0
    return (facts.st_mtime_ns, facts.st_ino) if facts else (0, 0)


if __name__ == "__main__":
    try:
        if len(sys.argv) < 2:
            raise ConfigError(
                "no name: python -m serve.keys NAME [per_minute=N] [at_once=N] [scope=read] [until=DATE]"
            )
        made, shown = make(sys.argv[1], sys.argv[2:])
    except ConfigError as error:
        sys.exit(str(error))
    print(shown)
    print(f"the key, shown once: {made}", file=sys.stderr)

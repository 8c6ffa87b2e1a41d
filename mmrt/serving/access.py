"""Who may ask: keys, and the hosts and origins that requests name."""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from mmrt.errors import ArgumentError, FileError
from mmrt.serving import page
from mmrt.serving.http import Request
from mmrt.serving.problems import Refused

_METHODS = "GET, POST, DELETE, HEAD, OPTIONS"
_DAY = "86400"


def read_keys(path: str) -> list[str]:
    """The keys in a file, one on each line; empty lines and those that begin with # are none.
    Raises FileError, and ArgumentError where there is no key or one that no header can hold."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except OSError as error:
        raise FileError(error.errno, error.strerror, path) from None
    except UnicodeDecodeError:
        raise ArgumentError(f"{path}: it is not UTF-8") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ArgumentError(f"{path}: there is no key in it")
    for number, line in enumerate(lines, 1):
        if line in keys and not (line.isascii() and line.isprintable() and " " not in line):
            raise ArgumentError(f"{path}, line {number}: a key is printable ASCII without spaces")
    return keys


def read_origin(text: str) -> str:
    """An origin of web pages as browsers spell it, or "*". Raises ArgumentError for what is none,
    which would never be met."""
    if text == "*":
        return text
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    host = _host_name(parts.netloc)
    if parts.scheme not in ("http", "https") or text.strip() != text or not _is_name(host):
        raise ArgumentError(f"{text!r:.80} is no origin, such as https://example.org, nor *")
    if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ArgumentError(f"{text!r:.80}: an origin ends with its host or port")
    usual = port in (None, {"http": 80, "https": 443}[parts.scheme])
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}" + ("" if usual else f":{port}")


def read_host(text: str) -> str:
    """A name by which a server may be called. Raises ArgumentError for what is none."""
    if not _is_name(text):
        raise ArgumentError(f"{text!r:.80} is no host name: it has no scheme, port or path")
    return text.lower()


def _is_name(host: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+", host, re.ASCII)) or (":" in host and _is_address(host))


@dataclass
class Access:
    """The rules. keys: none: nobody needs one. hosts: names by which this server may be called,
    beside localhost and IP addresses. origins: of web pages that may use it; "*": all. without_key:
    paths for which nobody needs a key."""

    keys: Iterable[str] = ()
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    without_key: frozenset[str] = page.PATHS | {"/health", "/v1/health"}
    _digests: list[bytes] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._digests = [_digest(key) for key in self.keys]

    def check(self, request: "Request", path: str) -> None:
        """Raises Refused unless the request for `path` may be answered.

        A name other than these in Host is how a web page reaches a server on the reader's own
        machine: by a name of its own that it has point there (DNS rebinding).
        """
        host = request.headers.get("host", "")
        if host and not self._knows(host):
            raise Refused(
                403, f"no host {host!r:.80} is served here: --allowed-host adds one", code="host"
            )
        origin = request.headers.get("origin")
        if origin is not None and not self._allows(origin, host):
            raise Refused(
                403, f"pages of {origin!r:.80} may not ask: --cors-origin lets them", code="origin"
            )
        if request.method != "OPTIONS" and path not in self.without_key:
            self.owner(request)

    def _knows(self, host: str) -> bool:
        name = _host_name(host)
        if name in self.hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        return _is_address(name)

    def _allows(self, origin: str, host: str) -> bool:
        if "*" in self.origins or origin in self.origins:
            return True
        scheme, _, named = origin.partition("://")
        return bool(host) and scheme in ("http", "https") and named.lower() == host.lower()

    def owner(self, request: "Request") -> str:
        """Whose request it is: a word for each key, "" where there are none. Raises Refused."""
        if not self._digests:
            return ""
        given = request.headers.get("authorization", "")
        scheme, _, bearer = given.partition(" ")
        key = bearer.strip() if scheme.lower() == "bearer" else ""
        key = key or request.headers.get("x-api-key", "")
        digest, found = _digest(key), b""
        for own in self._digests:  # all of them, however soon one is found
            if hmac.compare_digest(own, digest):
                found = own
        if not found:
            raise Refused(
                401,
                "this server wants a key: Authorization: Bearer KEY, or x-api-key: KEY",
                code="invalid_api_key",
                headers=(("WWW-Authenticate", 'Bearer realm="mmrt"'),),
            )
        return found.hex()[:16]

    def headers(self, request: "Request") -> list[tuple[str, str]]:
        """What lets web pages of other origins read the answer, if they may. Cookies and the like
        never go with their requests."""
        origin = request.headers.get("origin")
        if origin is None or not ({"*", origin} & self.origins):
            return []
        allowed = "*" if "*" in self.origins else origin
        headers = [
            ("Access-Control-Allow-Origin", allowed),
            ("Access-Control-Expose-Headers", "x-request-id, request-id, Retry-After"),
            ("Vary", "Origin"),
        ]
        if request.method == "OPTIONS":
            asked = request.headers.get("access-control-request-headers", "")
            headers += [
                ("Access-Control-Allow-Methods", _METHODS),
                ("Access-Control-Allow-Headers", asked or "*"),
                ("Access-Control-Max-Age", _DAY),
            ]
        return headers


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    name = host.lower().strip()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if name.count(":") == 1 else name

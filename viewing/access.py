"""Who may read the page. On loopback everyone on this machine; elsewhere, or when asked, whoever has the token.

A page on the internet must not read it through the visitor's browser: a name that it lets point at this machine (DNS
rebinding) is not one of ours, and other origins get nothing that they may read.
"""

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

_TOKEN_BYTES = 24


class Access:
    """token: None where none is asked for."""

    def __init__(self, host: str, with_token: bool = False) -> None:
        self.open_to_others = not is_loopback(host)
        self.token = secrets.token_urlsafe(_TOKEN_BYTES) if with_token or self.open_to_others else None
        # Cookies are shared by all ports of a host: another page of ours there has another name.
        self._cookie_name = f"r1_view_{hashlib.sha256((self.token or '').encode()).hexdigest()[:8]}"

    def refusal(self, headers: Mapping[str, str], asked_token: str) -> tuple[int, str] | None:
        """(status, reason) when a request is refused. `asked_token`: the one in its query."""
        if not self.open_to_others and not is_loopback(_name(headers.get("Host") or "")):
            return 421, "this page is served to the names of this machine only, such as localhost"
        if headers.get("Sec-Fetch-Site") in ("cross-site", "same-site") and headers.get("Sec-Fetch-Mode") != "navigate":
            return 403, "another site may not read this page"
        given = (asked_token, _bearer(headers), self._cookie(headers))
        if self.token is not None and not any(map(self.is_token, given)):
            return 401, "open the address that r1 view printed: it has the token"
        return None

    def is_token(self, text: str) -> bool:
        return self.token is not None and hmac.compare_digest(text.encode(), self.token.encode())

    def cookie(self) -> str:
        """The header that lets a browser in which opened the address with the token."""
        return f"{self._cookie_name}={self.token}; HttpOnly; SameSite=Lax; Path=/; Max-Age=604800"

    def _cookie(self, headers: Mapping[str, str]) -> str:
        try:
            found = SimpleCookie(headers.get("Cookie") or "").get(self._cookie_name)
        except CookieError:
            return ""
        return found.value if found else ""


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _bearer(headers: Mapping[str, str]) -> str:
    kind, _, token = (headers.get("Authorization") or "").partition(" ")
    return token.strip() if kind == "Bearer" else ""

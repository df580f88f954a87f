"""Passwords and tokens in addresses. Commands use them, and write or print them nowhere."""

import netrc
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

T = TypeVar("T")

MASK = "***"
SECRET_NAMES = (
    *("token", "secret", "sig", "signature", "password", "passwd", "passphrase", "pwd", "pass", "auth"),
    *("authorization", "credential", "credentials", "key", "apikey", "accesskey", "accesskeyid", "jwt", "session"),
)
"""Words in the name of a value that make it secret, as in access_token=, X-Amz-Signature= or AWSAccessKeyId=."""
LOGIN = re.compile(
    r"(?<=://)(?:[^/?#\s,;][^/?#\n]*@"  # user:password@
    r"|[^/?#\s:@]+:(?!\d{1,5}(?:[/?#\s,\]\"']|$))[^\s@]*@)"  # the same, where the password holds a bare / ? or #
)
NAMED = re.compile(
    r"([\w.%~+-]+)="
    r"(?:([\"'])(.*?)\2"  # a quoted value
    r"|([^&#\s'\"]*?)(?=[:;,.)\]]*(?:[&#\s'\"]|$)))"  # any other, without the punctuation after it
)
QUERY = re.compile(r"(.*?://[^?#]*|.*)(?:([?#])(.*))?", re.DOTALL)
"""A text up to the query or fragment of the address in it, and that."""
WORDS = re.compile(r"[a-z]+|[A-Z]+(?![a-z])|[A-Z][a-z]*")


def without_credentials(value: T) -> T:
    """Replace passwords and tokens by ***: user:password in addresses, and values whose name says that they are secret.

    Args:
        value: a message or an argument, in which any NAME=VALUE is looked at; a list or tuple of them; or a mapping
            with the values of a configuration. In those only the query and the fragment of an address have names, and
            a folder may be called session=3.
    """
    if isinstance(value, str):
        return mask_named(LOGIN.sub(f"{MASK}@", value))  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return masked_values(value)
    if isinstance(value, list | tuple):
        return type(value)(map(without_credentials, value))
    return value


def masked_values(value: Any) -> Any:
    """Mask the values of a configuration: nested mappings, lists and tuples."""
    if isinstance(value, str):
        address, start, query = QUERY.fullmatch(LOGIN.sub(f"{MASK}@", value)).groups("")  # type: ignore[union-attr]
        return address + start + mask_named(query)
    if isinstance(value, Mapping):
        return {
            key: MASK if item and isinstance(item, str) and is_secret(str(key)) else masked_values(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(map(masked_values, value))
    return value


def mask_named(text: str) -> str:
    """Mask NAME=VALUE where the name is secret, as in a query or a command line. A value may hold such pairs itself."""

    def masked(found: re.Match[str]) -> str:
        name, quote, quoted, bare = found.groups("")
        value = quoted or bare
        secret = value and is_secret(name) and value.lower() not in ("true", "false", "null")
        return f"{name}={quote}{MASK if secret else mask_named(value)}{quote}"

    return NAMED.sub(masked, text)


def is_secret(name: str) -> bool:
    """Whether a name has one of `SECRET_NAMES` as a word: api_key and apiKey have, monkey has not."""
    words = [word.lower() for word in WORDS.findall(name)]
    return any(word in SECRET_NAMES or word.endswith(("token", "secret", "password")) for word in words)


def restore_credentials(address: str) -> str | None:
    """Make a masked address usable: without its mask if ~/.netrc knows its host. None if the secret is missing.

    Other addresses are returned as they are.
    """
    plain, masks = re.subn(rf"(?<=://){re.escape(MASK)}@", "", address)
    if f"={MASK}" in plain or (masks and not from_netrc(plain)):
        return None
    return plain


def split_login(address: str) -> tuple[str, tuple[str, str] | None]:
    """The address without user:password@, and its (user, password): its own, or ~/.netrc's for the host."""
    parts = urlsplit(address)
    plain = re.sub(r"(?<=://)[^/?#]*@", "", address, count=1)
    if "@" in parts.netloc:
        return plain, (unquote(parts.username or ""), unquote(parts.password or ""))
    return plain, from_netrc(plain)


def from_netrc(address: str) -> tuple[str, str] | None:
    """The (user, password) of an address's host in the file $NETRC, or ~/.netrc; None if it has none."""
    try:
        known = netrc.netrc(os.environ.get("NETRC") or str(Path.home() / ".netrc"))
        found = known.authenticators(urlsplit(address).hostname or "")
    except (OSError, ValueError, netrc.NetrcParseError):
        return None
    return (found[0], found[2] or "") if found else None

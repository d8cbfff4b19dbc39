"""The Hub client's session, endpoint and headers; what is wrong with its environment, in plain words and no secrets."""

from __future__ import annotations

import base64
import importlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from wanstore.errors import AccessError, UnreachableError

_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")


def transport() -> Any:
    """The HTTP library that the client uses: httpx up to 1.x, httpx2 from 2.x. Its own error's base says which."""
    from huggingface_hub.errors import HfHubHTTPError

    names = [base.__module__.partition(".")[0] for base in HfHubHTTPError.__mro__]
    return importlib.import_module(next(name for name in names if name in ("httpx", "httpx2")))


def read_endpoint(text: str) -> tuple[str, str | None]:
    """The Hub's address without user and password, and the Authorization header that these make.

    Raises `UnreachableError`, which does not quote the address: a password in it may be anywhere.
    """
    try:
        parts = urlsplit(text)
        login, _, host = parts.netloc.rpartition("@")
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or "@" in host + parts.path or parts.query or parts.fragment:
        raise UnreachableError(
            "HF_ENDPOINT is not the address of a Hub",
            "Set it like https://huggingface.co, with the special characters of a password percent-encoded",
        )
    user, _, password = login.partition(":")
    basic = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode(errors="surrogateescape")).decode()
    return parts._replace(netloc=host).geturl(), f"Basic {basic}" if login else None


def request_headers(login: str | None) -> dict[str, str]:
    """The client's headers, with its token or, if the endpoint has one, with `login`.

    Raises `AccessError` for a token that cannot be read, or that no header can hold: the HTTP library's own error
    would quote it.
    """
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    try:
        headers: dict[str, str] = build_hf_headers(library_name="wanstore")
    except OSError as error:
        raise AccessError(
            f"The file of the Hub token cannot be read ({error.strerror})", "Get permission to read it, or set HF_TOKEN"
        ) from None
    except UnicodeDecodeError:  # of the file that holds it
        headers = {"authorization": "\0"}
    token = headers.get("authorization", "")
    if not (token.isascii() and token.isprintable()):
        raise AccessError("The Hub token contains invalid characters", "Set HF_TOKEN again, or run hf auth login")
    return {**headers, "authorization": login} if login else headers


def open_session() -> Any:
    """The client's session. Raises `UnreachableError` when the environment does not let it be made."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    try:
        return get_session()
    except ImportError:
        raise UnreachableError(
            f"{_proxies()} names a SOCKS proxy, which needs the package socksio",
            "Install socksio, or use an HTTP proxy",
        ) from None
    except OSError as error:
        raise certificate_error(str(error)) from None
    except (ValueError, transport().InvalidURL):
        raise UnreachableError(
            f"{_proxies()} is not the address of a proxy", "Set it like http://HOST:PORT, or unset it"
        ) from None


def certificate_error(reason: str) -> UnreachableError:
    """Why TLS cannot be used: a variable that names no certificates, if there is one."""
    for name in _CERTIFICATES:
        places = os.environ.get(name, "")
        if places and not any(Path(place).exists() for place in places.split(os.pathsep)):
            return UnreachableError(f"{name} names {places}, which does not exist", f"Correct {name}, or unset it")
    named = " and ".join(f"{name}={os.environ[name]}" for name in _CERTIFICATES[:2] if os.environ.get(name))
    return UnreachableError(
        f"Certificates cannot be verified with {named or 'those of this machine'} ({reason})",
        "Set SSL_CERT_FILE to a file of the certificates that your network uses",
    )


def _proxies() -> str:
    """The variables that name a proxy, without their values: these may hold a password."""
    names = ("http_proxy", "https_proxy", "all_proxy")
    return " or ".join(sorted({name for name, value in os.environ.items() if name.lower() in names and value}))

"""Where a source is: what connects to it, and what people see of it, which never holds a password.

Cameras want passwords before the host, in the path or in the query, and people write them with characters that end the
host for a parser. So an address is not searched for secrets: only its scheme, host and port are ever shown.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from adedge.errors import SourceError, UsageError
from adedge.limits import ADDRESS_BYTES, read_file
from adedge.runtime.sources.frame import Notify, ignore

PERCENT_ENCODED = "@ / ? # % as %40 %2F %3F %23 %25"
HIDDEN = "this source (not shown, because it may hold a password)"

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_HOST_AND_PORT = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:.]+(%[\w.-]+)?\])(:\d{1,5})?")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_BEFORE_HOST = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*@")


@dataclass(frozen=True)
class Address:
    """An address without its variables: ``text`` is for what connects, ``shown`` for messages and verdicts."""

    text: str = field(repr=False)
    shown: str

    @property
    def is_url(self) -> bool:
        """Whether it names a scheme and a host."""
        return _URL.match(self.text) is not None

    @property
    def is_remote(self) -> bool:
        """Whether it is a URL or a GStreamer pipeline, of which only a part is shown."""
        return self.is_url or self.text.startswith("gst:")


def resolve(given: str, notify: Notify = ignore) -> Address:
    """The address that a user gave, with its secrets filled in.

    - ``${NAME}`` is replaced by an environment variable. Before the host of a URL, where a user name and a password
      are, its special characters are percent-encoded.
    - ``@PATH`` stands for the only line of a file, in which ``${NAME}`` has no meaning. ``notify`` is warned if every
      user may read it.

    Raises `SourceError` if the variable is not set or the file cannot be used, `UsageError` if a URL has no valid host
    or holds control characters.
    """
    text = _read(Path(given[1:]), notify) if given.startswith("@") and len(given) > 1 else _expand(given)
    address = Address(text, shown(text))
    if address.is_remote:
        if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", text):
            raise UsageError(
                f"the address {address.shown} holds a control character or is not UTF-8: write it percent-encoded (%0A)"
            )
        if address.is_url and _host_and_port(text) is None:
            # Otherwise a part of the password would be looked up as a host, on the network.
            raise UsageError(
                f"the address {address.shown} has no valid host and port: in a user name and a password write "
                f"{PERCENT_ENCODED}, or name an environment variable: ${{CAMERA_PASSWORD}}"
            )
        return address
    # What a variable or a file holds by mistake may be a password alone.
    return Address(text, given if given.startswith("@") else shown(given))


def shown(text: str) -> str:
    """What may be shown of an address: scheme, host and port; of a GStreamer pipeline, its first element.

    What is neither, but looks like a part of an address, is `HIDDEN`. A host is shown only where no reading of the
    address makes it a part of the password.
    """
    if (url := _URL.match(text)) is not None:
        # With an "@" further on, the password may hold the character that seemed to end the host.
        ambiguous = "@" in url[2][len(_authority(url)) :]
        host = _host_and_port(text)
        return f"{url[1]}://..." if ambiguous or host is None else f"{url[1]}://{host}"
    if text.startswith("gst:"):
        element = re.match(r"\s*([a-z][a-z0-9_-]*)(?=\s|!|$)", text.removeprefix("gst:"))
        return f"gst:{element[1]}" if element else "gst:..."
    if re.match(r"(\d+|/dev/video\d+|synthetic:\w+)(\?|$)", text):
        return text.partition("?")[0]
    return HIDDEN if re.search(r"[@:=&?]", text) else text


def _authority(url: re.Match[str]) -> str:
    return re.split(r"[/?#]", url[2], maxsplit=1)[0]


def _host_and_port(text: str) -> str | None:
    """As FFmpeg reads them: what follows the last "@" before a "/", "?" or "#"; None if that is no host."""
    url = _URL.match(text)
    host = _HOST_AND_PORT.fullmatch(_authority(url).rpartition("@")[2]) if url else None
    return host[0] if host else None


def distinct_names(addresses: list[Address]) -> list[str | None]:
    """A name for each remote address that is shown like another one; None where the source's own will do."""
    counts = [sum(other.shown == address.shown for other in addresses) for address in addresses]
    return [
        f"{address.shown} (camera {index})" if count > 1 and address.is_remote else None
        for index, (address, count) in enumerate(zip(addresses, counts, strict=True))
    ]


def _read(path: Path, notify: Notify) -> str:
    try:
        data = read_file(path, ADDRESS_BYTES, SourceError)
        readable_by_all = path.stat().st_mode & 0o004
    except OSError as error:
        raise SourceError(
            f"{path} cannot be read ({error.strerror}): @PATH stands for a file whose only line is the address of a "
            "source (write ./@NAME for a file or folder whose name begins with @)"
        ) from None
    try:
        lines = data.decode().strip().splitlines()
    except UnicodeDecodeError:
        raise SourceError(f"{path} is not UTF-8 text: write the address of the source into it") from None
    if len(lines) != 1:
        raise SourceError(f"{path} has {len(lines)} lines: it must hold the address of one source, on one line")
    if readable_by_all:
        notify(f"{path} holds a source's address, and every user of this machine may read it: run 'chmod 600 {path}'")
    return lines[0]


def _expand(text: str) -> str:
    before_host = _BEFORE_HOST.match(text)
    end = before_host.end() if before_host else 0

    def value(variable: re.Match[str]) -> str:
        if (found := os.environ.get(variable[1])) is None:
            raise SourceError(f"the environment variable {variable[1]} is not set, but a source names it: export it")
        return quote(found, safe="", errors="surrogateescape") if variable.start() < end else found

    return _VARIABLE.sub(value, text)

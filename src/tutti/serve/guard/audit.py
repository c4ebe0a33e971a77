"""The audit log: a line of JSON for every request, in files of bounded size.

A line is handed to the system before the client's connection is free for the next request, so it survives the end of
the service, however it comes; it is not forced to the disk (no fsync), so a power cut can take the last seconds. A line
that cannot be written is said among the service's messages, and the request is answered all the same.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from tutti.config.service import AuditConfig
from tutti.core.errors import ConfigError
from tutti.serve.guard.exchange import Exchange

_LOG = logging.getLogger("uvicorn.error")


class Audit:
    """Writes to the file that `settings` name.

    Raises:
        ConfigError: it cannot be written.
    """

    def __init__(self, settings: AuditConfig) -> None:
        assert settings.file is not None
        try:
            self._handler = _Private(
                Path(settings.file),
                maxBytes=settings.file_bytes,
                backupCount=settings.files,
                encoding="utf-8",
            )
        except OSError as error:
            raise ConfigError(
                f"audit.file: cannot write {settings.file}: {error.strerror}",
                "name a file in a folder of yours",
            ) from error

    def notice(self, exchange: Exchange) -> None:
        """Write the line of a request that is over."""
        line = json.dumps(entry_of(exchange), ensure_ascii=False)
        line = line.encode("utf-8", "backslashreplace").decode()
        self._handler.handle(logging.LogRecord("audit", logging.INFO, "", 0, line, None, None))


def entry_of(exchange: Exchange) -> dict[str, Any]:
    """What is written of it. Texts in it are Tutti's own or redacted: the path that was asked for is not there, but the
    route that it meant."""
    entry: dict[str, Any] = {
        "id": exchange.id,
        "time": datetime.fromtimestamp(exchange.began, UTC).isoformat(timespec="milliseconds"),
        "key": exchange.key,
        "method": exchange.method,
        "route": exchange.route,
        "status": exchange.status,
        "whole": exchange.whole,
        "milliseconds": round(exchange.seconds * 1000, 1),
        "prompt_tokens": exchange.prompt_tokens,
        "new_tokens": exchange.new_tokens,
        "redactions": dict(exchange.redactions),
        "harm": exchange.harm,
    }
    return entry if exchange.prompt is None else entry | {"prompt": exchange.prompt}


class _Private(RotatingFileHandler):
    """Its files are nobody else's."""

    def _open(self) -> TextIOWrapper:
        def private(path: str, flags: int) -> int:
            return os.open(path, flags, 0o600)

        return open(self.baseFilename, self.mode, encoding=self.encoding, opener=private)  # type: ignore[return-value]

    def doRollover(self) -> None:
        if (
            self.backupCount == 0
        ):  # no file is kept beside it, and Python's own handler would go on in the full one
            os.truncate(self.baseFilename, 0)
        super().doRollover()

    def handleError(self, record: logging.LogRecord) -> None:
        _LOG.error("a line of the audit log could not be written", exc_info=True)

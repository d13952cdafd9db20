"""Invoke mode: one process that is asked for case after case over HTTP (Grand Challenge, `api-method="invoke"`).

`GET /health` is 503 while the networks load, then 200. `POST /invoke` is 201 when the case is answered. A failure is
that case's alone: 500, and one line on stderr, of which the platform shows the user the last.
"""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

from midog.errors import UserError, brief
from midog.http import Handler, Server

METHODS = {"/health": "GET", "/invoke": "POST"}

logger = logging.getLogger(__name__)


def serve(port: int, load: Callable[[], object], answer: Callable[[], object], case: Path) -> None:
    """Listen at once, load, and answer cases until a signal ends the process, with exit code 0.

    Args:
        port: of all interfaces.
        load: called once.
        answer: called for each case, when `load` is done; one at a time.
        case: the folder that each case is read from, for the line about a failure that is a bug.

    Raises:
        UserError: the port is taken, or what `load` raises.
    """
    for ending in (signal.SIGTERM, signal.SIGINT):
        # As the first process of a container none has an effect by itself. A case that runs cannot be interrupted, but
        # its result is written whole or not at all, and each line of the log is flushed.
        signal.signal(ending, lambda *_: os._exit(0))
    started = time.perf_counter()
    server = _Server(port, answer, case)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    logger.info("listening on port %d", port)
    server.worker.submit(load).result()
    server.ready = True
    logger.info("ready, seconds %.2f", time.perf_counter() - started)
    threading.Event().wait()  # in the main thread, so that a signal is heard at once


class _Server(Server):
    ready = False

    def __init__(self, port: int, answer: Callable[[], object], case: Path) -> None:
        # One thread loads and answers: torch keeps a pool of threads for each thread that calls it, and the platform
        # allows 128 of them all.
        self.worker = ThreadPoolExecutor(max_workers=1)
        self._answer, self._case = answer, case
        super().__init__("0.0.0.0", port, "--serve", _Handler)

    def invoke(self) -> tuple[HTTPStatus, str]:
        """Answer a case; the status, and the line about a failure, which stands on stderr, too."""
        try:
            self.worker.submit(self._answer).result()
        except UserError as error:
            line = f"error: {error}"
        except Exception as error:  # a bug in one case must not cost the others
            logger.info(traceback.format_exc().rstrip())
            line = f"error: {self._case}: {type(error).__name__}: {brief(error)}"
        else:
            return HTTPStatus.CREATED, "done"
        print(line, file=sys.stderr, flush=True)
        return HTTPStatus.INTERNAL_SERVER_ERROR, line


class _Handler(Handler):
    server: _Server

    def _route(self) -> None:
        method = METHODS.get(self.path)
        if method is None:
            self._reply(HTTPStatus.NOT_FOUND, f"known: {', '.join(METHODS)}")
        elif method != self.command:
            self._reply(HTTPStatus.METHOD_NOT_ALLOWED, f"{method} expected")
        elif not self.server.ready:
            self._reply(HTTPStatus.SERVICE_UNAVAILABLE, "loading")
        elif method == "GET":
            self._reply(HTTPStatus.OK, "ready")
        else:
            self._reply(*self.server.invoke())

    do_GET = do_POST = _route  # noqa: N815

    def _reply(self, status: HTTPStatus, line: str) -> None:
        body = f"{line}\n".encode(errors="backslashreplace")
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

"""What both servers share, `serve` for the platform and `view` for a reader: the standard library's, made quiet."""

import sys
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

from midog.errors import UserError, brief


class Server(ThreadingTCPServer):
    """Many requests at once. Not `ThreadingHTTPServer`, which asks a name server for its own name before it listens.

    Args:
        address: where it listens.
        port: 0 for a free one.
        option: of the command line that names the port, for the message.
        handler: answers a request.

    Raises:
        UserError: the port is taken, or none.
    """

    allow_reuse_address = daemon_threads = True

    def __init__(self, address: str, port: int, option: str, handler: type[BaseHTTPRequestHandler]) -> None:
        try:
            super().__init__((address, port), handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"port {port}: cannot be listened on ({brief(error)}); give {option} another") from None

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    """Writes no log: stderr is for errors, and an address may hold a secret."""

    timeout = 10  # seconds for a client to say what it wants

    def log_message(self, *_: object) -> None:
        pass

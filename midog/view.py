"""`midog view`: a result on its slide in the browser, and the reader's review of it in a file beside the result.

A server on 127.0.0.1 gives the page, tiles of this one slide, and the review. A random token in the address keeps the
machine's other users and programs out, the Host header pages of other sites that come by a name of their own for this
machine, and the Origin header their writing. Of a request only three numbers and the review's text are used, never a
path.
"""

import argparse
import hashlib
import json
import logging
import math
import re
import secrets
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from midog.about import NAME as ABOUT
from midog.about import read_about
from midog.errors import UserError
from midog.files import read_json, sha256_of, write_with
from midog.http import Handler, Server
from midog.images.folder import identity_of
from midog.images.level import Cache
from midog.images.slide import WHITE, ArraySlide, Slide, open_slide
from midog.job import RESULT_NAMES, check_detection_result
from midog.report.binding import bind
from midog.report.draw import found_on, notices
from midog.report.page import view_page
from midog.report.page_counts import measured_json
from midog.report.pyramid import COARSE_TILES, TILE, Place, grid, jpeg, levels, pixels_of
from midog.report.review import read_review

ADDRESS = "127.0.0.1"
USUAL_PORT = 4744  # a browser keeps what it stores for a page by the port
REVIEW = "reviewed.geojson"
NO_REVIEW = "none"  # the revision of a review that is not there yet
REVIEW_BYTES = 64 << 20
DECODED_BYTES, TILE_BYTES = 128 << 20, 64 << 20  # of the slide's pixels and of encoded tiles that are kept
WORKERS = 2  # threads that decode and encode tiles
PATIENCE = 2  # seconds that a coarse tile's request waits while the slide is read; the page asks again
TILE_PLACE = re.compile("tile/([0-9]{1,9})/([0-9]{1,9})/([0-9]{1,9})")
HEADERS = {  # of every answer
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
NOT_STORED, STORED = "no-store", "private, max-age=3600"

Made = TypeVar("Made")

logger = logging.getLogger(__name__)


def run(arguments: argparse.Namespace) -> None:
    """Serve a result until Ctrl-C, a signal, or the end of the terminal.

    Args:
        arguments: `result`, a file or its folder; `image` or None; `mpp`; `any_image`; `port`, 0 for a free one or
            None for `USUAL_PORT` while that is free; `no_browser`.

    Raises:
        UserError: the result, its image or its review cannot be read or do not belong together; the port is taken.
    """
    result = arguments.result / RESULT_NAMES[1] if arguments.result.is_dir() else arguments.result
    content = read_json(result, "give the result of midog predict or inference.py, or its folder")
    try:
        check_detection_result(content)
    except ValueError as error:
        raise UserError(f"{result}: not a result of Track 1 ({error}); give one, or run midog predict again") from None
    image = arguments.image or image_of(result)
    bound = bind(result, image, arguments.mpp, arguments.any_image, None)
    given = bound.resolution.um_per_px[0] if bound.resolution else None
    with open_slide(image, given, bound.default_um_per_px, Cache(DECODED_BYTES)) as slide:
        if bound.resolution:
            slide.um_per_px, slide.resolution = bound.resolution.um_per_px, bound.resolution
        found = found_on(slide, content).best_first()
        name = image.name or image.resolve().name
        identity = {"name": name, **{key: value for key, value in identity_of(image).items() if key != "modified"}}
        made_from = identity, sha256_of(result)

        def check(path: Path) -> None:
            if not read_review(path, slide, found, *made_from).bound:
                raise UserError(f"{path}: not this page's; move it away, or draw it with midog report --figures")

        def page() -> str:
            text, revision = review.read()
            start = json.loads(text) if text else None
            known = bound.system, notices(bound.doubts, slide.resolution), bound.reliability, *made_from
            return view_page(slide, found, name, *known, {"url": "review", "revision": revision, "start": start})

        review = ReviewFile(result.parent / REVIEW, check)
        review.read()
        port = _usual_port() if arguments.port is None else arguments.port
        serve(ViewServer(port, page, Tiles(slide), review), not arguments.no_browser)


def _usual_port() -> int:
    try:
        with socket.create_server((ADDRESS, USUAL_PORT)):
            return USUAL_PORT
    except OSError:
        return 0


def image_of(result: Path) -> Path:
    """Where the image of a result is: where predict found it, beside the result, or one folder up.

    Raises:
        UserError: in none of these places, or no about.json says which image it is.
    """
    about = read_about(result)
    name = Path(about.image.name).name if about else ""
    if not name:
        raise UserError(f"{result}: no {ABOUT} beside it says which image it was made from; give IMAGE, too")
    folder = result.absolute().parent
    places = [*([Path(about.image_path)] if about and about.image_path else []), folder / name, folder.parent / name]
    for place in places:
        if place.exists() and place != folder:  # predict names the result's folder as its image
            return place
    known = " or ".join(map(str, dict.fromkeys(places)))
    raise UserError(f"{result}: its image is not at {known}; give IMAGE, where it is now, too")


def serve(server: "ViewServer", with_browser: bool) -> None:
    """Answer until the process is told to end."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Windows has no terminal that hangs up, and under nohup it may. Else nothing is said: nobody would read it.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(0))
    try:
        logger.info("view at %s until Ctrl-C", server.url)
        if with_browser:  # in a thread, because a browser in the terminal would hold this one
            threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
        server.serve_forever()
    except KeyboardInterrupt:
        path = server.review.path
        logger.info("ended, %s", f"review {path}" if path.exists() else "without a review")
    finally:
        server.server_close()


class RefusalError(Exception):
    """A request that is not answered with what it asks for; one line says why."""

    def __init__(self, status: HTTPStatus, line: str) -> None:
        super().__init__(line)
        self.status = status


class Tiles:
    """JPEG tiles of a slide, numbered as `midog.report.pyramid` does, those used last kept.

    The first coarse level, of at most 16 tiles, is read in the background, tile by tile, and the coarser ones are made
    from it: without a pyramid each of these levels takes as long as to decode all of the slide. So does the overview,
    read afterwards, on which the tissue is measured.
    """

    def __init__(self, slide: Slide) -> None:
        self._slide = slide
        self._kept = Cache(TILE_BYTES)
        # Not the threads of the requests, each of which leaves memory of its own behind.
        self._workers = ThreadPoolExecutor(max_workers=WORKERS)
        self.levels = levels(slide.size)
        self._coarse = next(level for level in range(self.levels) if math.prod(grid(slide.size, level)) <= COARSE_TILES)
        columns, rows = grid(slide.size, self._coarse)
        self._parts: dict[tuple[int, int], Future[NDArray[np.uint8]]]
        self._parts = {(x, y): Future() for y in range(rows) for x in range(columns)}
        self._tissue: Future[str] = Future()
        threading.Thread(target=self._read, daemon=True).start()

    def close(self) -> None:
        """Wait for the tiles that were asked for."""
        self._workers.shutdown()

    def _read(self) -> None:
        in_fours = sorted(self._parts, key=lambda part: (part[1] // 2, part[0] // 2, part))  # each a coarser tile
        for x, y in in_fours:
            _settle(self._parts[x, y], pixels_of, self._slide, Place(self._coarse, x, y))
        _settle(self._tissue, measured_json, self._slide)

    def tissue(self) -> str:
        """What is known of the slide's tissue, JSON.

        Raises:
            RefusalError: nothing yet.
            UserError: the slide's pixels cannot be decoded.
        """
        _await([self._tissue])
        return self._tissue.result()

    def get(self, level: int, x: int, y: int) -> bytes:
        """A tile.

        Raises:
            RefusalError: it is not there, or not yet.
            UserError: the slide's pixels cannot be decoded.
        """
        columns, rows = grid(self._slide.size, level) if level < self.levels else (0, 0)
        if x >= columns or y >= rows:
            raise RefusalError(HTTPStatus.NOT_FOUND, "no such tile")
        place = Place(level, x, y)
        parts = self._parts_of(place) if level >= self._coarse else {}
        _await(parts.values())

        def made() -> NDArray[np.uint8]:
            pixels = _joined(parts, level - self._coarse) if parts else pixels_of(self._slide, place)
            return np.frombuffer(jpeg(pixels), np.uint8)

        return self._workers.submit(self._kept.get, place, made).result().tobytes()

    def _parts_of(self, place: Place) -> "dict[tuple[int, int], Future[NDArray[np.uint8]]]":
        """By their place within it, the tiles of the first coarse level that a coarse tile shows."""
        step = 1 << (place.level - self._coarse)
        left, top = place.x * step, place.y * step
        inside = ((x, y) for y in range(step) for x in range(step))
        return {(x, y): self._parts[left + x, top + y] for x, y in inside if (left + x, top + y) in self._parts}


def _settle(future: Future[Made], make: Callable[..., Made], *given: Any) -> None:
    try:
        future.set_result(make(*given))
    except Exception as error:  # told to whoever asks for it
        future.set_exception(error)


def _await(futures: Iterable[Future[Any]]) -> None:
    """Wait some seconds, or refuse what needs them."""
    if wait(futures, PATIENCE).not_done:
        raise RefusalError(HTTPStatus.SERVICE_UNAVAILABLE, "the slide is still being read; ask again")


def _joined(parts: "dict[tuple[int, int], Future[NDArray[np.uint8]]]", halvings: int) -> NDArray[np.uint8]:
    """uint8 (512, 512, 3), tiles by their place beside each other, halved so often; white where there is none."""
    whole = np.full((TILE << halvings, TILE << halvings, 3), WHITE, np.uint8)
    for (x, y), part in parts.items():
        whole[y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE] = part.result()
    return pixels_of(ArraySlide(whole), Place(halvings, 0, 0))


class ReviewFile:
    """The reader's review on the disk, which only changes from a revision that the writer knows.

    Attributes:
        path: its file.
        lock: held while it is replaced.
    """

    def __init__(self, path: Path, check: Callable[[Path], object]) -> None:
        """`check` raises `UserError` for a file that is no review of this result."""
        self.path, self._check = path, check
        self.lock = threading.Lock()

    def read(self) -> tuple[bytes, str]:
        """Its text, empty where there is none, and its revision.

        Raises:
            UserError: it cannot be read, or is none of this result.
        """
        text, revision = self._read()
        if text:
            self._check(self.path)
        return text, revision

    def _read(self) -> tuple[bytes, str]:
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return b"", NO_REVIEW
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); move it away") from None
        return text, hashlib.sha256(text).hexdigest()

    def replace(self, known: str, text: bytes) -> str:
        """Write another text if the file's revision is `known`; the new revision.

        Raises:
            RefusalError: it is not, the text is no review of this result, or the disk does not take it; the file stays.
        """

        def write(part: Path) -> None:
            part.write_bytes(text)
            try:
                self._check(part)
            except UserError as error:
                line = str(error).replace(part.name, self.path.name)
                raise RefusalError(HTTPStatus.UNPROCESSABLE_ENTITY, line) from None

        with self.lock:
            if known != self._read()[1]:
                raise RefusalError(HTTPStatus.PRECONDITION_FAILED, f"{self.path}: another review was saved meanwhile")
            try:
                write_with(self.path, write)
            except UserError as error:
                raise RefusalError(HTTPStatus.INSUFFICIENT_STORAGE, str(error)) from None
            return self._read()[1]


class ViewServer(Server):
    """Gives a page, its tiles and its review to whoever has the token.

    Attributes:
        hosts: what a browser may call this machine.
        token: in every address.
        url: the page's.
    """

    def __init__(self, port: int, page: Callable[[], str], tiles: Tiles, review: ReviewFile) -> None:
        self.page, self.tiles, self.review = page, tiles, review
        self.token = secrets.token_urlsafe()
        super().__init__(ADDRESS, port, "--port", _Handler)
        port = self.server_address[1]
        self.hosts = f"{ADDRESS}:{port}", f"localhost:{port}"
        self.url = f"http://{self.hosts[0]}/{self.token}/"

    def server_close(self) -> None:
        """End when what is being made or written is whole."""
        super().server_close()
        self.tiles.close()
        with self.review.lock:
            pass


class _Handler(Handler):
    server: ViewServer
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(message)s\n"

    def _route(self) -> None:
        try:
            self._answer()
        except RefusalError as refused:
            self._reply(refused.status, f"{refused}\n")
        except UserError as error:
            self._reply(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error}\n")

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = do_OPTIONS = do_PATCH = _route  # noqa: N815

    def _answer(self) -> None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0] not in self.server.hosts:
            raise RefusalError(HTTPStatus.FORBIDDEN, f"ask for {' or '.join(self.server.hosts)}")
        first, _, place = self.path[1:].partition("/")
        match = TILE_PLACE.fullmatch(place)
        is_known = (match or place in ("", "review", "tissue")) and self.path == f"/{first}/{place}"
        if not secrets.compare_digest(first.encode(), self.server.token.encode()) or not is_known:
            raise RefusalError(HTTPStatus.NOT_FOUND, "nothing here")
        if self.command == "PUT" and place == "review":
            self._put_review(f"http://{hosts[0]}")
        elif self.command != "GET":
            raise RefusalError(HTTPStatus.METHOD_NOT_ALLOWED, "GET expected, or PUT of a review")
        elif match:
            level, x, y = map(int, match.groups())
            self._reply(HTTPStatus.OK, self.server.tiles.get(level, x, y), "image/jpeg", STORED)
        elif place == "tissue":
            self._reply(HTTPStatus.OK, self.server.tiles.tissue(), "application/json")
        elif place == "review":
            text, revision = self.server.review.read()
            self._reply(HTTPStatus.OK, text or b"null\n", "application/geo+json", revision=revision)
        else:
            self._reply(HTTPStatus.OK, self.server.page(), "text/html; charset=utf-8")

    def _put_review(self, origin: str) -> None:
        if self.headers.get_all("Origin") != [origin]:
            raise RefusalError(HTTPStatus.FORBIDDEN, "only this server's own page may write")
        known = self.headers.get("If-Match")
        if known is None:
            raise RefusalError(HTTPStatus.PRECONDITION_REQUIRED, "If-Match expected, with the review's revision")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,18}", length):
            raise RefusalError(HTTPStatus.LENGTH_REQUIRED, "Content-Length expected")
        if int(length) > REVIEW_BYTES:
            raise RefusalError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {REVIEW_BYTES:,} bytes expected")
        text = self.rfile.read(int(length))
        if len(text) < int(length):
            raise RefusalError(HTTPStatus.BAD_REQUEST, "the text ended early")
        self._reply(HTTPStatus.OK, "saved\n", revision=self.server.review.replace(known.strip('"'), text))

    def _reply(
        self,
        status: HTTPStatus,
        content: str | bytes,
        kind: str = "text/plain; charset=utf-8",
        storing: str = NOT_STORED,
        revision: str | None = None,
    ) -> None:
        body = content if isinstance(content, bytes) else content.encode(errors="backslashreplace")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", storing)
        if revision is not None:
            self.send_header("ETag", f'"{revision}"')
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, PUT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def end_headers(self) -> None:
        """With those that belong to every answer, also to what `BaseHTTPRequestHandler` says by itself."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

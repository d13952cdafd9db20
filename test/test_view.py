"""midog view: what is served and refused, and that a review is never overwritten unseen."""

import argparse
import errno
import http.client
import io
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from midog import view
from midog.about import write_about
from midog.detections import Detections
from midog.errors import UserError
from midog.files import sha256_of
from midog.images.folder import identity_of
from midog.images.slide import ArraySlide

SIZE = 1300, 900
UM_PER_PX = 0.25, 0.26
NONE = '"none"'


@pytest.fixture
def result(tmp_path, monkeypatch):
    """A result of two candidates, its about.json and, one folder up, its image; `serving` alone serves it."""
    monkeypatch.setattr(view, "serve", lambda *_: pytest.fail("it is served"))
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8).repeat(100, 0).repeat(100, 1)
    Image.fromarray(pixels).save(tmp_path / "slide.png")
    path = tmp_path / "out/mitotic-figures.json"
    path.parent.mkdir()
    points = np.tile([[100.0, 200.0], [300.0, 400.0]], 2)
    content = Detections.of(points, [0.9, 0.2], UM_PER_PX).to_json()
    path.write_text(json.dumps(content | {"points": content["points"][::-1]}))
    resolution = {"um_per_px": UM_PER_PX, "source": "given", "where": "--mpp"}
    image = {"name": "slide.png"} | identity_of(tmp_path / "slide.png")
    said = {"image": image, "um_per_px_given": None, "system": "a", "version": "1", "resolution": resolution}
    write_about(path.parent, said)
    return path


def arguments(result, image=None, **more):
    usual = {"mpp": None, "any_image": False, "port": 0, "no_browser": True}
    return argparse.Namespace(result=result, image=image, **usual | more)


@contextmanager
def serving(*given, **more):
    """A server as `run` makes it, in a thread."""
    started = queue.Queue()

    def serve(server, with_browser):
        started.put(server)
        server.serve_forever(poll_interval=0.01)
        server.server_close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(view, "serve", serve)
        thread = threading.Thread(target=view.run, args=(arguments(*given, **more),))
        thread.start()
        server = started.get(timeout=10)
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server, method="GET", place="", body=None, path=None, **headers):
    """Status, headers and content of an answer; header names have _ for -, and None leaves one out."""
    port = server.server_address[1]
    sent = {"Host": f"127.0.0.1:{port}"} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path or f"/{server.token}/{place}", skip_host=True, skip_accept_encoding=True)
    for name, value in sent.items():
        for each in value if isinstance(value, list) else [value] if value is not None else []:
            connection.putheader(name, each)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def save(server, body, known=NONE):
    """Status, new revision and content of the answer to a page that saves a review."""
    origin = f"http://127.0.0.1:{server.server_address[1]}"
    status, headers, content = ask(server, "PUT", "review", body, Origin=origin, If_Match=known)
    return status, headers["ETag"], content.decode()


def review(path, note="", **changes):
    """The text of a reader's review, which refuses the first candidate."""
    image = {"name": "slide.png"} | identity_of(path.parent.parent / "slide.png")
    head = {"format": 1, "program": "1", "image": image, "result": sha256_of(path), "counted_from_px": [0, 0]}
    properties = {
        "objectType": "detection",
        "name": "1",
        "classification": {"name": "non-mitotic figure", "color": [0, 0, 0]},
        "metadata": {"origin": "system", "note": note},
    }
    feature = {
        "type": "Feature",
        "geometry": {"type": "Point", "coordinates": [100.5, 200.5]},
        "properties": properties,
    }
    collection = {"type": "FeatureCollection", "midog_review": head | changes, "features": [feature]}
    return json.dumps(collection).encode()


def test_page_tiles_and_review_are_served_to_one_browser_alone(result, monkeypatch):
    shown = []
    monkeypatch.setattr(view, "view_page", lambda *known: shown.append(known) or "<p>µm")
    with serving(result.parent) as server:
        assert server.server_address[0] == "127.0.0.1"
        status, headers, page = ask(server)
        assert (status, page.decode()) == (200, "<p>µm")
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        slide, found, title, system, notices, reliability, identity, result_sha256, start = shown[0]
        assert reliability == ()
        assert (slide.size, slide.um_per_px, title, system) == (SIZE, UM_PER_PX, "slide.png", "a, weights 1")
        assert notices == []
        assert found.accepted.tolist() == [True, False]
        assert np.allclose(found.centres, [[100, 200], [300, 400]])
        assert identity == {"name": "slide.png"} | identity_of(result.parent.parent / "slide.png")
        assert result_sha256 == sha256_of(result)
        assert start == {"url": "review", "revision": "none", "start": None}

        status, headers, content = ask(server, place="tile/0/2/1", Host=f"localhost:{server.server_address[1]}")
        assert (status, headers["Content-Type"]) == (200, "image/jpeg")
        assert headers["Cache-Control"].startswith("private, max-age=")
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
        expected = slide.read_padded(1024, 512, 512, 512)
        assert pixels.shape == expected.shape
        assert abs(pixels - expected)[20:80, :50].max() < 12  # within a square of one colour
        assert pixels[400:].min() > 245

        status, headers, content = ask(server, place="review")
        assert (status, headers["ETag"], json.loads(content)) == (200, NONE, None)


ELSEWHERE = [
    "/",
    "/favicon.ico",
    "//",
    "/TOKEN",
    "/TOKENx/",
    "/x/",
    "*",
    "xTOKEN/",
    "http://127.0.0.1/TOKEN/",
    "/x/review",
]
ELSEWHERE += [
    f"/TOKEN/{place}" for place in ("../slide.png", "reviewed.geojson", "tile/../review", "review/", "?", "%2e")
]
ELSEWHERE += [
    f"/TOKEN/tile/{place}" for place in ("0/3/0", "0/0/2", "2/2/0", "3/0/0", "999999999/0/0", "0/-1/0", "0/+1/0")
]
ELSEWHERE += [
    f"/TOKEN/tile/{place}" for place in ("0/0", "0/0/0/", "0/0/0?a", "0/0/1_0", "0/0/%30", "0/0/0.jpg", "0//0")
]


def test_everything_else_is_refused_in_a_short_text(result):
    with serving(result) as server:
        port = server.server_address[1]
        here, length = f"127.0.0.1:{port}", f"{view.REVIEW_BYTES + 1}"
        known = {"place": "review", "Origin": f"http://{here}", "If_Match": NONE}
        refused = [(404, "GET", {"path": path.replace("TOKEN", server.token)}) for path in ELSEWHERE]
        refused += [(404, "PUT", known | {"path": "/x/review"})]
        hosts = (
            None,
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1",
            f"127.0.0.1:{port + 1}",
            [here, "evil.example"],
        )
        refused += [(403, method, known | {"Host": host}) for host in hosts for method in ("GET", "PUT")]
        refused += [(405, method, {}) for method in ("PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH")]
        refused += [(405, "POST", known), (501, "TRACE", {})]
        origins = (
            None,
            "null",
            "http://evil.example",
            f"http://localhost:{port}",
            [f"http://{here}", "http://evil.example"],
        )
        refused += [(403, "PUT", known | {"Origin": origin}) for origin in origins]
        refused += [(428, "PUT", known | {"If_Match": None})]
        refused += [(411, "PUT", known | {"Content_Length": wrong}) for wrong in (None, "-1", "1e3", "\xb2")]
        refused += [
            (411, "PUT", known | {"Transfer_Encoding": "chunked"}),
            (413, "PUT", known | {"Content_Length": length}),
        ]
        for status, method, sent in refused:
            got, headers, content = ask(server, method, **sent)
            assert got == status, (method, sent)
            assert headers["Content-Type"].startswith("text/plain")
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert len(content) < 200
            assert server.token.encode() not in content
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(f"GET /\xe9/ HTTP/1.1\r\nHost: {here}\r\n\r\n".encode("latin-1"))
            assert b" 404 " in raw.makefile("rb").readline()
    assert not (result.parent / "reviewed.geojson").exists()


def test_two_tabs_never_overwrite_each_other(result, monkeypatch):
    monkeypatch.setattr(view, "view_page", lambda *known: json.dumps(known[-1]))
    path = result.parent / "reviewed.geojson"
    first, second, third = (review(result, note) for note in ("", "é", "3"))
    with serving(result) as server:
        assert save(server, first, '"other"')[0] == 412
        assert not path.exists()
        status, revision, _ = save(server, first)
        assert (status, path.read_bytes()) == (200, first)
        status, _, line = save(server, second)  # by a tab that knows of none
        assert (status, path.read_bytes()) == (412, first)
        assert "reviewed.geojson: another review was saved meanwhile" in line
        status, newer, _ = save(server, second, revision)
        assert (status, path.read_bytes()) == (200, second)
        assert newer != revision
        assert ask(server, place="review")[1]["ETag"] == newer
        assert ask(server, place="review")[2] == second
        start = json.loads(ask(server)[2])
        assert (start["start"], f'"{start["revision"]}"') == (json.loads(second), newer)

        path.write_bytes(first)  # by another program
        assert save(server, third, newer)[0] == 412
        path.unlink()
        assert save(server, third, newer)[0] == 412
        assert save(server, third)[0] == 200
    with serving(result) as server:
        assert json.loads(ask(server)[2])["start"] == json.loads(third)
    assert sorted(each.name for each in result.parent.iterdir()) == ["about.json", result.name, path.name]


def test_one_of_many_writers_at_once_wins(result):
    with serving(result) as server:
        texts = [review(result, str(number)) for number in range(8)]
        found = [None] * len(texts)

        def write(number):
            found[number] = save(server, texts[number])[0]

        threads = [threading.Thread(target=write, args=(number,)) for number in range(len(texts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == [200, *[412] * 7]
        assert (result.parent / "reviewed.geojson").read_bytes() == texts[found.index(200)]


def test_only_a_review_of_this_result_is_written(result):
    path = result.parent / "reviewed.geojson"
    good = review(result)
    unbound = json.loads(good)
    del unbound["midog_review"]
    other = {"name": "b.png", "bytes": 1, "sha256": "0" * 64}
    outside = json.loads(good)
    outside["features"][0]["geometry"]["coordinates"] = [1e6, 0]
    with serving(result) as server:
        _, revision, _ = save(server, good)
        for text, said in (
            (b"{", "not JSON"),
            (b"[" * 100_000, "not JSON"),
            (b"\xff", "not JSON"),
            (json.dumps(unbound).encode(), "not this page's"),
            (review(result, result="0" * 64), "another result"),
            (review(result, image=other), "another image, b.png"),
            (review(result, format=2), "format 2"),
            (json.dumps(outside).encode(), "outside the image"),
        ):
            status, _, line = save(server, text, revision)
            assert (status, path.read_bytes()) == (422, good), said
            assert said in line
            assert line.startswith(f"{path}: ")
            assert line.count("\n") == 1
    assert not list(result.parent.glob("*.part"))

    path.write_bytes(review(result, result="0" * 64))
    with pytest.raises(UserError, match=r"reviewed.geojson: .*another result"):
        view.run(arguments(result))


def test_a_full_disk_leaves_the_review_that_was_there(result, monkeypatch):
    path = result.parent / "reviewed.geojson"
    good = review(result)

    def full(part, text):
        with part.open("wb") as file:
            file.write(text[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with serving(result) as server:
        _, revision, _ = save(server, good)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full)
            status, _, line = save(server, review(result, "more"), revision)
        assert (status, path.read_bytes()) == (507, good)
        assert line == f"{path}: cannot be written (No space left on device); free the disk or use another folder\n"
        assert not list(result.parent.glob("*.part"))
        assert save(server, review(result, "more"), revision)[0] == 200


def test_a_browser_that_hangs_up_is_no_error(result, capfd):
    with serving(result) as server:
        port = server.server_address[1]
        head = f"Host: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\nIf-Match: {NONE}\r\n"
        text = review(result)
        begun = f"PUT /{server.token}/review HTTP/1.1\r\n{head}Content-Length: {len(text) + 1}\r\n\r\n".encode() + text
        tile = f"GET /{server.token}/tile/0/0/0 HTTP/1.1\r\n{head}\r\n".encode()
        for sent in (begun, tile, b"GET", b""):
            with socket.create_connection(("127.0.0.1", port)) as hasty:
                hasty.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset at the end
                hasty.sendall(sent)
        with socket.create_connection(("127.0.0.1", port)) as hasty:
            hasty.sendall(begun)
            hasty.shutdown(socket.SHUT_WR)
            assert b" 400 " in hasty.makefile("rb").readline()
        assert ask(server, place="tile/1/0/0")[0] == 200
    assert not (result.parent / "reviewed.geojson").exists()
    assert "Traceback" not in capfd.readouterr().err


def test_kept_tiles_are_bounded_and_made_once(monkeypatch):
    made = []
    monkeypatch.setattr(view, "TILE_BYTES", 1000)
    monkeypatch.setattr(view, "jpeg", lambda pixels: made.append(pixels) or bytes(300))
    tiles = view.Tiles(ArraySlide(np.zeros((2100, 2600, 3), np.uint8)))  # 30 tiles; 9 of half the size
    for _ in range(2):
        assert tiles.get(0, 5, 4) == bytes(300)
    assert len(made) == 1
    for x in range(6):
        tiles.get(0, x, 0)
    assert len(made) == 7
    tiles.get(0, 5, 0)
    assert len(made) == 7
    tiles.get(0, 5, 4)
    assert len(made) == 8
    tiles.get(2, 0, 0)
    assert made[-1].shape == (512, 512, 3)
    for place in ((1, 3, 0), (1, 0, 3), (0, 6, 0), (tiles.levels, 0, 0)):
        with pytest.raises(view.RefusalError, match="no such tile"):
            tiles.get(*place)


def test_a_slide_without_pyramid_is_shown_where_it_can_be(monkeypatch):
    read = threading.Event()
    pixels = np.full((2100, 2600, 3), 80, np.uint8)
    pixels[:1024, :1024] = 160

    class Slow(ArraySlide):
        def shrunk(self, x, y, width, height, factor):
            if factor > 1:
                assert read.wait(10)
            return super().shrunk(x, y, width, height, factor)

    monkeypatch.setattr(view, "PATIENCE", 0.01)
    tiles = view.Tiles(Slow(pixels))
    with pytest.raises(view.RefusalError, match="ask again"):
        tiles.get(1, 0, 0)
    assert tiles.get(0, 0, 0)
    with pytest.raises(view.RefusalError, match="ask again"):
        tiles.tissue()
    read.set()
    monkeypatch.setattr(view, "PATIENCE", 10)
    for place, value in (((1, 0, 0), 160), ((1, 1, 0), 80), ((2, 0, 0), 160)):
        corner = np.asarray(Image.open(io.BytesIO(tiles.get(*place))))[8:200, 8:200].astype(int)
        assert abs(corner - value).max() <= 2, place

    class Damaged(ArraySlide):
        def shrunk(self, *_):
            raise UserError("a.tif: damaged")

        def overview(self, longest_side):
            return self.shrunk()

    damaged = view.Tiles(Damaged(pixels))
    for asked in (lambda: damaged.get(1, 0, 0), damaged.tissue):
        with pytest.raises(UserError, match=r"a\.tif: damaged"):
            asked()


def test_the_image_of_a_result_is_found_or_asked_for(result, tmp_path, caplog):
    image = tmp_path / "slide.png"
    assert view.image_of(result) == image
    beside = image.rename(result.parent / "slide.png")
    assert view.image_of(result) == beside
    moved = beside.rename(tmp_path / "elsewhere.png")
    with pytest.raises(UserError, match=rf"not at {beside} or {image}; give IMAGE"):
        view.run(arguments(result))
    about = json.loads((result.parent / "about.json").read_text())
    write_about(result.parent, about | {"image_path": str(moved)})
    assert view.image_of(result) == moved
    named = result.parent.rename(tmp_path / "slide.png") / result.name  # as predict names the folder of a result
    write_about(named.parent, about | {"image_path": f"{tmp_path}/gone"})
    with pytest.raises(UserError, match=f"not at {tmp_path}/gone or .*; give IMAGE"):
        view.run(arguments(named))
    write_about(named.parent, about)
    named.parent.rename(result.parent)
    Image.new("RGB", SIZE).save(image)
    with pytest.raises(UserError, match=r"slide.png: not the image of .*--any-image"):
        view.run(arguments(result, image))
    (result.parent / "about.json").unlink()
    with pytest.raises(UserError, match="give IMAGE"):
        view.run(arguments(result))
    with serving(result, moved, mpp=0.5) as server:
        status, _, page = ask(server)
        assert status == 200
        assert "Not bound to this image" in page.decode()


def test_what_cannot_be_shown_is_one_line(result, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}: .*give --port another"):
            view.run(arguments(result, port=port))
    for text, said in (
        ("{", "not JSON"),
        ("[]", "not a result of Track 1"),
        ('{"type": "Multiple points"}', "not a result"),
    ):
        result.write_text(text)
        with pytest.raises(UserError, match=rf"mitotic-figures.json: {said}"):
            view.run(arguments(result.parent))
    with pytest.raises(UserError, match="cannot be read"):
        view.run(arguments(tmp_path / "none.json"))


def heard():
    """Signals, whatever started the tests: what a script runs in the background ignores them, as its children do."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_without_a_word_too_many(result, number):
    path = result.parent / "reviewed.geojson"
    command = [sys.executable, "-X", "importtime", "-m", "midog", "view", str(result), "--no-browser"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env=os.environ, preexec_fn=heard) as process:
        try:
            started = process.stdout.readline()
            assert started.startswith("view at http://127.0.0.1:")
            process.send_signal(number)
            said, errors = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 0
    assert said == ("" if number == signal.SIGHUP else "ended, without a review\n")
    lines = errors.splitlines()
    assert all(line.startswith("import time:") for line in lines), errors
    assert not {line.split("|")[-1].strip() for line in lines} & {"torch", "torchvision", "timm"}
    assert not path.exists()

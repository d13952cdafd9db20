"""Invoke mode: one process, case after case over HTTP; test/platform_client.sh asks with the platform's own client."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import tifffile
from compare import differences
from conftest import ROOT
from test_detect import write_random_system

import inference
from midog.errors import UserError
from midog.job import RESULT_NAMES
from midog.run import load_ahead
from midog.serve import _Server
from resources.data import synthetic

SAMPLE = ROOT / "test/input/track2"
EXPECTED = ROOT / "test/expected/track2" / RESULT_NAMES[2]
PAGES = 4  # of the sample's 16


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def serving(port, *arguments, track="2"):
    """The process, its log on pipes; it is gone afterwards."""
    process = subprocess.Popen(
        [
            sys.executable,
            "inference.py",
            "--serve",
            str(port),
            "--device",
            "cpu",
            "--precision",
            "float32",
            *map(str, arguments),
        ],
        cwd=ROOT,
        env=os.environ | {"MIDOG_TRACK": track},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(port, method, path):
    """Status and text of an answer; None while nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except ConnectionRefusedError:
        return None, ""
    finally:
        connection.close()


def refused(port, *arguments, track="2"):
    """The one line with which a process ends that cannot start."""
    with serving(port, *arguments, track=track) as process:
        out, line = process.communicate(timeout=60)
    assert process.returncode == 1, out
    assert line.startswith("error: ")
    assert line.count("\n") == 1, line
    return line


def test_cases_follow_each_other_and_a_bad_one_is_alone(port, tmp_path):
    pages = tifffile.imread(next(SAMPLE.glob("images/*/*")))
    good, bad = tmp_path / "good", tmp_path / "bad"
    for folder in (good, bad):
        synthetic.write_job(folder, pages[:PAGES])
    image = next(bad.glob("images/*/*"))
    image.write_bytes(image.read_bytes()[:-20_000])
    case, out = tmp_path / "input", tmp_path / "output"
    result = out / RESULT_NAMES[2]

    def invoke(folder):
        shutil.rmtree(out, ignore_errors=True)
        case.unlink(missing_ok=True)
        case.symlink_to(folder)
        return ask(port, "POST", "/invoke")

    with serving(port, "--input", case, "--output", out) as process:
        seen = {None}
        while 200 not in seen:
            assert process.poll() is None
            seen.add(ask(port, "GET", "/health")[0])
            if 200 not in seen:
                answer = ask(port, "POST", "/invoke")[0]
                # Between the two questions it may have become ready: then it runs the case, which is not there yet.
                assert answer in (None, 503) or ask(port, "GET", "/health")[0] == 200
            time.sleep(0.05)
        assert seen == {None, 503, 200}

        assert invoke(good) == (201, "done\n")
        first = result.read_bytes()
        assert differences(json.loads(EXPECTED.read_text())[:PAGES], json.loads(first), 1e-3) == []
        status, line = invoke(bad)
        assert status == 500
        assert line.startswith("error: ")
        assert image.name in line
        assert not result.exists()
        assert ask(port, "GET", "/health") == (200, "ready\n")
        assert invoke(good)[0] == 201
        assert result.read_bytes() == first

        assert ask(port, "GET", "/")[0] == 404
        assert ask(port, "GET", "/invoke")[0] == 405
        assert ask(port, "PUT", "/invoke")[0] == 501
        result.unlink()
        case.unlink()
        case.symlink_to(SAMPLE)
        with socket.create_connection(("127.0.0.1", port)) as impatient:
            impatient.sendall(b"POST /invoke HTTP/1.1\r\n\r\n")  # and hangs up before the answer
        started = time.perf_counter()
        assert ask(port, "GET", "/health")[0] == 200
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=5)
        assert time.perf_counter() - started < 5
        assert process.returncode == 0
        assert not list(out.iterdir())
        assert errors == line


def test_what_cannot_start_says_so_and_ends(port, tmp_path):
    assert "MIDOG_TRACK" in refused(port, track="3")
    with socket.create_server(("", port)):
        assert f"port {port}" in refused(port)
    system = tmp_path / "efficientnet_lite0"
    shutil.copytree(ROOT / "model/efficientnet_lite0", system)
    (system / "fold3.safetensors").write_bytes(b"broken")
    assert "fold3.safetensors" in refused(port, "--model", tmp_path)


def test_a_signal_ends_the_process_while_it_loads(port):
    with serving(port) as process:
        while ask(port, "GET", "/health")[0] != 503:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0


def test_a_bug_is_one_line_and_its_traceback_goes_to_the_log(tmp_path, capfd, caplog, no_command_line):
    caplog.set_level("INFO", "midog")

    def buggy():
        threads.append(threading.current_thread())
        raise ValueError("first line\nlast line")

    threads = []
    with _Server(0, buggy, tmp_path) as server:
        line = f"error: {tmp_path}: ValueError: last line"
        assert [server.invoke() for _ in range(3)] == [(500, line)] * 3
    assert len(set(threads)) == 1
    assert capfd.readouterr().err == f"{line}\n" * 3
    assert "Traceback" in caplog.text
    assert "in buggy" in caplog.text


def test_a_track_without_a_system_is_a_warning_and_none_at_all_an_error(tmp_path, caplog, no_command_line):
    with pytest.raises(UserError, match="there: none"):
        load_ahead((1, 2), None, tmp_path, "cpu")
    write_random_system(tmp_path / "random")
    load_ahead((1, 2), None, tmp_path, "cpu")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("jobs of Track 2 will fail: ")
    assert str(tmp_path) in warning
    with pytest.raises(UserError, match="no single system for Track 2"):
        load_ahead((2,), None, tmp_path, "cpu")


def test_the_fall_back_to_our_own_weights_is_said_once(tmp_path, monkeypatch, caplog, no_command_line):
    (tmp_path / "platform").mkdir()
    (tmp_path / "platform/README.md").write_text("Put your model here.\n")
    write_random_system(tmp_path / "own/random")
    monkeypatch.setattr("midog.system.PLATFORM_MODEL", tmp_path / "platform")
    monkeypatch.setattr("midog.system.OWN_MODEL", tmp_path / "own")
    out = tmp_path / "out"
    arguments = inference.parse_arguments(["--serve", "--input", f"{ROOT}/test/input/track1", "--output", f"{out}"])
    inference.load(arguments, (1,))
    inference.answer(arguments)
    assert [path.name for path in out.iterdir()] == [RESULT_NAMES[1]]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert str(tmp_path / "platform") in warning

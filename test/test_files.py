"""Files that are written whole or not at all."""

import json

import pytest
from PIL import Image

from midog.errors import UserError
from midog.files import append_line, check_writable, read_json, read_yaml, write_file, write_json, write_with


def test_nothing_half_written(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, [1.5])
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, [float("nan")])

    def dies(part):
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_with(path, dies)
    assert json.loads(path.read_text()) == [1.5]
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]


def test_text_bytes_and_pictures(tmp_path):
    assert write_file(tmp_path / "a.txt", "\u00b5m").read_bytes() == "\u00b5m".encode()
    assert write_file(tmp_path / "a.bin", b"\0").read_bytes() == b"\0"
    assert Image.open(write_file(tmp_path / "a.png", Image.new("RGB", (3, 2)))).size == (3, 2)


def test_a_line_is_added_to_what_is_there(tmp_path):
    for text in ("one", "tw\udcf6"):  # as a name of a file may be, which is no text
        append_line(tmp_path / "a.log", text)
    assert (tmp_path / "a.log").read_bytes() == b"one\ntw\\udcf6\n"
    with pytest.raises(UserError, match="cannot be written .*; free the disk or use another folder"):
        append_line(tmp_path, "a folder is no file")


def test_a_message_names_the_option_that_was_given(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match=r"file/out: cannot be written .*; give --out another folder"):
        check_writable(blocked / "out")
    with pytest.raises(UserError, match="give --output another folder"):
        check_writable(blocked / "out", "--output")


def test_what_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "a").write_text("[: {")
    for read, path, said in (
        (read_yaml, tmp_path / "a", "cannot be read as YAML"),
        (read_yaml, tmp_path / "b", "cannot be read as YAML"),
        (lambda path: read_json(path, "copy it"), tmp_path / "a", "not JSON .*; copy it"),
        (lambda path: read_json(path, "copy it"), tmp_path / "b", "No such file.*; copy it"),
    ):
        with pytest.raises(UserError, match=said) as error:
            read(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

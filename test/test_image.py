"""What is uploaded: the lock that the container installs, the archive of models, the checks of an image's archive."""

import io
import json
import re
import tarfile

import pytest
import upload
from conftest import ROOT

from resources import lock, model_archive
from resources.build_backend import sections

LOCK = (ROOT / "requirements.lock").read_text()
PINS = sections((ROOT / "requirements.txt").read_text())


def test_the_lock_holds_every_pin_and_every_file_s_hash():
    known = lock.entries(LOCK)
    assert {pin.lower() for part in PINS.values() for pin in part} <= set(known)
    for name, lines in known.items():
        assert re.fullmatch(r"\S+==\S+( ; .+)? \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+", lines), name
    assert re.sub(r"^#.*\n", "", LOCK, flags=re.MULTILINE) == "".join(known.values())  # no index, no option, no path


def test_the_container_s_part_of_the_lock():
    container, rest = map(lock.entries, LOCK.split(lock.END_OF_CONTAINER))
    assert {pin.lower() for pin in PINS["base"] + PINS["torch"]} <= set(container)
    assert not {name.partition("==")[0] for name in container} & lock.NOT_INFERRED_WITH
    assert {pin.lower() for pin in PINS["checks"] + PINS["train"] if "setuptools" not in pin} <= set(rest)
    assert not container.keys() & rest.keys()


def test_an_archive_of_models_depends_on_nothing_but_their_files(tmp_path):
    archives, files = [], ["model.yaml", "fold0.safetensors", ".DS_Store", "fold1.safetensors.part"]
    for name, mode in (("a", 0o600), ("b", 0o664)):
        folder = tmp_path / name / "system"
        folder.mkdir(parents=True)
        files.reverse()
        for file in files:
            (folder / file).write_text(file)
            (folder / file).chmod(mode)
        archives.append(tmp_path / f"{name}.tar.gz")
        model_archive.pack(folder.parent, archives[-1])
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with tarfile.open(archives[0]) as packed:
        assert packed.getnames() == ["system/fold0.safetensors", "system/model.yaml"]
        assert {member.mode for member in packed} == {0o644}


def saved(path, *configs):
    """An archive as `docker save` writes it, of images without layers."""
    files = {f"{number}.json": config for number, config in enumerate(configs)}
    files["manifest.json"] = [{"Config": name, "Layers": []} for name in files]
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(path)


GOOD = {"architecture": "amd64", "config": {"User": "user", "Entrypoint": ["python", "inference.py"]}}


def with_config(**values):
    return GOOD | {"config": GOOD["config"] | values}


@pytest.mark.parametrize(
    ("configs", "failing"),
    [
        ([GOOD], []),
        ([with_config(Labels={upload.LABEL: "invoke"})], []),
        ([GOOD, GOOD], ["2 image"]),
        ([], ["0 image"]),
        ([GOOD | {"architecture": "arm64"}], ["architecture arm64"]),
        ([with_config(User="")], ["user none"]),
        ([with_config(User="0:1000")], ["user 0:1000"]),
        ([with_config(User="ROOT")], ["user ROOT"]),
        ([with_config(Labels={upload.LABEL: "serve"})], [f"{upload.LABEL} serve"]),
        ([with_config(Entrypoint=None)], ["an entry point"]),
    ],
)
def test_what_the_platform_refuses_at_the_upload(tmp_path, capsys, configs, failing):
    assert upload.main(saved(tmp_path / "image.tar.gz", *configs)) == bool(failing)
    lines = [line.removeprefix("FAILS   ") for line in capsys.readouterr().out.splitlines() if line.startswith("FAILS")]
    assert len(lines) == len(failing)
    assert all(line.startswith(start) for line, start in zip(lines, failing, strict=True))


def test_an_image_that_is_too_large_or_no_archive(tmp_path, capsys):
    assert [passes for _, passes in upload.checks(upload.LARGEST + 1, [GOOD])][0] is False
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / saved(tmp_path / "x.tar.gz", GOOD)).read_bytes()[:-30])
    for path in (tmp_path / "cut.tar.gz", tmp_path / "none"):
        assert upload.main(str(path)) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert str(path) in lines[0]

"""The documented commands of the four papers, from the official download to a result; `-m whole`: whole networks."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from midog.errors import UserError
from resources import rehearse

SYSTEMS = sorted(rehearse.NARROW)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """By system the exit code of its rehearsal and the folder; two at a time, on a processor each."""
    folders = {system: tmp_path_factory.mktemp(system) for system in SYSTEMS}
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setenv("OMP_NUM_THREADS", "1")
        calls = [[system, "--narrow", "--out", str(folder)] for system, folder in folders.items()]
        codes = list(pool.map(rehearse.main, calls))
    return {system: (code, folders[system]) for system, code in zip(SYSTEMS, codes, strict=True)}


@pytest.mark.parametrize("system", SYSTEMS)
def test_documented_commands_end_in_a_result(ended, system):
    code, folder = ended[system]
    assert code == 0
    (result,) = (folder / "output").glob("*/*.json")
    assert json.loads(result.read_text())


@pytest.mark.whole
@pytest.mark.parametrize("system", SYSTEMS)
def test_whole_networks_too(tmp_path, system):
    assert rehearse.main([system, "--out", str(tmp_path / "out")]) == 0


def test_every_paper_has_its_commands_and_only_what_is_cut_is_another():
    for system in SYSTEMS:
        commands = rehearse.documented(system)
        assert all(words[0] == "python" for words in commands)
        assert commands[-1][1] == "inference.py"
        trained = [words for words in commands if any(each.startswith("resources.train.") for each in words)]
        assert trained
        for words in trained:
            changed = rehearse.cut(words, system, narrow=False)
            assert changed[1 : len(words)] == words[1:]
            assert not any(".options" in each for each in changed)


def test_what_does_not_end_well_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        rehearse, "documented", lambda system: [["python", "-m", "resources.data.split", "--data", "no"]]
    )
    assert rehearse.main(["sztu", "--out", str(tmp_path / "out")]) == 1
    assert "resources.data.split --data no: ended with 2, see above" in capsys.readouterr().err
    assert rehearse.main(["sztu", "--out", str(tmp_path)]) == 1
    assert "is not empty; give another --out" in capsys.readouterr().err
    monkeypatch.undo()
    with pytest.raises(UserError, match="has no commands under a heading of rtmdet"):
        rehearse.documented("rtmdet")

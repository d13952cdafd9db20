"""The table of a folder's images, kept from run to run, and the page of it."""

import csv
import re

import pytest
from PIL import Image

from midog.images.resolution import ASSUMED, READ, Resolution
from midog.report import summary
from midog.report.index import THUMBNAIL, totals, write_index, write_thumbnail
from midog.report.summary import COLUMNS, Row, Summary, failed_row, row_of_region, row_of_stack

NAMES = ("a.svs", 'b,"1".svs', "c\nd.svs", "Fälle/µ.svs")


def table(folder):
    with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_earlier_runs_stay_and_the_last_one_counts(tmp_path):
    first = Summary(tmp_path)
    for name in reversed(NAMES):
        first.add(Row(name, "failed", message="no, not yet"))
    second = Summary(tmp_path)
    second.add(Row(NAMES[1], "done", figures="7"))
    assert [row["image"] for row in table(tmp_path)].count(NAMES[1]) == 2  # until it is written anew
    rows = second.write()
    assert [row.image for row in rows] == sorted(NAMES)
    assert {row["image"]: row["status"] for row in table(tmp_path)} == dict.fromkeys(NAMES, "failed") | {
        NAMES[1]: "done"
    }
    assert tuple(table(tmp_path)[0]) == COLUMNS


def test_two_commands_into_one_folder_lose_no_row(tmp_path):
    one, other = Summary(tmp_path), Summary(tmp_path)
    one.add(Row("a", "done"))
    other.add(Row("b", "done"))
    assert [row.image for row in one.write()] == [row.image for row in other.write()] == ["a", "b"]


def test_wherever_a_kill_tears_the_last_line_the_others_stay(tmp_path):
    whole = Summary(tmp_path)
    for name in NAMES:
        whole.add(Row(name, "done"))
    content = (tmp_path / "summary.csv").read_bytes()
    before = len(content) - len(f"{NAMES[3]},done{',' * (len(COLUMNS) - 2)}\n".encode())
    for length in range(before, len(content)):
        (tmp_path / "summary.csv").write_bytes(content[:length])
        mended = Summary(tmp_path)
        assert [row["image"] for row in table(tmp_path)] == sorted(NAMES[:3])
        mended.add(Row("new", "done"))
        assert [row["image"] for row in table(tmp_path)] == [*sorted(NAMES[:3]), "new"]


def test_the_table_of_an_older_version_is_kept(tmp_path):
    for kept in ("summary-before-1.9.csv", "summary-before-1.9-2.csv"):
        (tmp_path / "summary.csv").write_text("image,status,found\na.svs,done,3\n")
        assert Summary(tmp_path).older == tmp_path / kept
        assert (tmp_path / kept).read_text().endswith("a.svs,done,3\n")
        assert table(tmp_path) == []


def test_a_row_is_one_line_more_however_many_there_are(tmp_path, monkeypatch):
    growing = Summary(tmp_path)
    growing.add(Row("0", "done"))
    monkeypatch.setattr(summary, "write_file", None)  # the table is not written anew
    monkeypatch.setattr(summary, "_lines", None)  # nor read
    for number in range(1, 300):
        growing.add(Row(f"{number}", "done"))
    assert len(table(tmp_path)) == 300


def counts(figures, tissue_mm2, share, box_nm):
    whole = {"key": "whole", "figures": figures, "per_mm2_tissue": figures / tissue_mm2 if tissue_mm2 else None}
    hotspot = {"key": "hotspot", "figures": figures and figures - 1, "area_mm2": 2.37, "box_nm": box_nm}
    return {"tissue_mm2": tissue_mm2, "protocols": [hotspot, whole], "share": share}


def test_the_values_of_a_row(tmp_path):
    read = Resolution((0.25, 0.5), READ, "")
    found = counts(30, 4.0, {"atypical": 6, "of": 30}, [1_000, 2_000, 10_000, 20_000])
    errors = [("A", 0.8, 0.9), ("B", 0.6, 0.95)]
    row = row_of_region("a", "done", (7215, 5412), read, found, ("one, weights 1", "two, weights 2"), 1.234, errors)
    assert row == Row(
        image="a",
        status="done",
        size="7215 x 5412",
        um_per_px="0.25 x 0.5",
        um_per_px_source="read",
        tissue_mm2="4.0000",
        figures="30",
        figures_per_mm2="7.500",
        hotspot_count="29",
        hotspot_mm2="2.37",
        hotspot_x_px="24",  # (1000 + 5000) nm / 250 nm - .5 = 23.5
        hotspot_y_px="24",  # (2000 + 10000) nm / 500 nm - .5 = 23.5
        atypical="0.2000",
        atypical_low="0.0951",  # Wilson, 6 of 30
        atypical_high="0.3731",
        atypical_corrected="0.2000",  # (.2 + .925 - 1) / (.7 + .925 - 1)
        atypical_corrected_low="0.0000",  # by A, (.0951 + .9 - 1) / .7 is below 0
        atypical_corrected_high="0.5874",  # by B, (.3731 + .95 - 1) / .55
        atypical_count="6",
        system="one, weights 1; two, weights 2",
        seconds="1.23",
    )
    few = row_of_region("a", "done", (1, 1), read, counts(19, 0.0, {"atypical": 6, "of": 19}, None), (), 0)
    assert (few.atypical, few.atypical_low, few.atypical_high, few.atypical_count) == ("", "", "", "6")
    assert (few.figures_per_mm2, few.hotspot_x_px) == ("", "")
    crops = [{"class": "atypical"}] * 10 + [{"class": "normal"}] * 10
    stack = row_of_stack("s", "done before", Resolution((0.25, 0.25), ASSUMED, ""), crops, ("two",), 2)
    assert (stack.status, stack.figures, stack.atypical) == ("done before, resolution assumed", "20", "0.5000")
    assert (stack.atypical_high, stack.atypical_corrected) == ("0.7007", "")  # how often the system errs is not known
    assert failed_row("a\udce4", "line\nbreak") == Row(r"a\udce4", "failed", message=r"line\nbreak")


@pytest.fixture
def folder(tmp_path):
    """Three rows: a region with picture and report, one whose resolution was assumed, and one that failed."""
    (tmp_path / "sub/<a>&%.svs").mkdir(parents=True)
    (tmp_path / "sub/<a>&%.svs/report.html").touch()
    Image.new("RGB", (2000, 1064), "white").save(tmp_path / "sub/<a>&%.svs/overlay.png")
    rows = [
        Row("sub/<a>&%.svs", "done", um_per_px_source="read", tissue_mm2="4.0000", figures="30"),
        Row("b.svs", "done, resolution assumed", um_per_px_source="assumed", tissue_mm2="1.000", figures="5"),
        Row("c.svs", "failed", message="c.svs: <empty>"),
    ]
    return tmp_path, rows


def test_the_page_shows_each_row_and_nothing_from_elsewhere(folder):
    here, rows = folder
    write_thumbnail(here / "sub/<a>&%.svs/overlay.png")
    assert Image.open(here / "sub/<a>&%.svs" / THUMBNAIL).size == (320, 160)  # without the header of 64 px
    write_index(here, rows, ["report.html"], "3 of 5 so far")
    page = (here / "index.html").read_text()
    assert page.count('<a href="sub/%3Ca%3E%26%25.svs/report.html">sub/&lt;a&gt;&amp;%.svs</a>') == 1
    assert re.findall('<img src="([^"]*)"', page) == ["sub/%3Ca%3E%26%25.svs/thumbnail.jpg"]
    assert page.count('<tr class="failed">') == page.count('<tr class="guessed">') == 1
    assert "c.svs: &lt;empty&gt;" in page
    assert "3 of 5 so far" in page
    assert "://" not in page
    write_index(here, rows, ["report.html"])
    assert "Not finished" not in (here / "index.html").read_text()


def test_the_share_says_what_the_systems_errors_make_of_it(tmp_path):
    share = {"atypical": "0.2000", "atypical_low": "0.0951", "atypical_high": "0.3731", "atypical_count": "6"}
    ends = {"atypical_corrected": "0.1000", "atypical_corrected_low": "0", "atypical_corrected_high": "0.55"}
    write_index(tmp_path, [Row("a", "done", figures="30", **share, **ends), Row("b", "done", **share)], [])
    titles = re.findall('title="(.*?)">20 %', (tmp_path / "index.html").read_text())
    assert titles == [
        "Corrected for the system&#39;s errors: 10 % (0 to 55 %)",
        "Not corrected: the system&#39;s errors are unknown, or too many",
    ]


def test_totals_are_of_all_figures_and_all_tissue(folder):
    assert dict(totals(folder[1])) == {
        "Images": "3",
        "Done": "2",
        "Failed": "1",
        "Resolution assumed": "1",
        "Mitotic figures": "35",
        "Tissue": "5.00 mm²",
        "per mm² of tissue": "7.00",
    }
    assert dict(totals([])) == {"Images": "0", "Done": "0", "Failed": "0", "Resolution assumed": "0"}


def test_the_page_of_a_thousand_images_is_small(folder):
    here, (row, *_) = folder
    write_index(here, [row] * 1000, ["report.html"])
    assert (here / "index.html").stat().st_size < 1_500_000

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from midog import about, check
from midog.detections import FIGURE, REJECTED, Detections
from midog.errors import UserError
from midog.evaluation.arrangement import Arrangement, RunFit, arrangements, chance_of, fits, run_fits
from midog.files import sha256_of
from midog.images.appearance import appearance_of
from midog.images.slide import ArraySlide
from midog.report.control_count import is_figure, read_count
from midog.system import Tissue

WIDTH, HEIGHT, MPP = 480, 360, 0.25
PLACES = np.array([[60, 50], [200, 90], [333, 40], [90, 210], [410, 150], [250, 300], [140, 320], [430, 280.0]])
STAINS = np.array([[0.49, 0.77, 0.41], [0.12, 0.86, 0.50]])


def tissue():
    """Nuclei of 8 um on eosin, and a figure at each of the places, drawn as the darkest."""
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    nuclei = np.zeros((HEIGHT, WIDTH), bool)
    for y in range(30, HEIGHT, 55):
        for x in range(30, WIDTH, 55):
            nuclei |= np.hypot(rows - y, columns - x) <= 16
    eosin = 0.3 + 0.1 * np.sin(columns / 40) + 0 * rows
    density = np.where(nuclei[..., None], 0.6 * STAINS[0], eosin[..., None] * STAINS[1])
    return np.rint(255 * 10**-density).astype(np.uint8)


class Runner:
    """Finds the figures where scale and colours are right, with one false positive, and else what is strewn."""

    def __init__(self, at=MPP):
        pixels = tissue()
        looks = appearance_of(pixels, (MPP, MPP))
        known = Tissue(
            haematoxylin=tuple(looks.haematoxylin),
            eosin=tuple(looks.eosin),
            brightness=looks.brightness,
            images=1,
            area_mm2=1,
            nucleus_um=tuple(np.percentile(looks.nuclei_um, (10, 50, 90))),
        )
        self.at, self.system = at, SimpleNamespace(system="a", version="1", made=SimpleNamespace(tissue=known))
        self.pixels = pixels

    def open(self, path, mpp):
        with Image.open(path) as image:
            return ArraySlide(np.array(image.convert("RGB")), (mpp or MPP,) * 2)

    def predict(self, pixels, um_per_px):
        right = abs(um_per_px - self.at) < 0.01 and np.abs(pixels.astype(int) - self.pixels).max() < 2
        centres = PLACES if right else np.random.default_rng(0).uniform(20, 340, (16, 2))
        centres = np.concatenate([centres, [[20, 340]]])
        return Detections.of(np.tile(centres, 2), np.full(len(centres), 0.9), (um_per_px, um_per_px))


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Runs the command on a region and a count's text; exit code, and check.json."""

    def run(text, pixels=None, at=MPP, mpp=MPP):
        (tmp_path / "out").mkdir(exist_ok=True)
        region, count = tmp_path / "region.png", tmp_path / "count.csv"
        Image.fromarray(tissue() if pixels is None else pixels).save(region)
        count.write_text(text)
        monkeypatch.setattr(check, "load", lambda *_: Runner(at))
        parser = argparse.ArgumentParser()
        check.add_arguments(parser)
        arguments = parser.parse_args([str(region), str(count), "--out", str(tmp_path / "out")])
        arguments.mpp, arguments.model, arguments.device, arguments.precision = mpp, None, "cpu", None
        code = check.run(arguments)
        said = json.loads((tmp_path / "out" / check.NAME).read_text())
        return code, said, {each["name"]: each for each in said["findings"]}

    return run


def table(places, head="x,y", factor=1.0):
    return "\n".join([head, *(f"{x * factor:.4f},{y * factor:.4f}" for x, y in places)])


def test_a_region_that_fits(lab, tmp_path):
    code, said, lines = lab(table(PLACES))
    assert (code, said["hit"], said["missed"], said["false"]) == (0, 8, 0, 1)
    assert {each["verdict"] for each in lines.values()} == {"ok"}
    assert lines["False positives"]["said"].endswith("precision 89%")
    assert lines["Count"]["said"].startswith("9 found, 8 counted: +12%")
    page = (tmp_path / "out/check.html").read_text()
    assert page.count("<circle") == 9
    assert page.count("<img") == 9


@pytest.mark.parametrize(
    ("places", "factor", "said"),
    [
        ((WIDTH - PLACES[:, 0], PLACES[:, 1]), 1, "count mirrored in x"),
        ((PLACES[:, 0], HEIGHT - PLACES[:, 1]), 1, "count mirrored in y"),
        ((PLACES[:, 1], PLACES[:, 0]), 1, "count x and y swapped"),  # some of them outside the image
        ((PLACES[:, 0], PLACES[:, 1]), 2, "count of an image of twice the size, times 1/2"),
        ((PLACES[:, 0], PLACES[:, 1]), MPP, "count in um and not px"),
    ],
)
def test_axes_that_are_mistaken_are_found(lab, places, factor, said):
    code, found, lines = lab(table(np.stack(places, 1), factor=factor))
    assert (code, found["explained_by"], found["hit"]) == (check.WRONG_CODE, said, 8)
    assert lines["Axes"]["verdict"] == "wrong"
    assert lines["Recall"]["verdict"] == "ok"


def test_a_wrong_scale_is_found(lab):
    code, found, lines = lab(table(PLACES), mpp=0.5)
    assert (code, found["explained_by"]) == (check.WRONG_CODE, "at 0.25 um/px")
    assert lines["Scale"]["verdict"] == "wrong"
    assert lines["Scale"]["advice"].startswith("give --mpp 0.25")
    assert found["tissue_mm2"] == pytest.approx(WIDTH * HEIGHT * MPP**2 / 1e6, rel=0.1)


def test_red_and_blue_that_are_swapped_are_found(lab):
    code, found, lines = lab(table(PLACES), tissue()[..., ::-1])
    assert (code, found["explained_by"]) == (check.WRONG_CODE, check.SWAPPED)
    assert "BGR" in lines["Stains"]["advice"]
    dark = lab(table(PLACES), (tissue() * 0.6).astype(np.uint8))[2]
    assert dark["Brightness"]["verdict"] == "wrong"


def test_two_figures_tell_nothing_of_the_axes(lab):
    axes = lab(table(PLACES[:2]))[2]["Axes"]
    assert (axes["verdict"], axes["advice"]) == ("look", "fewer than 3 figures tell nothing; give a region with more")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("column,row\n1,2\n", "no columns x and y"),
        ("x,y\n", "without a row"),
        ("", "no table that can be read"),
        ("x,y\n10,20\nnan,30\n", "line 3: x is nan"),
        ("x,y\n10,many\n", "line 2: y is many"),
        (table(PLACES, factor=MPP / 1000), "looks like mm and not px; name the columns x_mm and y_mm"),
        (table(PLACES[:3], "x_mm,y_mm"), "3 of 3 figures lie outside the image of 480 x 360 px"),
        (table(PLACES * 3), "figures lie outside"),
        ("x,y,label\n10,20,apoptosis\n", r"no mitotic figure in it, only apoptosis \(1\)"),
        ("x,y,image\n10,20,other.png\n", "no row of region.png"),
    ],
)
def test_bad_counts_are_one_line_and_leave_nothing(lab, tmp_path, text, said):
    with pytest.raises(UserError, match=said) as error:
        lab(text)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").iterdir())


def test_counts_in_many_hands(tmp_path):
    slide = ArraySlide(tissue(), (MPP, MPP))
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [60.5, 50.5]}, "properties": {}}
    other = point | {"properties": {"classification": {"name": REJECTED}}}
    texts = {
        "a.csv": "x,y\n60.5,50.5\n",
        "b.txt": "Image\tClass\tCentroid X µm\tCentroid Y µm\nr.tif\tMitosis\t15.125\t12.625\nr.tif\tOther\t1\t1\n",
        "c.csv": "x_mm;y_mm\n0,015125;0,012625\n",
        "d.csv": "X Y\n60.5 50.5\n",
        "e.csv": "x_um,y_um,x_px,y_px\n1,1,60.5,50.5\n",
        "f.geojson": json.dumps({"type": "FeatureCollection", "features": [point, other]}),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        np.testing.assert_allclose(read_count(tmp_path / name, slide, "r.png"), [[60, 50]], err_msg=name)
    for content, said in (
        ({"type": "FeatureCollection", "features": [other]}, "no mitotic figure"),
        ({"type": "FeatureCollection", "features": [point | {"geometry": {"type": "Polygon"}}]}, "not points: Polygon"),
        ({"type": "Feature", "geometry": {"type": "Point", "coordinates": ["a"]}}, "no x and y"),
    ):
        (tmp_path / "g.geojson").write_text(json.dumps(content))
        with pytest.raises(UserError, match=said):
            read_count(tmp_path / "g.geojson", slide, "r.png")


def test_which_classes_are_figures():
    assert all(map(is_figure, ("", FIGURE, "atypical mitotic figure", "Mitosis")))
    assert not any(map(is_figure, (REJECTED, "Non-mitotic", "not sure", "no mitosis", "apoptosis")))


@given(st.sampled_from(arrangements(MPP)), st.floats(0, 400), st.floats(0, 300))
def test_an_arrangement_keeps_distances_from_edges(arrangement, x, y):
    placed = arrangement.apply(np.array([[x, y]]), (WIDTH, HEIGHT)) + 0.5
    if arrangement.mirrored_x:
        placed[:, 0] = WIDTH - placed[:, 0]
    if arrangement.mirrored_y:
        placed[:, 1] = HEIGHT - placed[:, 1]
    expected = (np.array([y, x] if arrangement.swapped else [x, y]) + 0.5) * arrangement.factor
    np.testing.assert_allclose(placed[0], expected)


def test_what_is_strewn_is_not_explained():
    random = np.random.default_rng(3)
    for _ in range(100):
        places, centres = random.uniform(0, 2000, (2, 12, 2))
        found = Detections.of(np.tile(centres, 2), np.full(12, 0.9), (MPP, MPP))
        given_fit, best, better = fits(places, [found, found], (2000, 2000), 0.25)
        assert not better
        assert best.hits >= given_fit.hits
    assert chance_of(0, 5, 10, 1) == 1
    assert chance_of(1, 1, 10, 1) == pytest.approx(1 - np.exp(-10 * np.pi * 0.0075**2))
    assert arrangements(0.5)[0] == Arrangement()
    assert (len(arrangements(0.25)), len(arrangements(0.5))) == (32, 24)  # in um a count is of half the size at .5


def test_another_run_has_to_find_three_more_and_a_quarter():
    def found(count, false):
        centres = np.concatenate([PLACES[:count], np.full((false, 2), 345.0) + np.arange(false)[:, None]])
        return Detections.of(np.tile(centres, 2), np.full(len(centres), 0.9), (MPP, MPP))

    first, three, two, bought = run_fits(PLACES, [found(3, 0), found(6, 0), found(5, 0), found(8, 40)])
    assert (first.hits, first.f1) == (3, 2 * 3 / 11)
    assert (three.run, three.hits, three.surely) == (1, 6, True)
    assert not two.surely
    assert (bought.hits, bought.surely) == (8, False)  # with forty false positives


@pytest.mark.parametrize(
    ("twice", "f1", "said"), [(145, 0.8, "look"), (144, 0.8, "ok"), (145, 0.79, "ok"), (49, 1, "ok")]
)
def test_nuclei_tell_a_scale_that_the_system_does_not_notice(monkeypatch, twice, f1, said):
    nuclei = {0.25: SimpleNamespace(nuclei_um=[6] * min(50, twice // 2)), 0.5: SimpleNamespace(nuclei_um=[6] * twice)}
    monkeypatch.setattr(check, "appearance_in", lambda _, um_per_px: nuclei[um_per_px[0]])
    slide = ArraySlide(tissue(), (0.25, 0.25))
    trials = [
        check.Trial("", Detections.of(np.zeros((0, 4)), [], (um_per_px, um_per_px))) for um_per_px in (0.25, 0.5, 0.25)
    ]
    runs = [RunFit(0, 8, 0.8), RunFit(1, 8, f1), RunFit(2, 8, 0.9)]  # the last, of other colours, says nothing
    found = check.Finding("Scale", "ok", "0.25 um/px")
    line = check.scale_by_nuclei(found, slide, slide.pixels, nuclei[0.25], trials, runs)
    assert line.verdict == said
    assert (line == found) == (said == "ok")


@pytest.mark.parametrize("verdicts", [29, 40])
def test_clicks_give_a_threshold(tmp_path, verdicts):
    region, folder = tmp_path / "region.png", tmp_path / "result"
    folder.mkdir()
    Image.fromarray(tissue()).save(region)
    random = np.random.default_rng(0)
    centres, scores = random.uniform(0, 340, (60, 2)), np.sort(random.random(60))[::-1]
    found = Detections.of(np.tile(centres, 2), scores, (MPP, MPP))
    result = folder / "mitotic-figures.json"
    result.write_text(json.dumps(found.to_json()))
    resolution = {"um_per_px": [MPP, MPP], "source": "given", "where": ""}
    image = {"name": region.name} | about.identity([region])
    known = {"image": image, "um_per_px_given": MPP, "system": "a", "version": "1", "resolution": resolution}
    about.write_about(folder, known)
    marks = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [x + 0.5, y + 0.5]},
            "properties": {
                "name": str(number),
                "classification": {"name": FIGURE if scores[number - 1] > 0.7 else REJECTED},
                "metadata": {"reviewed": "yes"} if number <= verdicts else {},
            },
        }
        for number, (x, y) in enumerate(centres.tolist(), 1)
    ]
    clicks = tmp_path / "reviewed.geojson"
    head = {"format": 1, "program": "1.8", "result": sha256_of(result)}
    clicks.write_text(json.dumps({"type": "FeatureCollection", "midog_review": head, "features": marks}))
    arguments = argparse.Namespace(region=region, count=result, clicks=clicks, out=None, mpp=None, model=None)
    if verdicts < 30:
        with pytest.raises(UserError, match='29 verdicts on candidates; 30 to 50.*"For a local threshold"'):
            check.run(arguments)
        return
    assert check.run(arguments) == 0
    written = json.loads((folder / "local_threshold.json").read_text())
    assert (written["verdicts"], written["figures"], written["system"]) == (40, int((scores > 0.7).sum()), "a")
    assert 0.5 < written["threshold"] < 0.9
    assert written["interval_95"][0] < written["threshold"] < written["interval_95"][1]
    assert json.loads((folder / about.NAME).read_text()) == known | {"local_threshold_found": written}

import csv
import json
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from midog.__main__ import main
from midog.detections import MM_PER_PX, Detections
from midog.evaluation import held_out, inputs, labelled, metrics
from midog.evaluation import page as evaluation_page
from midog.evaluation.cases import (
    MAX_PROBLEMS,
    find_results,
    given_spacings,
    read_cases,
    read_ground_truth,
    training_cases,
)
from midog.evaluation.evaluate import count_notes
from midog.evaluation.labelled import extents, read_labelled
from midog.evaluation.operating_point import calibrated_by_other_folds, carried_over
from midog.evaluation.tables import image_names
from midog.run import Track2
from midog.system import DataSource, Detector, Made, Merge, System, read_system
from resources.data import ground_truth

ROOT = Path(__file__).resolve().parents[1]
TRUTH = {
    "001.tiff": {"annotations": [[0.1, 0.1, 0], [0.2, 0.1, 0]], "tumor domain": 0, "roi type": "hotspot"},
    "002.tiff": {"annotations": [[0.1, 0.2, 0]], "tumor domain": 2, "roi type": "hotspot"},
    "003.tiff": {"annotations": [], "tumor domain": 2, "roi type": "random"},
}
STACKS = [
    {"image": "s1.tiff", "labels": ["normal", "atypical", "normal"], "tumordomains": [1, 1, 4]},
    {"image": "s2.tiff", "labels": ["atypical", "normal"], "tumordomains": [4, 4]},
]
REGION = "histopathology-region-of-interest-cropout"
STACK_RESULTS = {"s1.tiff": [0.2, 0.9, 0.6], "s2.tiff": [0.4, 0.3]}


def point(x, y, probability, name=None):
    name = name or ("mitotic figure" if probability >= 0.5 else "non-mitotic figure")
    return {"name": name, "point": [x, y, 0], "probability": probability}


def result(*points):
    name, version = "Points of interest", {"major": 1, "minor": 0}
    return {"name": name, "type": "Multiple points", "points": list(points), "version": version}


RESULTS = {
    "002.tiff": result(point(0.104, 0.2, 0.8), point(0.5, 0.5, 0.3)),
    "001.tiff": result(point(0.1, 0.1, 0.9), point(0.3, 0.3, 0.7), point(0.2, 0.1, 0.4)),
    "003.tiff": result(),
}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def pages(confidences):
    return [{"class": "atypical" if value >= 0.5 else "normal", "confidence": value} for value in confidences]


def write_jobs(folder, results, slugs=(REGION, "mitotic-figures")):
    jobs = []
    for number, (image, content) in enumerate(results.items()):
        write(folder / f"pk{number}" / "output" / f"{slugs[1]}.json", content)
        inputs = [{"image": {"name": image}, "interface": {"slug": slugs[0], "relative_path": "images/x"}}]
        outputs = [{"image": None, "interface": {"slug": slugs[1], "relative_path": f"{slugs[1]}.json"}}]
        jobs.append({"pk": f"pk{number}", "status": "Succeeded", "inputs": inputs, "outputs": outputs})
    write(folder / "predictions.json", jobs)
    return folder


def run(tmp_path, truth, predictions, track=1, *more):
    path = write(tmp_path / "truth.json", truth)
    return main(
        ["evaluate", "--track", str(track), "--ground-truth", str(path), "--predictions", str(predictions), *more]
    )


def test_metrics_json_has_the_organisers_layout(tmp_path, capsys):
    assert run(tmp_path, TRUTH, write_jobs(tmp_path / "jobs", RESULTS), 1, "--out", str(tmp_path / "out")) == 0
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [entry["image"] for entry in content["results"]] == ["002.tiff", "001.tiff", "003.tiff"]  # the jobs' order
    assert content["results"][1] == {
        "image": "001.tiff",
        "gt": [],
        "tumor_domain": 0,
        "pred": [[0.1, 0.1, 0, 1, 0.9], [0.3, 0.3, 0, 1, 0.7], [0.2, 0.1, 0, 0, 0.4]],
        "metrics": {"true_positives": 1, "false_negatives": 1, "false_positives": 1},
        "roi_type": "hotspot",
    }
    strata = ["tumor_0", "tumor_2", "roi_type_hotspot", "roi_type_challenging", "roi_type_random"]
    names = ("precision", "recall", "f1", "AP", "froc_auc")
    keys = [
        "precision",
        "recall",
        "f1_score",
        "froc_auc",
        "AP",
        *(f"{part}_{name}" for part in strata for name in names),
    ]
    found = content["aggregates"]
    assert list(found) == keys
    assert found["f1_score"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1), abs=1e-6)
    challenging = [found[f"roi_type_challenging_{name}"] for name in names]  # the organisers' stand-ins
    assert challenging == [0, 0, 1.0, -1, None]
    printed = capsys.readouterr()
    assert printed.err == ""
    table = {line.split("  ")[0]: line for line in printed.out.splitlines()}
    assert table["overall"].split()[1:7] == ["3", "3", "2", "1", "1", "0.6667"]
    names = ["overall", "tumour 0", "tumour 2", "ROI type hotspot", "ROI type random", "tissue without figures"]
    assert [name for name in table if name in names or name.startswith("ROI")] == names
    assert table["tumour 2"].split()[2:7] == ["2", "1", "1", "0", "0"]
    assert table["ROI type random"].count("n/a") == table["tissue without figures"].count("n/a") == 6
    assert "n/a: not defined" in printed.out
    # predicted over labelled figures: 1 of 1, 2 of 2, 0 of 0
    assert "Counts of 3 images: with each labelled figure the predicted count rises by 1.00" in printed.out
    assert "+0.00 on average (bias); in 95 % of images +0.00 to +0.00" in printed.out


def test_the_layouts_of_predictions_give_the_same(tmp_path):
    in_jobs, _ = read_cases(1, TRUTH, write_jobs(tmp_path / "jobs", RESULTS))
    for number, name in enumerate(("{0}.json", "{1}.json", "{1}/mitotic-figures.json", "{0}/mitotic-figures.json")):
        folder = tmp_path / str(number)
        for image, content in RESULTS.items():
            write(folder / name.format(image, image.removesuffix(".tiff")), content)
        cases, remarks = read_cases(1, TRUTH, folder)
        assert remarks == []
        assert [case.image for case in cases] == list(TRUTH)
        assert metrics.detection_aggregates(cases) == pytest.approx(metrics.detection_aggregates(in_jobs), nan_ok=True)


def test_images_without_a_prediction_are_left_out_loudly(tmp_path, capsys):
    jobs = write_jobs(tmp_path / "jobs", {"001.tiff": RESULTS["001.tiff"]})
    assert run(tmp_path, TRUTH, jobs) == 0
    printed = capsys.readouterr()
    assert "2 of 3 images of the ground truth have no prediction (002.tiff, 003.tiff)" in printed.err
    assert "WARNING: 2 of 3 images" in printed.out
    assert "tumour" not in printed.out  # there is only one


def test_all_problems_are_listed_and_nothing_is_written(tmp_path, capsys):
    bad = [
        {"name": "mitotic figure", "point": [1, 1, 0]},
        {"probability": 0.5},
        point(1, 1, 0.5, "mitosis"),
        point(10.1, 1, 0.5),
        point(1, -0.0076, 0.5),
        point(-0.0075, 10, 0.5),  # just fine
        [1, 1, 0],
        point(1, 1, "high", "mitotic figure"),
        {"name": "mitotic figure", "point": [1, 1], "probability": 1},
    ]
    predictions = {"001.tiff": result(*bad), "009.tiff": result(), "002.tiff": {"points": 3}, "003.tiff": []}
    jobs = write_jobs(tmp_path / "jobs", predictions)
    assert run(tmp_path, TRUTH, jobs, 1, "--out", str(tmp_path / "out")) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"error: {jobs}: the organisers' evaluation refuses")
    said = [
        *("009.tiff is not in the ground truth", r"points\[0\]: probability is missing"),
        *(r"points\[1\]: name, point is missing", r"points\[2\]: name 'mitosis'; mitotic figure or non-mitotic figure"),
        *(r"points\[3\]: x 10.1, y 1; -0.0075 to 10 mm", r"points\[4\]: x 1, y -0.0076"),
        *(r"points\[6\]: \[1, 1, 0\] is no dictionary", r"points\[7\]: probability 'high'"),
        *(r"points\[8\]: point \[1, 1\]", 'mitotic-figures.json: no "points"', 'mitotic-figures.json: no "points"'),
    ]
    assert len(lines) == 1 + len(said)
    for line, pattern in zip(lines[1:], said, strict=True):
        assert re.search(pattern, line), (line, pattern)
    assert not (tmp_path / "out").exists()


def test_a_long_list_of_problems_is_cut(tmp_path, capsys):
    jobs = write_jobs(tmp_path / "jobs", {"001.tiff": result(*[point(20, 0, 0.5)] * (MAX_PROBLEMS + 7))})
    assert run(tmp_path, TRUTH, jobs) == 1
    lines = capsys.readouterr().err.splitlines()
    assert (len(lines), lines[-1]) == (MAX_PROBLEMS + 2, "and 7 more")


def with_point(**changes):
    return result(point(0.1, 0.1, 0.9) | changes)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (with_point(probability=1.5), "points[0]: probability is 1.5; a number in [0, 1] expected"),
        (with_point(probability=-1), "points[0]: probability is -1; a number in [0, 1] expected"),
        (with_point(probability=True), "points[0]: probability is True; a number in [0, 1] expected"),
        (with_point(type="Points"), "points[0]: type is 'Points'; \"Point\" expected"),
        (with_point(subtype="atypical"), "points[0]: 'subtype' is not allowed"),
        (with_point(point=[0.1, 0.1, 0, 0]), "points[0]: point is [0.1, 0.1, 0, 0]; three finite numbers expected"),
        (with_point(point=[0.1, 0.1, True]), "points[0]: point is [0.1, 0.1, True]; three finite numbers expected"),
        (with_point() | {"type": "Mulitple points"}, "type is 'Mulitple points'; \"Multiple points\" expected"),
        (with_point() | {"name": None}, "name is None; a text expected"),
        (with_point() | {"model": "ours"}, "'model' is not allowed"),
        (with_point() | {"version": "1.0"}, "version is '1.0'; major and minor expected, both integers from 0 on"),
        ({"points": with_point()["points"]}, "type is missing (and 1 more)"),
        (
            result(*[point(0.1, 0.1, 1.5)] * 3),
            "points[0]: probability is 1.5; a number in [0, 1] expected (and 2 more)",
        ),
    ],
)
def test_what_only_the_schema_refuses_is_a_warning_and_counted(tmp_path, content, said):
    """The platform would have ended the job; the organisers' code, which sees no such file, counts it all the same."""
    path = write(tmp_path / "001.tiff.json", content)
    (case,), remarks = read_cases(1, {"001.tiff": TRUTH["001.tiff"]}, tmp_path)
    assert remarks == [f"{path}: the platform's schema refuses it before the evaluation: {said}"]
    assert case.counts == (1, 1, len(content["points"]) - 1)
    assert case.scores.tolist() == [each["probability"] for each in content["points"]]


def test_the_schemas_warnings_stand_beside_the_figures(tmp_path, capsys):
    images = [f"{number}.tiff" for number in range(MAX_PROBLEMS + 3)]
    truth = dict.fromkeys(images, TRUTH["001.tiff"])
    results = {image: result(point(0.1, 0.1, 1.5), point(0.3, 0.3, -0.5)) for image in images}
    jobs = write_jobs(tmp_path / "jobs", results)
    assert run(tmp_path, truth, jobs) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[0].endswith("points[0]: probability is 1.5; a number in [0, 1] expected (and 1 more)")
    assert lines[-1] == "warning: and 3 more"
    # From -.5 on one false positive an image, above none: recall is 1/2 everywhere.
    assert metrics.froc_area(read_cases(1, truth, jobs)[0]) == pytest.approx(8 / 2, abs=1e-5)


HUGE = 10**400


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "mitosis"}, "name 'mitosis'"),
        ({"name": "x" * 10**6}, "name 'xxx"),
        ({"name": ["mitotic figure"]}, r"name \['mitotic figure'\]"),
        ({"probability": None}, "probability None; a number"),
        ({"probability": math.nan}, "probability nan; a number"),
        ({"probability": 1e400}, "probability inf; a number"),
        ({"probability": HUGE}, "probability 1000"),
        ({"probability": "0.5"}, "probability '0.5'"),
        ({"point": [0.1, None, 0]}, r"point \[0.1, None, 0\]; x, y and z in mm"),
        ({"point": [0.1, 0.1, math.inf]}, r"point \[0.1, 0.1, inf\]"),
        ({"point": [HUGE, 0.1, 0]}, r"point \[1000"),
        ({"point": [10**300, 0.1, 0]}, "x 1e.300, y 0.1; -0.0075 to 10 mm"),
        ({"point": "a" * 10**6}, "point 'aaa"),
        ({"point": json.loads("[" * 90 + "]" * 90)}, r"point \[\[\["),
    ],
)
def test_a_point_that_the_organisers_refuse_is_a_short_line(tmp_path, capsys, changes, said):
    write(tmp_path / "p/001.tiff.json", with_point(**changes))
    assert run(tmp_path, {"001.tiff": TRUTH["001.tiff"]}, tmp_path / "p") == 1
    _, line = capsys.readouterr().err.splitlines()
    assert re.search(rf"001.tiff.json: points\[0\]: {said}", line)
    assert len(line) < 600


def test_an_integer_that_python_does_not_read_is_one_line(tmp_path, capsys):
    content = json.dumps(with_point()).replace("0.9", "9" * 5000)
    (tmp_path / "p").mkdir()
    (tmp_path / "p/001.tiff.json").write_text(content)
    assert run(tmp_path, {"001.tiff": TRUTH["001.tiff"]}, tmp_path / "p") == 1
    assert "001.tiff.json: not JSON (Exceeds the limit (4300 digits)" in capsys.readouterr().err.splitlines()[1]


def test_names_never_break_a_line(tmp_path, capsys):
    jobs = write_jobs(tmp_path / "jobs", {"a\nb.tiff": result(), "c" * 10**6: result()})
    assert run(tmp_path, TRUTH, jobs) == 1
    _, broken, long = capsys.readouterr().err.splitlines()
    assert broken.endswith(r"image a\nb.tiff is not in the ground truth")
    assert long.endswith("c is not in the ground truth")
    assert len(long) < 700
    truth = TRUTH["001.tiff"]
    write(tmp_path / "p/1.json", result())
    assert run(tmp_path, {"1": truth, "d\re\n": truth, "f" * 10**6: truth}, tmp_path / "p") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert r"2 of 3 images of the ground truth have no prediction (d\re\n, fff" in line
    assert len(line) < 700


@pytest.mark.parametrize(
    ("slugs", "said"),
    [([REGION, REGION], f"{REGION}, {REGION}"), ([REGION, "mask"], f"{REGION}, mask"), ([], "missing")],
)
def test_a_job_has_one_input(tmp_path, slugs, said):
    folder = write_jobs(tmp_path / "jobs", RESULTS)
    jobs = json.loads((folder / "predictions.json").read_text())
    jobs[0]["inputs"] = [{"image": {"name": "001.tiff"}, "socket": {"slug": slug}} for slug in slugs]
    write(folder / "predictions.json", jobs)
    results = find_results(folder, 1, list(TRUTH))
    assert results.problems == [f"{folder / 'predictions.json'}: job pk0: input {said}; {REGION} expected, once"]
    assert [image for image, _ in results.found] == ["001.tiff", "003.tiff"]


def test_of_an_output_that_comes_twice_the_first_is_taken(tmp_path):
    folder = write_jobs(tmp_path / "jobs", RESULTS)
    jobs = json.loads((folder / "predictions.json").read_text())
    jobs[0]["outputs"].append({"socket": {"slug": "mitotic-figures", "relative_path": "second.json"}})
    write(folder / "predictions.json", jobs)
    assert find_results(folder, 1, list(TRUTH)).found[0] == ("002.tiff", folder / "pk0/output/mitotic-figures.json")


def test_tumour_domains_may_be_floats(tmp_path):
    """One float makes all of them floats in the figures' names, as numpy.unique does for the organisers."""
    names = {}
    for domains in ([0, 2, 2], [0, 1.5, 2]):
        truth = {
            image: each | {"tumor domain": domain} for (image, each), domain in zip(TRUTH.items(), domains, strict=True)
        }
        truths = read_ground_truth(write(tmp_path / "t.json", truth), 1)
        cases, _ = read_cases(1, truths, write_jobs(tmp_path / "jobs", RESULTS))
        assert {case.image: case.domain for case in cases} == dict(zip(TRUTH, domains, strict=True))
        names[str(domains)] = list(metrics.detection_strata(cases))[: len(set(domains))]
    assert names == {"[0, 2, 2]": ["tumor_0", "tumor_2"], "[0, 1.5, 2]": ["tumor_0.0", "tumor_1.5", "tumor_2.0"]}
    stacks = [STACKS[0] | {"tumordomains": [1, 1, 4.5]}, STACKS[1]]
    for image, confidences in STACK_RESULTS.items():
        write(tmp_path / "p" / f"{image}.json", pages(confidences))
    cases, _ = read_cases(2, read_ground_truth(write(tmp_path / "s.json", stacks), 2), tmp_path / "p")
    assert list(metrics.stack_strata(cases)) == ["domain_1.0", "domain_4.0", "domain_4.5"]


def test_track_2(tmp_path, capsys):
    folder = tmp_path / "p"
    for image, confidences in STACK_RESULTS.items():
        write(folder / image / "multiple-mitotic-figure-classification.json", pages(confidences))
    assert run(tmp_path, STACKS, folder, 2, "--out", str(tmp_path / "out")) == 0
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    names = ["sensitivity", "specificity", "balanced_accuracy", "roc_auc", "accuracy"]
    assert list(content) == ["results", "aggregates", "operating_point"]
    assert content["results"] == {}
    assert list(content["aggregates"]) == [*(f"overall_{name}" for name in names), "domain_1", "domain_4"]
    # atypical .9 .4, normal .2 .6 .3: sensitivity 1/2, specificity 2/3; 5 of 6 pairs in order
    found = [content["aggregates"][f"overall_{name}"] for name in names]
    assert found == pytest.approx([1 / 2, 2 / 3, 7 / 12, 5 / 6, 3 / 5])
    assert list(content["aggregates"]["domain_4"]) == [*names[:3], "accuracy", "roc_auc"]
    # from .35 on: sensitivity 1, specificity 2/3; of domain 4, atypical .4, normal .6 .3, the submitted classes lose .5
    best = {name: [each["best_balanced_accuracy"], each["lost"]] for name, each in content["operating_point"].items()}
    assert best == {"overall": pytest.approx([5 / 6, 1 / 4]), "domain_1": [1, 0], "domain_4": [0.75, 0.5]}
    rows = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert rows["overall"][6] == "0.5833"
    assert rows["overall"][-2:] == ["0.8333", "0.2500"]
    assert rows["tumour domain 4"][-2:] == ["0.7500", "0.5000"]


def test_track_2s_problems(tmp_path, capsys):
    wrong = pages([0.2, 0.9]) + [{"class": "odd", "confidence": 0.1}, {"class": "normal"}, 3]
    write(tmp_path / "p" / "s1.json", wrong)
    write(tmp_path / "p" / "s2.json", [{"class": "normal", "confidence": 0}, {"class": "normal", "confidence": 0.0}])
    write(tmp_path / "p" / "s3.json", [])
    assert run(tmp_path, STACKS, tmp_path / "p", 2) == 1
    lines = capsys.readouterr().err.splitlines()[1:]
    said = [
        *("s3 is not in the ground truth", "5 entries, the ground truth has 3 pages", "class 'odd'"),
        *("confidence is missing", "3 is no dictionary", "confidence 0 is no float"),
    ]
    assert len(lines) == len(said)
    assert all(text in line for text, line in zip(said, lines, strict=True))


@pytest.mark.parametrize(
    ("confidence", "said"),
    [
        (math.nan, "confidence nan; a finite number expected"),  # null when the organisers see it
        (1e400, "confidence inf; a finite number expected"),
        (None, "confidence None is no float"),
        (True, "confidence True is no float"),
        (HUGE, "confidence 1000"),
    ],
)
def test_a_confidence_that_the_organisers_refuse_is_a_short_line(tmp_path, capsys, confidence, said):
    write(
        tmp_path / "p/s2.json", [{"class": "normal", "confidence": 0.2}, {"class": "normal", "confidence": confidence}]
    )
    assert run(tmp_path, STACKS[1:], tmp_path / "p", 2) == 1
    _, line = capsys.readouterr().err.splitlines()
    assert f"s2.json: [1]: {said}" in line
    assert len(line) < 600


def test_track_2s_results_have_no_schema(tmp_path):
    """Its kind is "Anything": a key more, or a confidence beyond 1, is no breach, and the organisers rank by it."""
    content = [entry | {"page": number} for number, entry in enumerate(pages([1.5, 0.2]))]
    write(tmp_path / "s2.json", content)
    (case,), remarks = read_cases(2, {"s2.tiff": STACKS[1]}, tmp_path)
    assert (remarks, case.scores.tolist()) == ([], [1.5, 0.2])


def with_truth(**changes):
    return {"a": {"annotations": [], "tumor domain": 0, "roi type": "random"} | changes}


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        ([], "no image in it"),
        ({"a": {"annotations": [[1, 1]], "tumor domain": 0, "roi type": "random"}}, "a: annotation"),
        ({"a": {"annotations": [[97, 354, 0]], "tumor domain": 0, "roi type": "random"}}, "looks like px; mm expected"),
        (with_truth(annotations=[[0.1, 0.1, 0], [1, 354.5, 0]]), "a: annotation [1, 354.5, 0] looks like px"),
        (with_truth(annotations=[[-97, 1, 0]]), "a: annotation [-97, 1, 0] looks like px"),
        (with_truth(annotations=[[84, 341, 109, 366]]), "a: annotation [84, 341, 109, 366]; x, y and z in mm"),
        (with_truth(annotations={}), "a: annotations is {}; a list expected"),
        (with_truth(annotations="none"), "a: annotations is 'none'; a list expected"),
        (with_truth(annotations=None), "a: annotations is None; a list expected"),
        (with_truth(annotations=["abc"]), "a: annotation 'abc'; x, y and z in mm"),
        (with_truth(annotations=[[1, 1, math.nan]]), "a: annotation [1, 1, nan]; x, y and z in mm"),
        (with_truth(annotations=[[HUGE, 1, 1]]), "a: annotation [1000"),
        (with_truth(annotations=[["x" * 10**6] * 3]), "a: annotation ['xxx"),
        ({"a": []}, "a: [] is no dictionary"),
        (with_truth() | {"a\nb": 3}, r"a\nb: 3 is no dictionary"),
        (with_truth(**{"tumor domain": True}), "a: tumour domain True; a number or a text expected"),
        (with_truth(**{"tumor domain": math.nan}), "a: tumour domain nan; a number or a text expected"),
        (with_truth(**{"tumor domain": HUGE}), "a: tumour domain 1000"),
        ({"a": {"annotations": [], "tumor domain": 0, "roi type": "quiet"}}, "a: roi type 'quiet'"),
        ({"a": {"annotations": [], "roi type": "random"}}, "a: 'tumor domain' is missing"),
        (STACKS, "not a ground truth of Track 1"),
    ],
)
def test_a_bad_ground_truth_is_one_line(tmp_path, capsys, truth, said):
    assert run(tmp_path, truth, tmp_path) == 1
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert len(message) < 800
    assert "truth.json: not a ground truth of Track 1" in message


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        ({"s1.tiff": STACKS[0]}, "not a list of stacks"),
        ([STACKS[0] | {"image": 3}], "a stack without the name of its image"),
        ([STACKS[0] | {"labels": {"normal": 0}}], "s1.tiff: labels is {'normal': 0}; a list expected"),
        ([STACKS[0] | {"labels": ["normal"]}], "s1.tiff: labels and as many tumordomains expected"),
        ([STACKS[0] | {"labels": ["normal", "odd", 3]}], "s1.tiff: label 'odd'"),
        ([STACKS[0] | {"tumordomains": [1, True, 1]}], "s1.tiff: tumour domain True; a number or a text expected"),
        ([STACKS[0] | {"tumordomains": [1, math.nan, 1]}], "s1.tiff: tumour domain nan; a number or a text expected"),
        ([STACKS[0] | {"tumordomains": [1, "dog", 1]}], "tumour domains are numbers or texts, not both"),
    ],
)
def test_a_bad_ground_truth_of_track_2_is_one_line(tmp_path, capsys, truth, said):
    assert run(tmp_path, truth, tmp_path, 2) == 1
    assert f"truth.json: not a ground truth of Track 2 ({said}" in capsys.readouterr().err


def test_other_wrong_arguments_are_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path, TRUTH, tmp_path / "empty") == 1
    assert "no result of Track 1" in capsys.readouterr().err
    assert run(tmp_path, TRUTH, tmp_path / "empty", 1, "--images", str(tmp_path)) == 1
    assert "give --out too" in capsys.readouterr().err
    write(tmp_path / "p" / "predictions.json", [{"pk": 3}])
    assert run(tmp_path, TRUTH, tmp_path / "p") == 1
    assert "entry 0 is no job" in capsys.readouterr().err
    write_jobs(tmp_path / "other", RESULTS, ("stacked-histopathology-roi-cropouts", "mitotic-figures"))
    assert all(
        "histopathology-region-of-interest-cropout expected" in problem
        for problem in find_results(tmp_path / "other", 1, list(TRUTH)).problems
    )


def test_the_page_shows_the_worst_errors_where_they_are(tmp_path):
    pixels = np.full((900, 1000, 3), 200, np.uint8)
    pixels[396:405, 796:805] = (255, 0, 0)  # at .25 um/px, (.2, .1) mm is pixel (800, 400): missed
    pixels[596:605, 596:605] = (0, 0, 255)  # (.15, .15) mm is pixel (600, 600): false
    tags = {"dpi": (101600, 101600)}  # .25 um/px
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "001.tiff", **tags)
    predicted = {"001.tiff": result(point(0.1, 0.1, 0.9), point(0.15, 0.15, 0.7), point(0.2, 0.103, 0.4))}
    jobs = write_jobs(tmp_path / "jobs", predicted)
    truths = read_ground_truth(write(tmp_path / "t.json", TRUTH), 1)
    cases, _ = read_cases(1, truths, jobs)
    false, missed = evaluation_page.worst_detections(cases)
    assert [(error.place, error.probability) for error in false] == [((0.15, 0.15), 0.7)]
    assert [(error.place, error.probability) for error in missed] == [((0.2, 0.1), 0.4)]
    cut = evaluation_page._cut_from_slide(tmp_path / "images" / "001.tiff", [*false, *missed], None)
    assert cut[false[0]].pixels.shape == (64, 64, 3)
    for error, colour in ((false[0], (0, 0, 255)), (missed[0], (255, 0, 0))):
        rows, columns = np.nonzero((cut[error].pixels == colour).all(axis=2))
        assert (rows.mean(), columns.mean()) == (32, 32)
    assert run(tmp_path, TRUTH, jobs, 1, "--out", str(tmp_path / "o"), "--images", str(tmp_path / "images")) == 0
    page = (tmp_path / "o" / "evaluation.html").read_text()
    assert page.count("data:image/png;base64,") == 6 + 2
    assert "600, 600 px" in page
    assert "p = 0.400" in page
    assert "2 of 3 images of the ground truth have no prediction" in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_a_missed_figure_without_any_candidate_comes_first():
    truths = np.array([[0.1, 0.1, 0], [0.2, 0.1, 0]])
    found = Detections.of([[0.1, 0.1, 0.1, 0.1]], [0.1], MM_PER_PX)
    case = metrics.DetectionCase("a", 0, "hotspot", truths, found)
    _, missed = evaluation_page.worst_detections([case])
    assert [error.probability for error in missed] == [None, 0.1]


def test_our_tables_become_a_ground_truth(tmp_path, capsys):
    for name, image in (("one", "a.jpg"), ("two", "b.jpg")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "images.csv").write_text(f"image,case,um_per_px\n{image},c,0.5\nz{image},d,0.5\n")
        (tmp_path / name / "figures.csv").write_text(
            f"image,x,y,label\n{image},100,40,mitotic figure\n{image},9,9,non-mitotic figure\n"
        )
    (tmp_path / "quiet").mkdir()
    table = "image,um_per_px,tumor,roi_type\nq.jpg,0.25,dog,\nr.jpg,0.25,,challenging\n"
    (tmp_path / "quiet" / "labels.csv").write_text(table)
    out = tmp_path / "truth.json"
    folders = [f"{tmp_path}/one", f"{tmp_path}/two:c", f"{tmp_path}/quiet"]
    assert ground_truth.main(["fields", *folders, "--out", str(out)]) == 0
    found = read_ground_truth(out, 1)
    assert list(found) == ["a.jpg", "za.jpg", "b.jpg", "q.jpg", "r.jpg"]
    assert found["b.jpg"] == {"annotations": [[0.05, 0.02, 0.0]], "tumor domain": "two", "roi type": "hotspot"}
    assert found["q.jpg"] == {"annotations": [], "tumor domain": "dog", "roi type": "random"}
    assert (found["r.jpg"]["tumor domain"], found["r.jpg"]["roi type"]) == ("quiet", "challenging")
    assert ground_truth.main(["fields", *folders, f"{tmp_path}/one", "--out", str(out)]) == 1
    (tmp_path / "quiet" / "labels.csv").write_text(table.replace("challenging", "dull"))
    capsys.readouterr()
    assert ground_truth.main(["fields", *folders, "--out", str(out)]) == 1
    assert "r.jpg: roi_type 'dull' in the table; hotspot, challenging, random" in capsys.readouterr().err


def test_our_crops_become_stacks_with_a_ground_truth(tmp_path, pages):
    (tmp_path / "set" / "crops").mkdir(parents=True)
    rows = ["file,label,case,domain"]
    for number, (label, case) in enumerate([(1, "x"), (0, "y"), (0, "x"), (-1, "x")]):
        Image.fromarray(pages[number]).save(tmp_path / "set" / "crops" / f"{number}.png")
        rows.append(f"crops/{number}.png,{label},{case},dog")
    (tmp_path / "set" / "labels.csv").write_text("\n".join(rows))
    out, stacks = tmp_path / "truth.json", tmp_path / "stacks"
    assert ground_truth.main(["crops", str(tmp_path / "set"), "--out", str(out), "--stacks", str(stacks)]) == 0
    found = read_ground_truth(out, 2)
    assert found["x.tiff"] == {"image": "x.tiff", "labels": ["atypical", "normal"], "tumordomains": [0, 0]}
    with Image.open(stacks / "x.tiff") as stack:
        assert stack.n_frames == 2
        np.testing.assert_array_equal(np.asarray(stack), pages[0])


def test_the_committed_sample_is_a_prediction(tmp_path):
    """What inference.py writes is read as it is."""
    truth = {"sample.tiff": {"annotations": [], "tumor domain": 0, "roi type": "random"}}
    expected = json.loads((ROOT / "test/expected/track1/mitotic-figures.json").read_text())
    write(tmp_path / "p" / "sample.tiff" / "mitotic-figures.json", expected)
    (case,), _ = read_cases(1, truth, tmp_path / "p")
    assert len(case.points) == len(expected["points"])


def test_a_point_comes_back_as_it_was_written():
    """Without its image a pixel is a millimetre: metrics.json has the very numbers of the result."""
    x, y = 0.1 + 0.2, 1 / 3
    case = metrics.DetectionCase("a", 0, "random", np.zeros((0, 3)), Detections.from_json(result(point(x, y, 0.7))))
    assert (case.points.tolist(), case.scores.tolist()) == ([[x, y, 0]], [0.7])


def test_spacings_that_predict_was_given(tmp_path):
    folder = tmp_path / "p"
    for image, given in (("001.tiff", 0.2274), ("002.tiff", None)):
        write(folder / image / "mitotic-figures.json", result())
        about = {"image": {"name": image}, "um_per_px_given": given, "system": "mine", "version": "1"}
        write(folder / image / "about.json", about)
    write(folder / "003.tiff" / "mitotic-figures.json", result())
    assert given_spacings(1, TRUTH, folder) == {"001.tiff": 0.2274, "002.tiff": None}


def test_an_assumed_spacing_is_told_and_a_folder_may_stand_before_a_name(tmp_path):
    image, name = "01/25.tif", "mitotic-figures.json"  # as predict leaves it, and TUPAC16 has two of 25.tif
    truths = {image: TRUTH["001.tiff"], "02/25.tif": TRUTH["002.tiff"], "26.tif": TRUTH["003.tiff"]}
    for found in (image, "02/25.tif", "03/26.tif"):
        write(tmp_path / found / name, result())
    about = {"image": {"name": "25.tif"}, "um_per_px_given": None, "system": "mine", "version": "1"}
    write(tmp_path / image / "about.json", about | {"resolution": {"source": "assumed"}})
    results = find_results(tmp_path, 1, list(truths))
    assert results.found == [
        (image, tmp_path / image / name),
        ("02/25.tif", tmp_path / "02/25.tif" / name),
        ("26.tif", tmp_path / "03/26.tif" / name),
    ]
    _, remarks = read_cases(1, truths, tmp_path)
    assert remarks == [
        "1 of 3 predictions were made with an assumed um per pixel (01/25.tif): if that is wrong, so are their mm"
    ]


@pytest.mark.parametrize("keys", [("socket",), ("interface",), ("socket", "interface")])
def test_predictions_of_jobs_by_either_name_of_a_socket(tmp_path, keys):
    folder = write_jobs(tmp_path / "jobs", RESULTS)
    jobs = json.loads((folder / "predictions.json").read_text())
    for entry in (entry for job in jobs for entry in (*job["inputs"], *job["outputs"])):
        socket = entry.pop("interface")
        entry.update({key: socket if key == keys[0] else {"slug": "of an older file"} for key in keys})
    write(folder / "predictions.json", jobs)
    assert [image for image, _ in find_results(folder, 1, list(TRUTH)).found] == list(RESULTS)


def test_names_tell_the_images_of_a_table_apart():
    assert image_names(["a/1.png", "b/2.png"]) == ["1.png", "2.png"]
    assert image_names(["../x/a/1.png", "../x/b/1.png", "../x/b/2.png"]) == ["a/1.png", "b/1.png", "b/2.png"]
    assert image_names(["a/1.png", "a/1.png"]) == ["1.png", "1.png"]
    assert image_names([]) == []


def test_what_a_system_was_trained_on_is_no_test():
    data = DataSource(set="atypia", cases=("H0*",)), DataSource(set="quiet", without=("t1",))
    options = {"network": "rtmdet", "options": {}, "tile": (64, 64), "overlap": 0.2, "um_per_px": 0.25}
    detector = Detector(**options, score_threshold=0.1, nms_iou=0.3, merge=Merge(distance_um=7.5))
    system = System(system="mine", track=1, version="1", detector=detector, made=Made(data=data))
    assert training_cases(system, [("atypia", "H10"), ("quiet", "t1"), ("other", "H03")]) == ""
    said = training_cases(system, [("atypia", "H04"), ("atypia", "H03"), ("atypia", "H10"), ("quiet", "t2")])
    assert said == "mine, weights 1 was trained on atypia:H03,H04 quiet:t2: no test"


def write_fields(folder, images):
    """Grey fields of 100 x 80 px at .5 um/px, each its own case "c<number>" and scanner, with a figure at (40, 40)."""
    folder.mkdir()
    for name in images:
        Image.new("RGB", (100, 80), "grey").save(folder / name)
    rows = [f"{name},c{number},0.5,s{number}" for number, name in enumerate(images)]
    (folder / "images.csv").write_text("\n".join(["image,case,um_per_px,scanner", *rows]))
    figures = [f"{name},40,40,mitotic figure" for name in images]
    (folder / "figures.csv").write_text("\n".join(["image,x,y,label", *figures]))
    return folder


def write_trained(model, track, data):
    """A model.yaml without members, whose weights learned from `data`."""
    part = {"network": "any", "options": {}}
    detector = {"tile": [64, 64], "overlap": 0.2, "um_per_px": 0.25, "score_threshold": 0.1, "nms_iou": 0.3}
    values = {"system": "mine", "track": track, "version": "1", "made": {"data": [data]}}
    if track == 1:
        values["detector"] = part | detector | {"merge": {"distance_um": 7.5}}
    else:
        values["classifier"] = part | {"field_um": 32.0, "input_px": 64}
    write(model / "mine/model.yaml", values)  # JSON is YAML
    return model


@pytest.mark.parametrize("named", [True, False])  # by --system, or by predict's note
def test_fields_by_their_folders_and_folds_with_what_was_learned_marked(tmp_path, capsys, named):
    data = write_fields(tmp_path / "set", ["a.png", "b.png"])
    model = write_trained(tmp_path / "model", 1, {"set": "set", "cases": ["c0"]})
    about = {"um_per_px_given": 0.5, "system": "mine", "version": "1"}
    for fold, (image, found) in enumerate({"a.png": point(0.02, 0.02, 0.9), "b.png": point(0.04, 0.03, 0.8)}.items()):
        write(tmp_path / f"fold{fold}" / image / "mitotic-figures.json", result(found))
        if not named:
            write(tmp_path / f"fold{fold}" / image / "about.json", about | {"image": {"name": image}})
    command = ["evaluate", "--track", "1", "--data", f"{data}:c0", f"{data}:-c0", "--out", str(tmp_path / "out")]
    command += ["--model", str(model), "--predictions", str(tmp_path / "fold0"), str(tmp_path / "fold1")]
    assert main([*command, *(["--system", "mine"] if named else [])]) == 0
    printed = capsys.readouterr()
    assert "warning: mine, weights 1 was trained on set:c0: no test" in printed.err
    table = {line.split("  ")[0]: line for line in printed.out.splitlines()}
    assert table["overall"].split()[1:6] == ["2", "2", "1", "1", "1"]
    assert "trained on" in table["scanner s0"]
    assert "trained on" not in table["scanner s1"]
    assert table["scanner s1"].split()[-3:] == ["0.00", "500.00", "1"]  # 1 / (.05 mm x .04 mm)
    assert not [name for name in table if name.startswith(("set", "tumour", "ROI"))]  # one of each: not repeated
    page = (tmp_path / "out/evaluation.html").read_text()
    assert "<td>trained on</td>" in page
    assert "was trained on set:c0: no test" in page
    # out of fold: by predict's note other weights made it, which did not learn from the image
    write(tmp_path / "fold0/a.png/about.json", about | {"version": "fold 0", "image": {"name": "a.png"}})
    assert main([*command, "--system", "mine"]) == 0
    assert "trained on" not in capsys.readouterr().out
    write(tmp_path / "fold1" / "a.png" / "mitotic-figures.json", result())
    assert main(command) == 1
    assert "a second result of a.png, after" in capsys.readouterr().err


def write_split(path, folds):
    path.write_text("\n".join(["set,case,fold", *(f"set,{case},{fold}" for case, fold in folds.items())]))
    return ["--split", str(path), "--fold"]


def test_a_fold_of_a_split_is_evaluated(tmp_path, capsys):
    data = write_fields(tmp_path / "set", ["a.png", "b.png"])
    for image in ("a.png", "b.png"):
        write(tmp_path / "p" / f"{image}.json", result(point(0.02, 0.02, 0.9)))
    of_split = write_split(tmp_path / "split.csv", {"c0": "train", "c1": "test", "c9": "validation"})
    every = ["--data", str(data), "--predictions", str(tmp_path / "p")]
    only_b = ["--data", f"{data}:c1", *every[2:]]
    command = ["evaluate", "--track", "1", "--out", str(tmp_path / "out")]
    found = []
    for options in (only_b, [*every, *of_split, "test"]):  # the prediction of a.png is left out
        assert main([*command, *options]) == 0
        found.append((tmp_path / "out/metrics.json").read_text())
    assert found[0] == found[1]
    assert f"fold test of {tmp_path / 'split.csv'}" in (tmp_path / "out/evaluation.html").read_text()
    assert [entry["image"] for entry in json.loads(found[0])["results"]] == ["b.png"]
    assert main([*command, *every, *of_split, "test,train"]) == 0
    out = tmp_path / "truth.json"
    assert ground_truth.main(["fields", str(data), "--out", str(out), *of_split, "test"]) == 0
    assert list(read_ground_truth(out, 1)) == ["b.png"]
    capsys.readouterr()
    wrong = [([*every, *of_split, "3"], "3"), ([*every, *of_split, "validation"], "no case of --data is in fold valid")]
    wrong += [([*every, *of_split[:2]], "give --fold, too"), ([*every, "--fold", "test"], "give --split FILE, too")]
    (tmp_path / "q").mkdir()
    (tmp_path / "q/a.png.json").write_text((tmp_path / "p/a.png.json").read_text())
    other = ["--data", str(data), "--predictions", str(tmp_path / "q"), *of_split, "test"]
    wrong.append((other, f"{tmp_path / 'q'}: predictions of 1 images, none of those chosen"))
    for options, said in wrong:
        assert main([*command, *options]) == 1
        message = capsys.readouterr().err
        assert said in message
        assert message.count("\n") == 1


def test_tissue_in_two_images_counts_in_the_first(tmp_path, capsys):
    """Fields of 100 x 80 px from one frame, the second 60 px to the right: they share 40 x 80 px."""
    data = write_fields(tmp_path / "set", ["a.png", "b.png"])
    rows = ["image,case,um_per_px,frame,frame_x,frame_y", "a.png,c,0.5,f,0,0", "b.png,c,0.5,f,60,0"]
    (data / "images.csv").write_text("\n".join(rows))
    # In the frame: A at 20, B at 80 in both images, C at 99 in both and D at 101 in b only, E at 140 in b.
    places = {"a.png": [20, 80, 99], "b.png": [20, 39, 41, 80]}
    figures = [f"{image},{x},40,mitotic figure" for image, each in places.items() for x in each]
    (data / "figures.csv").write_text("\n".join(["image,x,y,label", *figures]))
    # Of b: B found again; D found, but from across the border; a false one inside, another outside; E missed.
    found = {"a.png": [20, 80, 50], "b.png": [20, 38.5, 5, 97]}
    for image, each in found.items():
        write(tmp_path / "p" / f"{image}.json", result(*(point(x / 2000, 0.02, 0.9) for x in each)))
    command = ["evaluate", "--track", "1", "--data", str(data), "--predictions", str(tmp_path / "p")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("overall")).split()
    # figures A B C D E; true A B D; false 50 of a and 97 of b; missed C E
    assert row[1:6] == ["2", "5", "3", "2", "2"]
    assert "2 of 7 figures are seen in more than one image" in printed
    written = json.loads((tmp_path / "out/metrics.json").read_text())["results"]
    assert written[1]["metrics"] == {"true_positives": 1, "false_negatives": 1, "false_positives": 1}
    known = extents(read_labelled(1, [str(data)]).items)
    assert known["a.png"].mm2 == pytest.approx(100 * 80 * 0.25e-6)
    assert known["b.png"].mm2 == pytest.approx(60 * 80 * 0.25e-6)
    np.testing.assert_allclose(known["b.png"].shared, [[-0.00025, -0.00025, 0.01975, 0.03975]])


def test_a_glass_in_two_sets_is_told_and_a_missing_image_comes_first(tmp_path, capsys, monkeypatch):
    options = []
    for name in ("one", "two"):
        data = write_fields(tmp_path / name, [f"{name}.png"])
        (data / "images.csv").write_text(f"image,slide,um_per_px\n{name}.png,glass,0.5\n")
        write(tmp_path / "p" / f"{name}.png.json", result(point(0.02, 0.02, 0.9)))
        options.append(str(data))
    command = ["evaluate", "--track", "1", "--data", *options]
    assert main([*command, "--predictions", str(tmp_path / "p")]) == 0
    printed = capsys.readouterr().out
    assert "slide glass comes in one (unknown), two (unknown): the same figure may count in each." in printed
    assert [line.split("  ")[0] for line in printed.splitlines() if line.startswith("set")] == ["set one", "set two"]
    (tmp_path / "two/two.png").unlink()
    monkeypatch.setattr(inputs, "load", lambda *given: pytest.fail("a system is loaded"))
    assert main(command) == 1
    assert "two/two.png: cannot be read" in capsys.readouterr().err


def test_area_shared_with_several_images_is_taken_once():
    # 10 x 10 and 10 x 10 that share 5 x 10, and one of 2 x 3 apart
    assert labelled._area_of_union(np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 22, 23]], float)) == 156
    assert labelled._area_of_union(np.zeros((0, 4))) == 0


def test_counts_are_compared_by_image(tmp_path):
    """Labelled 0, 2, 4; predicted 1, 2, 6: a slope of 5/4, errors of 1, 0, 2 with a deviation of 1."""
    cases = []
    for number, (true, predicted) in enumerate([(0, 1), (2, 2), (4, 6)]):
        truths = np.array([(0.1 * x, 0, 0) for x in range(true)], float).reshape(-1, 3)
        accepted = Detections.of(np.full((predicted + 1, 4), 0.5), [0.9] * predicted + [0.1], MM_PER_PX)
        cases.append(metrics.DetectionCase(f"{number}", 0, "hotspot", truths, accepted))
    assert metrics.count_error(cases) == pytest.approx((3, 1.25, 1, 1 - 1.96, 1 + 1.96))
    alone = metrics.count_error(cases[1:2])
    assert (alone.bias, math.isnan(alone.slope), math.isnan(alone.high)) == (0, True, True)
    assert count_notes(cases[1:2])[0] == "Counts of 1 images."
    assert "+0.00 on average (bias) (limits" in count_notes(cases[1:2])[1]


def test_figures_are_told_by_the_readers_confidence(tmp_path, capsys):
    """Of four figures the sure one and a doubtful one are found; where all are as sure, nothing is told."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "images.csv").write_text("image,um_per_px\na.png,0.5\n")
    Image.new("RGB", (400, 400)).save(data / "a.png")
    rows = [(100, 1.0), (200, 0.65), (300, 0.65), (350, 0.8)]
    command = ["evaluate", "--track", "1", "--data", str(data), "--predictions", str(tmp_path / "found")]
    write(tmp_path / "found/a/mitotic-figures.json", result(point(0.05, 0.05, 0.9), point(0.1, 0.1, 0.9)))
    for doubtful in (True, False):
        cells = [f"a.png,{xy},{xy},mitotic figure,{sure if doubtful else 1.0}" for xy, sure in rows]
        (data / "figures.csv").write_text("\n".join(["image,x,y,label,score", *cells]))
        assert main(command) == 0
        told = "confidence in the label: 1: 1 of 1, 0.8: 0 of 1, 0.65: 1 of 2." in capsys.readouterr().out
        assert told == doubtful


def write_crops(folder, labels):
    """A table of two crops in each case: x of a dog, y of a cat."""
    folder.mkdir()
    cells = zip(range(4), labels, "xxyy", ("dog", "dog", "cat", "cat"), strict=True)
    rows = [f"{number}.png,{label},{case},{domain}" for number, label, case, domain in cells]
    (folder / "labels.csv").write_text("\n".join(["file,label,case,domain", *rows]))
    return folder


def test_crops_by_their_folder_with_what_was_learned_marked(tmp_path, capsys):
    data = write_crops(tmp_path / "set", [1, 0, 1, 0])
    model = write_trained(tmp_path / "model", 2, {"set": "set", "cases": ["y"]})
    for case in "xy":
        write(tmp_path / "p" / f"{case}.json", pages([0.9, 0.2]))
    command = ["evaluate", "--track", "2", "--data", str(data), "--predictions", str(tmp_path / "p")]
    assert main([*command, "--model", str(model), "--system", "mine", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "warning: mine, weights 1 was trained on set:y: no test" in printed.err
    table = {line.split("  ")[0]: line for line in printed.out.splitlines()}
    for name in ("overall", "tumour domain 0, cat"):
        assert table[name].endswith("trained on")
    assert "trained on" not in table["tumour domain 1, dog"]
    page = (tmp_path / "out/evaluation.html").read_text()
    rows = {row.split("</td>")[0].removeprefix("<td>"): row for row in re.findall(r"<tr[^>]*>(<td>.*?)</tr>", page)}
    assert {name for name, row in rows.items() if row.endswith("<td>trained on</td>")} == {
        "overall",
        "tumour domain 0, cat",
    }
    assert "was trained on set:y: no test" in page
    assert main(["evaluate", "--track", "1", "--data", str(data), "--predictions", str(tmp_path / "p")]) == 1
    assert "set: crops, which have no field to search" in capsys.readouterr().err
    of_split = write_split(tmp_path / "split.csv", {"x": "0", "y": "1"})
    assert main([*command, *of_split, "0"]) == 0
    printed = capsys.readouterr()
    assert (printed.err, "tumour domain 0, dog" in printed.out) == ("", True)
    (tmp_path / "q").mkdir()
    (tmp_path / "q/y.json").write_text((tmp_path / "p/y.json").read_text())
    assert main([*command, str(tmp_path / "q")]) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path / 'q/y.json'}: a second result of y.tiff, after {tmp_path / 'p/y.json'}" in said


def test_crops_by_their_folder_are_run(tmp_path, capsys, monkeypatch):
    """Without predictions the system sees every crop in the table's order, and each comes back to its own case."""
    data = write_crops(tmp_path / "set", [1, 0, 0, 1])
    for number in range(4):
        Image.new("RGB", (128, 128), (60 * number, 0, 0)).save(data / f"{number}.png")
    system = read_system(write_trained(tmp_path / "model", 2, {"set": "set"}) / "mine/model.yaml")
    runner = object.__new__(Track2)
    runner.system = system
    runner.classify = lambda crops: np.array([crop[0, 0, 0] for crop in crops]) / 200
    monkeypatch.setattr(inputs, "load", lambda *_: runner)
    assert main(["evaluate", "--track", "2", "--data", str(data)]) == 0
    printed = capsys.readouterr()
    table = {line.split("  ")[0]: line for line in printed.out.splitlines()}
    # red is 0 60 120 180: .0 .3 .6 .9, so the dog's atypical crop is missed and the cat's normal one is false
    assert table["overall"].split()[1:6] == ["4", "1", "1", "1", "1"]
    assert table["tumour domain 0, cat"].split()[4:8] == ["2", "1", "1", "0"]
    assert all(table[name].endswith("trained on") for name in table if name.startswith(("overall", "tumour")))
    (data / "2.png").unlink()
    assert main(["evaluate", "--track", "2", "--data", str(data)]) == 1
    assert "2.png: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("label", [0, 1])
def test_crops_of_one_class_have_no_balanced_accuracy(tmp_path, capsys, label):
    data = write_crops(tmp_path / "set", [label] * 4)
    for case in "xy":
        write(tmp_path / "p" / f"{case}.json", pages([0.9, 0.2]))
    command = ["evaluate", "--track", "2", "--data", str(data), "--predictions", str(tmp_path / "p")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    table = {line.split("  ")[0]: line for line in printed.out.splitlines()}
    assert table["overall"].count("n/a") == 5
    assert "n/a: a class has no crops there" in printed.out
    assert "Warning" not in printed.err
    assert "n/a" in (tmp_path / "out/evaluation.html").read_text()


def write_folds(out, columns):
    """fold0/ and fold1/held_out.csv of one case each; columns by their name, halved; one domain if they name none."""
    count = len(columns["label"]) // 2
    for fold in (0, 1):
        (out / f"fold{fold}").mkdir(parents=True)
        rows = ["file,case,domain,fold,label,one_view,raw"]
        for n in range(fold * count, (fold + 1) * count):
            domain, raw = columns.get("domain", ["dog"] * len(columns["label"]))[n], columns["raw"][n]
            rows.append(f"set/{n}.png,c{fold},{domain},{fold},{columns['label'][n]},{raw},{raw}")
        (out / f"fold{fold}/held_out.csv").write_text("\n".join(rows))
    return out


def test_folds_are_judged_at_thresholds_that_the_others_chose(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(held_out, "bootstrap_by_case", partial(metrics.bootstrap_by_case, draws=10))
    out = write_folds(tmp_path / "out", {"label": [0, 0, 1, 1] * 2, "raw": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]})
    assert main(["evaluate", "--track", "2", "--folds", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"metrics {out / 'metrics.json'}" in printed
    content = json.loads((out / "metrics.json").read_text())
    # fold 0's threshold of about .25 calls all of fold 1 atypical, and fold 1's of about .65 nothing of fold 0
    assert [content["folds"][f"fold {n}"]["sensitivity"] for n in (0, 1)] == [0, 1]
    assert [content["folds"][f"fold {n}"]["specificity"] for n in (0, 1)] == [1, 0]
    assert content["overall"]["balanced_accuracy"] == 0.5
    assert content["carried_over"] == {"pooled": None, "domains": None, "worst": None}
    assert "one domain alone" in printed
    for more in (["--out", str(tmp_path)], ["--model", str(tmp_path)], ["--predictions", str(tmp_path)]):
        assert main(["evaluate", "--track", "2", "--folds", str(out), *more]) == 1
        assert "leave --predictions, --model, --system, --split, --fold and --out out" in capsys.readouterr().err
    (out / "fold1/held_out.csv").write_text("file,case\n")
    assert main(["evaluate", "--track", "2", "--folds", str(out)]) == 1
    assert "held_out.csv: column domain, fold, label, one_view, raw is missing" in capsys.readouterr().err


TWO_DOMAINS = {"label": [0, 1, 0, 1] * 4, "domain": ["cat", "cat", "dog", "dog"] * 4}
RAW = [0.1, 0.3, 0.5, 0.8, 0.2, 0.15, 0.6, 0.7] * 2


def test_how_an_operating_point_carries_over_is_told_by_rule(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(held_out, "bootstrap_by_case", partial(metrics.bootstrap_by_case, draws=10))
    out = write_folds(tmp_path / "out", TWO_DOMAINS | {"raw": RAW})
    assert main(["evaluate", "--track", "2", "--folds", str(out)]) == 0
    printed = capsys.readouterr().out
    carried = json.loads((out / "metrics.json").read_text())["carried_over"]
    for rule in ("pooled", "domains", "worst"):
        # dogs' threshold (.65) finds no atypical cat; all dogs are above that of cats (.2)
        figures = carried[rule]["domains"]
        assert [figures[each]["sensitivity"] for each in ("cat", "dog")] == [0, 1]
        assert [figures[each]["specificity"] for each in ("cat", "dog")] == [1, 0]
        # cats .1 .2 | .15 .3: three of four classes told by one threshold; dogs' classes lie apart
        assert [figures[each]["best_balanced_accuracy"] for each in ("cat", "dog")] == pytest.approx([0.75, 1])
        assert (carried[rule]["lost_mean"], carried[rule]["lost_worst"]) == pytest.approx((0.375, 0.5))
    rows = {line.split("  ")[0]: line.split() for line in printed.splitlines()}
    assert rows["worst"][1:] == ["0.5000", "0.3750", "0.5000", "cat"]
    (out / "recipe.yaml").write_text("plan: {training: {classifier: {operating_point: best}}}")
    assert main(["evaluate", "--track", "2", "--folds", str(out)]) == 1
    assert "recipe.yaml: operating_point 'best' is unknown; pooled, domains, worst expected" in capsys.readouterr().err


def test_trainings_and_their_mean_stand_beside_each_other(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(held_out, "bootstrap_by_case", partial(metrics.bootstrap_by_case, draws=10))
    said = ["evaluate", "--track", "2", "--folds"]
    one = write_folds(tmp_path / "one", TWO_DOMAINS | {"raw": RAW})
    two = write_folds(tmp_path / "two", TWO_DOMAINS | {"raw": [0.2, 0.4, 0.3, 0.7] * 4})
    other = held_out.read_held_out(two, [0, 1])
    for fold, rows in other.assign(fold=other.index // 4 % 2).groupby("fold"):  # of the same crops
        rows.to_csv(two / f"fold{fold}/held_out.csv", index=False)
    (two / "recipe.yaml").write_text("plan: {training: {classifier: {operating_point: worst}}}")
    assert main([*said, str(one), str(two), "--out", str(tmp_path / "mean")]) == 0
    printed = capsys.readouterr().out
    assert not (one / "metrics.json").exists()
    content = json.loads((tmp_path / "mean/metrics.json").read_text())
    trainings = content["trainings"]
    assert list(trainings) == [str(one), str(two)]
    assert content["mean"]["operating_point"] == ["pooled", "worst"]
    assert "operating point without the domain, by rule" in printed
    alone = []
    for out, rule in ((one, "pooled"), (two, "worst")):
        table = held_out.read_held_out(out, [0, 1])
        figures = trainings[str(out)]
        assert figures["operating_point"] == [rule]
        worst = carried_over([table], [rule]).balanced_accuracy.min()
        assert figures["carried_over"]["balanced_accuracy_worst"] == worst
        alone.append(dict(zip(table.file, calibrated_by_other_folds(table, rule), strict=True)))
    mean = read_column(tmp_path / "mean/out_of_fold.csv", "probability")
    assert mean == pytest.approx({file: (alone[0][file] + alone[1][file]) / 2 for file in mean})
    assert len(mean) == 16
    capsys.readouterr()
    for more, expected in (
        ([one], "is given twice"),
        ([write_folds(tmp_path / "few", {"label": [0, 1] * 2, "raw": [0.1, 0.9] * 2})], "has other crops than"),
        ([two, "--model", str(tmp_path)], "leave --predictions, --model, --system, --split, --fold and --images out"),
    ):
        assert main([*said, str(one), *map(str, more)]) == 1
        message = capsys.readouterr().err
        assert expected in message
        assert message.count("\n") == 1
    wrong = two / "fold1/held_out.csv"
    wrong.write_text(wrong.read_text().replace("set/15.png,c1,dog,1,1", "set/15.png,c1,dog,1,0"))
    assert main([*said, str(one), str(two)]) == 1
    assert f"{wrong}: label of set/15.png is 0, in {one} 1; give trainings with" in capsys.readouterr().err


def read_column(path, column):
    with path.open() as file:
        return {row["file"]: float(row[column]) for row in csv.DictReader(file)}


@pytest.mark.filterwarnings("error")
def test_folds_of_one_class_are_told_as_not_defined(tmp_path, capsys):
    out = write_folds(tmp_path / "out", {"label": [0] * 4, "raw": [0.1, 0.2, 0.3, 0.4]})
    assert main(["evaluate", "--track", "2", "--folds", str(out)]) == 0
    assert "nan" in capsys.readouterr().out
    assert json.loads((out / "metrics.json").read_text())["overall"]["balanced_accuracy"] is None


def test_one_truth_and_something_to_compare(tmp_path, capsys):
    truth = write(tmp_path / "t.json", TRUTH)
    assert main(["evaluate", "--track", "1", "--ground-truth", str(truth)]) == 1
    assert "give --predictions, too" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluate", "--track", "1", "--ground-truth", str(truth), "--data", str(tmp_path)])
    assert main(["evaluate", "--track", "2", "--folds", str(tmp_path)]) == 1
    assert "no fold*/held_out.csv" in capsys.readouterr().err

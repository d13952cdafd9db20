"""Detection from pixels to points, with a network of random weights; its figures mean nothing, but they must agree."""

import hashlib
import json
import threading

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
import yaml
from conftest import ROOT
from msgspec.structs import replace
from PIL import Image
from safetensors.torch import save_file

import inference
from midog.calibration import Calibration
from midog.detections import Detections
from midog.engine.boxes import merge_near
from midog.engine.classifier import NetworkClassifier, classify
from midog.engine.detector import (
    AveragedNetwork,
    DetectorView,
    FusedDetector,
    NetworkDetector,
    find_candidates,
    load_detector,
    prefetch,
)
from midog.engine.network import to_batch
from midog.engine.torch_engine import Normalised, TorchEngine, TorchNetwork, fold_batch_norms
from midog.engine.two_stages import SystemDetector, cut_candidate, with_score
from midog.engine.views import VIEWS
from midog.errors import UserError
from midog.images.slide import ArraySlide, open_slide
from midog.job import SOCKETS
from midog.models.classifiers import ConvNeXtV2
from midog.models.yolo11 import BINS, YOLO11
from midog.run import Track1, Track2
from midog.system import DomainErrors, Merge, load_system

CPU = torch.device("cpu")
ENGINE = TorchEngine("cpu")
SLUG, SOCKET = next((slug, socket) for slug, socket in SOCKETS.items() if socket.track == 1)
SAMPLE = next((ROOT / "test/input/track1/images").glob("*/*"))
TAGS = {"photometric": "rgb", "resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER", "metadata": None}


def read_sample(width, height):
    """The upper left of the committed region: uint8 (height, width, 3)."""
    with open_slide(SAMPLE) as slide:
        return slide.read(0, 0, width, height)


def random_network(seed):
    """Random but for its small boxes; its batch norms have seen the sample."""
    torch.manual_seed(seed)
    network = YOLO11("n")
    for name, values in network.named_parameters():
        if "23.cv2." in name and name.endswith(".2.weight"):
            values.data.zero_()
        elif "23.cv2." in name and name.endswith(".2.bias"):
            values.data.view(4, BINS)[:, 1] = 10  # a stride from the centre to each side
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
    tiles = np.stack([read_sample(1600, 256)[:, x : x + 256] for x in (0, 400, 800)])
    with torch.no_grad():
        network.train()(torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255)
    return network


def in_float32(module):
    """A module as a network, whatever the processor."""
    return TorchNetwork(module, CPU, "float32")


def write_random_system(folder, seeds=(0,), views=1, fusion="average"):
    """A system of a detector alone, of random networks."""
    folder.mkdir(parents=True)
    members = []
    for seed in seeds:
        path = folder / f"detector{seed}.safetensors"
        save_file(random_network(seed).state_dict(), path)
        members.append({"weights": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    detector = {
        "network": "yolo11",
        "options": {"scale": "n"},
        "tile": [512, 512],
        "overlap": 0.2,
        "um_per_px": 0.25,
        "score_threshold": 0.7,
        "nms_iou": 0.3,
        "merge": {"distance_um": 7.5},
        "views": views,
        "fusion": fusion,
        "members": members,
        "calibration": {"scale": 1.0, "shift": -1.1},
    }
    values = {"system": folder.name, "track": 1, "version": "0", "detector": detector}
    (folder / "model.yaml").write_text(yaml.safe_dump(values))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder of models with one random system for Track 1."""
    folder = tmp_path_factory.mktemp("model")
    write_random_system(folder / "random")
    return folder


@pytest.fixture(scope="module")
def pixels():
    """Four tiles with tissue: uint8 (600, 700, 3)."""
    return read_sample(700, 600)


# --- a detector that must be right --------------------------------------------


def black_dots(tiles):
    """A detector of single black pixels: a box of 10 px around each."""
    found = []
    for tile in tiles:
        y, x = np.nonzero(tile.max(0) == 0)
        boxes = np.stack([x - 5, y - 5, x + 5, y + 5], 1).astype(np.float32)
        found.append((boxes, np.full(len(boxes), 0.9, np.float32)))
    return found


def test_the_detector_s_logit_is_added_by_its_weight():
    probabilities, scores = np.array([0.5, 0.8, 1.0], np.float32), np.array([0.2, 0.5, 0.2], np.float32)
    np.testing.assert_allclose(with_score(probabilities, scores, 0), probabilities, atol=1e-6)
    fused = with_score(probabilities, scores, 0.5)  # odds: 1 x (1 / 4) ** .5, and 4 x 1
    np.testing.assert_allclose(fused[:2], [1 / 3, 0.8], atol=1e-6)
    assert 0.99 < fused[2] < 1


@pytest.mark.parametrize("size", [(20, 17), (40, 30), (127, 129), (300, 200)])
def test_each_dot_is_found_once_where_it_is(size):
    width, height = size
    pixels = np.random.default_rng(0).integers(120, 250, (height, width, 3), np.uint8)
    dots = {(0, 0), (width - 1, 0), (width - 1, height - 1), (width // 2, height // 2), (min(58, width - 1), 0)}
    for x, y in dots:
        pixels[y, x] = 0
    boxes, scores = find_candidates(ArraySlide(pixels), black_dots, (64, 64), 0.2, "cpu", batch=3)
    kept = merge_near(boxes, scores, 3)
    centres = (boxes[kept, :2] + boxes[kept, 2:]) / 2
    assert sorted(map(tuple, centres.tolist())) == sorted(dots)


def test_a_tile_without_tissue_is_not_looked_at():
    def detector(tiles):
        raise AssertionError

    boxes, scores = find_candidates(ArraySlide(np.full((900, 700, 3), 244, np.uint8)), detector, (512, 512), 0.2, "cpu")
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)


def test_what_a_classifier_sees():
    pixels = np.full((100, 100, 3), 200, np.uint8)
    pixels[40:61, 30:51] = 10  # centre 40, 50
    box = np.array([35, 45, 45, 55], np.float32)
    square = cut_candidate(ArraySlide(pixels), box, 21 * 0.25, 21)
    assert square.shape == (21, 21, 3)
    assert np.all(square == 10)
    assert np.all(cut_candidate(ArraySlide(pixels), box, 0, 10) == 10)  # the box itself
    wide = cut_candidate(ArraySlide(pixels), box, 63 * 0.25, 63)
    assert np.all(wide[21:42, 21:42] == 10)
    assert (wide == 10).sum() == 21 * 21 * 3
    pixels[:5, :3] = 90
    corner = cut_candidate(ArraySlide(pixels), np.array([-5, -5, 5, 5], np.float32), 21 * 0.25, 21)
    assert np.array_equal(corner, corner[::-1, ::-1])  # mirrored around the first pixel
    assert (corner == 90).sum() == 9 * 5 * 3


def test_reading_ahead_keeps_order_passes_errors_and_stops():
    assert list(prefetch(range(50), 3)) == list(range(50))

    def broken():
        yield 1
        raise UserError("a.tif: damaged")

    with pytest.raises(UserError, match="damaged"):
        list(prefetch(broken(), 3))
    threads = threading.active_count()
    endless = prefetch(iter(int, 1), 3)
    next(endless)
    endless.close()
    assert threading.active_count() == threads


# --- several networks, several views ------------------------------------------


def test_one_network_and_one_view_are_left_alone(model):
    assert type(load_detector(load_system(model / "random"), ENGINE)) is NetworkDetector


@pytest.mark.parametrize(("views", "fusion"), [(1, "average"), (2, "weighted_box_fusion")])
def test_members_and_views_are_joined(tmp_path, pixels, views, fusion):
    write_random_system(tmp_path / "joined", (0, 1), views, fusion)
    tiles = to_batch([pixels[:256, :320]])
    networks = [
        in_float32(fold_batch_norms(random_network(seed)).to(memory_format=torch.channels_last)) for seed in (0, 1)
    ]
    if fusion == "average":
        expected = NetworkDetector(AveragedNetwork(networks), 0.6, 0.3)
    else:
        detectors = [NetworkDetector(each, 0.6, 0.3, lists=4) for each in networks]
        seen = [DetectorView(detector, view) for view in VIEWS[views] for detector in detectors]
        expected = FusedDetector(seen, 0.3, 0.6)
    (got,) = load_detector(load_system(tmp_path / "joined").with_precision("float32"), ENGINE, 0.6)(tiles)
    (wanted,) = expected(tiles)
    assert len(got[0]) > 3
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


# --- the same pixels, the same figures ----------------------------------------


def test_neither_batch_nor_order_changes_the_result(model, pixels):
    detect = SystemDetector(load_system(model / "random").with_precision("float32"), ENGINE)
    slide = ArraySlide(pixels)
    one = detect(slide, batch=1)
    assert len(one) > 5
    assert 0 < one.accepted.sum() < len(one)
    for other in (detect(slide, batch=16), detect(slide, lambda places: places[::-1], batch=1)):
        assert len(other) == len(one)
        np.testing.assert_allclose(other.boxes, one.boxes, atol=0.02)
        np.testing.assert_allclose(other.probabilities, one.probabilities, atol=1e-3)


def write_image(path, pixels, origin=(0, 0)):
    """Lossless at 0.25 um/px, by suffix."""
    if path.suffix == ".mha":
        image = sitk.GetImageFromArray(pixels, isVector=True)
        image.SetSpacing((0.00025, 0.00025))
        image.SetOrigin(origin)
        sitk.WriteImage(image, str(path))
    elif path.suffix == ".png":
        Image.fromarray(pixels).save(path, dpi=(101_600, 101_600))
    else:
        tifffile.imwrite(path, pixels, compression="zlib", tile=(128, 128), **TAGS)


def test_every_format_gives_the_same_points(model, pixels, tmp_path, caplog):
    runner, found = Track1(load_system(model / "random"), "cpu"), []
    for name in ("a.tif", "a.mha", "a.png"):
        write_image(tmp_path / name, pixels[:400, :500])
        found.append(runner.predict(tmp_path / name))
    found.append(runner.predict(pixels[:400, :500], mpp=0.25))
    found.append(runner.predict(Image.fromarray(pixels[:400, :500]), mpp=0.25))
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []
    assert len(found[0]) > 3
    for other in found[1:]:
        np.testing.assert_allclose(other.points_mm, found[0].points_mm, atol=1e-9)
        np.testing.assert_array_equal(other.probabilities, found[0].probabilities)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"network": "yolo12"}, "'yolo12' is unknown"), ({"options": {"size": "n"}}, "refuses its options")],
)
def test_a_network_that_is_none_is_refused_before_an_image_is_read(model, tmp_path, change, said):
    system = load_system(model / "random")
    runner = Track1(replace(system, detector=replace(system.detector, **change)), "cpu")
    with pytest.raises(UserError, match=said):
        runner.predict(tmp_path / "there_is_no_such_image.tif")


def test_crops_of_another_kind_are_refused(model, pixels):
    runner = Track2(load_system(ROOT / "model/efficientnet_lite0"), "cpu")
    for crops in (np.zeros((2, 128, 128, 3), np.float32), pixels[None, :64, :64]):
        with pytest.raises(ValueError, match=r"crops uint8 \(128, 128, 3\) expected, got"):
            runner.classify(crops)


def test_errors_are_told_of_domains_with_enough_crops_of_both_classes():
    system = load_system(ROOT / "model/efficientnet_lite0")
    crops = {"a": (20, 20), "b": (19, 99), "c": (99, 19)}
    made = replace(system.made, domains=tuple(DomainErrors(name, *each, 0.5, 0.75) for name, each in crops.items()))
    assert Track2(replace(system, made=made), "cpu").subtype_errors == [("a", 0.5, 0.75)]


def test_places_are_those_of_the_image_as_it_was_given(model, pixels, caplog):
    """At another spacing the network sees resampled pixels; boxes and log speak of the image's own."""
    runner = Track1(load_system(model / "random"), "cpu")
    with caplog.at_level("INFO", "midog"):
        found = runner.predict(np.repeat(np.repeat(pixels[:300, :400], 2, 0), 2, 1), mpp=0.125)
    assert isinstance(found, Detections)
    assert found.um_per_px == (0.125, 0.125)
    assert found.centres[:, 0].max() > 400
    assert "size 800 x 600 px, um/px 0.125 x 0.125" in caplog.text
    runner.predict(pixels[:40, :50])
    assert "pixels without a resolution: 0.25 um/px taken" in caplog.text


# --- whole jobs ---------------------------------------------------------------


def write_job(folder, pixels, name="a.tif", origin=(0, 0)):
    """A Track 1 job of an image; its folder."""
    (folder / "images").mkdir(parents=True)
    write_image(folder / "images" / name, pixels, origin)
    interface = {"slug": SLUG, "relative_path": "images"}
    (folder / "inputs.json").write_text(json.dumps([{"image": {"name": name}, "interface": interface}]))
    return folder


def run_job(tmp_path, model, pixels, name="a.tif", origin=(0, 0), options=()):
    """The points of a job through inference.py."""
    folder, out = write_job(tmp_path / "job", pixels, name, origin), tmp_path / "out"
    assert inference.main(["--input", str(folder), "--output", str(out), "--model", str(model), *options]) == 0
    result = json.loads((out / SOCKET.result_name).read_text())
    assert result["type"] == "Multiple points"
    return result["points"]


@pytest.mark.parametrize("level", [255, 244, 0])
def test_no_tissue_is_an_empty_list(model, tmp_path, capfd, level):
    assert run_job(tmp_path, model, np.full((600, 700, 3), level, np.uint8)) == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("size", [(1, 1), (100, 100), (511, 513)])
def test_images_about_as_small_as_a_tile(model, pixels, tmp_path, capfd, size):
    width, height = size
    points = run_job(tmp_path, model, pixels[:height, :width])
    assert capfd.readouterr().err == ""
    assert bool(points) == (size != (1, 1))
    for point in points:
        assert 0 <= point["probability"] <= 1


def test_coordinates_above_10_mm_are_written_with_one_warning(model, pixels, tmp_path, capfd):
    points = run_job(tmp_path, model, pixels[:300, :400], "a.mha", origin=(12, 0))
    assert points
    assert all(12 <= point["point"][0] < 12.2 for point in points)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: ")
    assert f"{len(points)} of {len(points)} points" in lines[0]


def test_a_box_whose_sides_have_changed_places_is_none():
    boxes = np.array([[[10, 10, 30, 30], [30, 10, 10, 30], [10, 30, 30, 30]]], np.float32).transpose(0, 2, 1)
    detector = NetworkDetector(lambda tiles: (boxes, np.full((1, 1, 3), 5, np.float32)), 0.5, 0.3)
    ((found, scores),) = detector(np.zeros((1, 3, 64, 64), np.float32))
    assert found.tolist() == [[10, 10, 30, 30]]
    assert len(scores) == 1


def test_when_memory_runs_out_fewer_tiles_go_through_at_once(pixels, caplog):
    batches = []

    def hungry(tiles):
        batches.append(len(tiles))
        if len(tiles) > 1:
            raise MemoryError
        return black_dots(tiles)

    slide = ArraySlide(pixels)
    boxes, scores = find_candidates(slide, hungry, (256, 256), 0.2, "cpu", batch=4)
    expected, _ = find_candidates(slide, black_dots, (256, 256), 0.2, "cpu", batch=4)
    np.testing.assert_array_equal(boxes, expected)
    assert batches[:3] == [4, 2, 1]
    assert set(batches[3:]) == {1}
    assert [line.split()[-2] for line in caplog.messages] == ["2", "1"]

    def starving(tiles):
        raise MemoryError

    with pytest.raises(UserError, match="memory ran out for one of the tiles; .*--device cpu"):
        find_candidates(slide, starving, (256, 256), 0.2, "cpu")


def test_a_box_that_leaves_its_tile_is_clipped_and_none_that_lies_beyond_it_is_kept():
    rows = [[-9.0, 10, 30, 90], [10, 10, 30, 300_000], [10, 10, np.inf, 20], [np.nan, 0, 9, 9], [-30, 5, 10, 9]]
    boxes, logits = np.array([rows], np.float32).transpose(0, 2, 1), np.full((1, 1, len(rows)), 5, np.float32)
    ((found, _),) = NetworkDetector(lambda tiles: (boxes, logits), 0.5, 0.9)(np.zeros((1, 3, 64, 96), np.float32))
    assert found.tolist() == [[0, 10, 30, 64]]


# --- two stages ---------------------------------------------------------------


def small_classifier(seed):
    torch.manual_seed(seed)
    network = ConvNeXtV2((8, 16), (1, 1), "early")
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0, 0.5)
    return network


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
    """A random detector and a classifier of two members that see fields of their own."""
    folder = tmp_path_factory.mktemp("model") / "two"
    write_random_system(folder)
    values = yaml.safe_load((folder / "model.yaml").read_text())
    members = []
    for seed in (0, 1):
        path = folder / f"classifier{seed}.safetensors"
        save_file(small_classifier(seed).state_dict(), path)
        members.append({"weights": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    members[1] |= {"field_um": 8.0, "input_px": 24, "calibration": {"scale": 2.0, "shift": 0.3}}
    options = {"widths": [8, 16], "depths": [1, 1], "stem": "early"}
    values["classifier"] = {"network": "convnextv2", "options": options, "field_um": 16.0, "input_px": 32}
    values["classifier"] |= {"score_weight": 0.5, "members": members, "calibration": {"scale": 1.5, "shift": -0.2}}
    (folder / "model.yaml").write_text(yaml.safe_dump(values))
    return folder


def test_members_see_their_own_field_and_everything_is_calibrated_in_turn(two_stages, pixels):
    found = SystemDetector(load_system(two_stages).with_precision("float32"), ENGINE)(ArraySlide(pixels))
    assert len(found) > 5
    probabilities = []
    for seed, field_um, side, calibration in ((0, 16, 32, Calibration()), (1, 8, 24, Calibration(2.0, 0.3))):
        one = NetworkClassifier(in_float32(Normalised(small_classifier(seed))), field_um / 16, side)
        crops = (cut_candidate(ArraySlide(pixels), box, 16, 48) for box in found.boxes.astype(np.float32))
        probabilities.append(calibration.apply(classify(crops, one, "cpu")))
    mean = Calibration(1.5, -0.2).apply(np.mean(probabilities, axis=0))
    np.testing.assert_allclose(
        found.probabilities, with_score(mean, found.scores, 0.5), atol=2e-3
    )  # weights are float32
    assert np.ptp(found.probabilities) > 0.01


def test_a_classifier_of_finer_pixels_sees_the_slide_s_own(two_stages, pixels):
    """The detector at .5 um/px, the classifiers at a third of a um and finer, on a slide of .25."""
    system = load_system(two_stages)
    system = replace(system, detector=replace(system.detector, um_per_px=0.5, score_threshold=0.5))
    slide = ArraySlide(np.tile(pixels, (2, 2, 1)))
    detector, seen = SystemDetector(system, ENGINE), []
    classifier = detector.classifier
    detector.classifier = lambda crops: (seen.append(crops), classifier(crops))[1]
    found = detector(slide)
    assert len(found) > 3
    assert found.um_per_px == (0.25, 0.25)
    crops = np.concatenate(seen).transpose(0, 2, 3, 1) * 255
    expected = [cut_candidate(slide, box, 16, 48) for box in found.boxes]
    np.testing.assert_allclose(crops, expected, atol=1e-3)


def test_merging_after_classification_keeps_the_surest_of_a_figure(two_stages, pixels):
    system = load_system(two_stages).with_precision("float32")
    everything, late = (
        SystemDetector(replace(system, detector=replace(system.detector, merge=merge)), ENGINE)(ArraySlide(pixels))
        for merge in (Merge(distance_um=0.01), Merge(distance_um=15.0, after_classification=True))
    )
    kept = merge_near(everything.boxes, everything.probabilities, 60)
    assert 0 < len(late) == len(kept) < len(everything)
    np.testing.assert_allclose(np.sort(late.probabilities), np.sort(everything.probabilities[kept]), atol=1e-6)

"""Stain normalisation: known stains come to the reference, windows as the whole, glass, little tissue, both stages."""

import pickle
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from conftest import ROOT

from midog.engine import two_stages
from midog.engine.two_stages import SystemDetector
from midog.images.slide import ArraySlide, at_spacing
from midog.images.stain import REFERENCE, REFERENCE_STRENGTH, StainNormalised, stain_normalised
from midog.system import as_yaml, read_system

STAINS = {
    "ours": np.array([[0.64, 0.72, 0.27], [0.1, 0.96, 0.26]]),
    "redder": np.array([[0.45, 0.80, 0.40], [0.02, 0.85, 0.53]]),
}
SIZE = 480, 320
GLASS = 96  # columns of it on the left


def amounts():
    """Concentrations of haematoxylin and eosin, float (H, W, 2), with pixels of each alone."""
    random = np.random.default_rng(0)
    made = random.uniform(0, 1, (SIZE[1], SIZE[0], 2)) * (0.9, 0.5) + 0.05
    alone = random.integers(0, 8, SIZE[::-1])
    made[alone == 0, 0] = made[alone == 1, 1] = 0
    return made


def stained(vectors, strength=(1.0, 1.0), light=255):
    """A slide of `amounts`, with glass on the left."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    made = amounts() * strength
    made[:, :GLASS] = 0
    pixels = light * 10 ** -(made @ vectors)
    return ArraySlide(pixels.round().astype(np.uint8), (0.25, 0.25), (1.0, 2.0))


def whole(slide):
    return slide.read(0, 0, *slide.size).astype(int)


@pytest.mark.parametrize("light", [255, 215])
@pytest.mark.parametrize("name", STAINS)
def test_known_stains_come_to_the_reference(name, light):
    """Whatever their colour, their strength and the light; and glass is white."""
    found = whole(stain_normalised(stained(STAINS[name], (0.7, 1.3), light)))
    tissue = amounts()[:, GLASS:]
    strengths = np.percentile(tissue.reshape(-1, 2), 99, axis=0)
    expected = 255 * 10 ** -(tissue / strengths * REFERENCE_STRENGTH @ REFERENCE)
    assert np.abs(found[:, GLASS:] - expected).mean() < 3
    assert (found[:, :GLASS] == 255).all()


def test_what_is_normalised_stays_so():
    once = stain_normalised(stained(STAINS["redder"]))
    twice = stain_normalised(once)
    assert np.abs(whole(once) - whole(twice)).mean() < 2


def test_a_window_is_the_same_part_of_the_whole_and_a_copy_in_another_process_reads_the_same():
    source = stained(STAINS["ours"])
    slide = stain_normalised(source)
    assert isinstance(slide, StainNormalised)
    assert (slide.size, slide.um_per_px, slide.origin_mm) == (source.size, source.um_per_px, source.origin_mm)
    part = slide.read(150, 40, 70, 50)
    assert part.dtype == np.uint8
    np.testing.assert_array_equal(part, whole(slide)[40:90, 150:220])
    np.testing.assert_array_equal(part, pickle.loads(pickle.dumps(slide)).read(150, 40, 70, 50))
    np.testing.assert_array_equal(part, stain_normalised(source).read(150, 40, 70, 50))


@pytest.mark.parametrize("kind", ["glass", "speck", "one stain"])
def test_without_enough_stained_tissue_an_image_stays_as_it_is(kind, caplog):
    pixels = np.full((200, 300, 3), 240, np.uint8)
    if kind == "speck":
        pixels[:30, :30] = stained(STAINS["ours"]).pixels[:30, 200:230]
    if kind == "one stain":
        pixels[:] = (255 * 10 ** -(np.linspace(0.2, 0.8, 300)[:, None] * STAINS["ours"][1])).astype(np.uint8)
    slide = ArraySlide(pixels)
    assert stain_normalised(slide) is slide
    (record,) = caplog.records
    assert "image, 300 x 200 px: too little stained tissue" in record.getMessage()


def test_detector_and_classifier_read_the_normalised_slide(monkeypatch):
    """A classifier that sees finer pixels, too; without the key both read the slide itself."""
    seen = {}

    def find(slide, *_):
        seen["detector"] = slide.read(100, 40, 64, 64)
        return np.array([[100, 40, 150, 90]], np.float32), np.array([0.9], np.float32)

    def judge(crops, *_):
        seen["classifier"] = next(iter(crops))
        return np.array([0.5])

    for name in ("load_detector", "load_classifier"):
        monkeypatch.setattr(two_stages, name, lambda *_: "network")
    monkeypatch.setattr(two_stages, "find_candidates", find)
    monkeypatch.setattr(two_stages, "classify", judge)
    shipped = read_system(ROOT / "model/sztu_small/model.yaml")
    assert "stain_normalisation" not in as_yaml(shipped)["detector"]
    source = stained(STAINS["redder"])
    for how, expected in (("none", source), ("macenko", stain_normalised(source))):
        for um_per_px in (0.25, 0.5):
            part = msgspec.structs.replace(shipped.detector, stain_normalisation=how, um_per_px=um_per_px)
            SystemDetector(msgspec.structs.replace(shipped, detector=part), SimpleNamespace(device="cpu"))(source)
            read = at_spacing(expected, um_per_px)
            np.testing.assert_array_equal(seen["detector"], read.read(100, 40, 64, 64))
            box = (np.array([100, 40, 150, 90], np.float32) + 0.5) * um_per_px / 0.25 - 0.5
            crop = two_stages.cut_candidate(expected, box, shipped.classifier.field_um, shipped.classifier.input_px)
            np.testing.assert_allclose(seen["classifier"].astype(int), crop, atol=1)

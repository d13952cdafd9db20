import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageColor

from midog.job import detection_result
from midog.report.overlay import (
    COLOURS,
    FIGURE,
    HEADER,
    LONGEST_SIDE,
    MOST_LABELS,
    REJECTED,
    overlay,
    points_px,
    scale_bar,
    write_overlay,
)
from midog.slide import Slide


class PlainSlide(Slide):
    """One colour, of any size; only its overview may be asked for."""

    def overview(self, longest_side):
        scale = min(1, longest_side / max(self.size))
        width, height = (max(1, round(side * scale)) for side in self.size)
        return np.full((height, width, 3), (230, 180, 215), np.uint8)


def result_of(slide, points, probabilities):
    """A Track 1 result of points in px."""
    probabilities = np.array(probabilities)
    return detection_result(slide.points_mm(points), probabilities, probabilities >= 0.5)


def marked(picture, name):
    """Where a ring's colour is in the picture, below the header: left, top, right, bottom."""
    below = np.asarray(picture)[HEADER:]
    rows, columns = np.nonzero((below == ImageColor.getrgb(COLOURS[name])).all(-1))
    return None if len(rows) == 0 else (columns.min(), rows.min(), columns.max(), rows.max())


@pytest.mark.parametrize("probability", [0.9, 0.1])
@pytest.mark.parametrize("width", [1000, 8000])
def test_a_ring_lies_around_its_pixel(probability, width, monkeypatch):
    monkeypatch.setattr("midog.report.overlay.MOST_LABELS", 0)  # labels bear the ring's colour
    slide = PlainSlide((width, width // 2), (0.2, 0.5), (3.0, -1.5))
    place = np.array([0.3 * width, 0.2 * width])
    picture = overlay(slide, result_of(slide, [place], [probability]), "a.tif")
    left, top, right, bottom = marked(picture, FIGURE if probability >= 0.5 else REJECTED)
    scale = min(1, LONGEST_SIDE / width)
    centre = (left + right) / 2, (top + bottom) / 2
    assert centre == pytest.approx(place * scale, abs=1)
    assert right - left == pytest.approx(bottom - top, abs=1)
    assert marked(picture, REJECTED if probability >= 0.5 else FIGURE) is None


def test_points_come_back_to_their_pixels():
    slide = PlainSlide((500, 400), (0.2, 0.5), (3.0, -1.5))
    points = np.array([[0, 0], [499, 399], [12.25, 300.5]])
    result = result_of(slide, points, [0.9, 0.8, 0.7])
    np.testing.assert_allclose(points_px(slide, result), points, atol=1e-9)


def test_labels_stand_inside_the_picture_and_only_where_they_are_few():
    slide = PlainSlide((900, 600), (0.25, 0.25), (0, 0))

    def columns(points):
        return marked(overlay(slide, result_of(slide, points, [0.9] * len(points)), "a.tif"), FIGURE)

    assert columns([(450, 300)])[2] > 450 + 50 + 10
    assert columns([(880, 300)])[0] < 880 - 50 - 10
    assert columns([(450, 300)] * (MOST_LABELS + 1))[2] < 450 + 50 + 5


def test_an_empty_result_is_the_slide_below_its_header(tmp_path):
    slide = PlainSlide((700, 300), (0.25, 0.25), (0, 0))
    warnings = []
    path = write_overlay(slide, result_of(slide, np.zeros((0, 2)), []), tmp_path, "a.tif", warnings.append)
    assert path == tmp_path / "overlay.png"
    picture = np.asarray(Image.open(path))
    assert picture.shape == (HEADER + 300, 700, 3)
    np.testing.assert_array_equal(picture[HEADER:], slide.overview(2000))
    assert picture[:HEADER].min() == 0  # the header says so
    assert warnings == []


def test_a_result_of_another_image_is_noticed(tmp_path):
    slide = PlainSlide((700, 300), (0.25, 0.25), (0, 0))
    warnings = []
    write_overlay(slide, result_of(slide, [(10, 10), (10, 900)], [0.9, 0.2]), tmp_path, "a.tif", warnings.append)
    assert len(warnings) == 1
    assert "1 of 2 points" in warnings[0]


def test_a_huge_slide_with_many_candidates_takes_bounded_memory():
    slide = PlainSlide((200_000, 150_000), (0.25, 0.25), (0, 0))
    points = np.random.default_rng(0).uniform(0, 150_000, (5_000, 2))
    result = result_of(slide, points, np.linspace(0, 1, len(points)))
    tracemalloc.start()
    picture = overlay(slide, result, "a.svs")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert picture.size == (2000, HEADER + 1500)
    assert peak < 40e6


@pytest.mark.parametrize("size", [(1, 1), (3000, 2)])
def test_odd_sizes(size):
    slide = PlainSlide(size, (0.25, 0.25), (0, 0))
    picture = overlay(slide, result_of(slide, [(0, 0)], [0.9]), "a name that is longer than the image is wide")
    assert picture.size[0] >= min(size[0], 2000)


def test_the_scale_bar_is_a_round_length():
    assert scale_bar(1600, 0.25) == (200, "50 um")
    px, label = scale_bar(2000, 7.5)
    assert (px, label) == (pytest.approx(2000 / 7.5), "2 mm")
    assert scale_bar(1, 0.25)[0] <= 1

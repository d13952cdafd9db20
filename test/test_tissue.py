from collections import Counter

import msgspec
import numpy as np
import pytest
import yaml
from conftest import ROOT

from midog.images.slide import ArraySlide
from midog.system import Tissue, parse
from resources.data.fields import Field, read_fields
from resources.data.tissue import FIELDS, _sample, tissue_of

DATA = ROOT.parent / "shared" / "data"


def field(source, number, pixels=None):
    pixels = np.full((16, 16, 3), 255, np.uint8) if pixels is None else pixels
    return Field(f"{number}.png", str(number), source, ArraySlide(pixels))


def test_fields_are_taken_evenly_from_their_sources():
    fields = [field("large", n) for n in range(400)] + [field("small", n) for n in range(20)]
    fields += [field("middle", n) for n in range(100)]
    chosen = list(_sample(fields, np.random.default_rng(0)))
    assert Counter(each.source for each in chosen) == {"small": 20, "large": 65, "middle": 65}
    assert len({(each.source, each.name) for each in chosen}) == FIELDS == 150


def test_the_same_fields_give_the_same_tissue_which_model_yaml_can_hold(data):
    fields = [*read_fields([data / "fields"]), field("glass", 0)]
    found = tissue_of(fields)
    assert found == tissue_of(fields)
    assert found.images == 2
    assert found.area_mm2 == pytest.approx(2 * 0.064**2, abs=1e-4)
    assert parse(Tissue, yaml.safe_load(yaml.safe_dump(msgspec.to_builtins(found))), "here") == found
    assert tissue_of([field("glass", 0)]) is None


def test_real_nuclei_are_as_large_as_nuclei():
    if not (DATA / "brecahad").is_dir():
        pytest.skip("the real images are not here")
    found = tissue_of(read_fields([DATA / "brecahad"]))
    assert 6 < found.nucleus_um[1] < 9
    assert found.haematoxylin[0] > found.eosin[0] + 0.2
    assert 235 < found.white_level < 255

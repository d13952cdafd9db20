import dataclasses
import itertools
import logging
import math
import re
import struct

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from writers import ASCII, LONG, RATIONAL, SHORT, write_dicom, write_tiff

from midog.errors import UserError
from midog.images import resolution
from midog.images.resolution import ASSUMED, GIVEN, READ, Resolution, Spacing, resolve
from midog.images.slide import open_slide

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
OME = '<?xml version="1.0" encoding="{}"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
OME += '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="30" SizeY="20" SizeC="3" '
OME += 'SizeZ="1" SizeT="1" {}><Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/>'
OME += "</Pixels></Image></OME>"
PHILIPS = '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">{}</DataObject>'
PHILIPS_SPACING = '<Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030">{}</Attribute>'


@pytest.fixture
def opened(caplog, monkeypatch):
    """Opens a file; the resolution that is taken, and what was logged."""
    monkeypatch.setattr(logging.getLogger("midog"), "handlers", [])

    def opened(path, **options):
        caplog.clear()
        with open_slide(path, **options) as slide:
            assert slide.size == (30, 20)
            return slide.resolution, [each.getMessage() for each in caplog.records if each.name.startswith("midog.")]

    return opened


def ome(attributes, encoding="UTF-8"):
    return OME.format(encoding, attributes)


def ome_of(x, unit=None, y=None):
    """The attributes of a size of pixels as people write them."""
    unit = "" if unit is None else f'PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"'
    return ome(f'PhysicalSizeX="{x}" PhysicalSizeY="{x if y is None else y}" {unit}')


def imagej(unit):
    return f"ImageJ=1.53t\nimages=1\nunit={unit}\nloop=false\n"


def philips(*texts):
    return PHILIPS.format("".join(PHILIPS_SPACING.format(text) for text in texts))


def tags(description="", unit=1, x=(1, 1), y=None):
    """Tags of `write_tiff`: description, ResolutionUnit, XResolution and YResolution; None leaves them out."""
    found = {270: (ASCII, description if isinstance(description, bytes) else description.encode() + b"\0")}
    if unit is not None:
        found[296] = (SHORT, [unit])
    if x is not None:
        found |= {282: (RATIONAL, x), 283: (RATIONAL, y or x)}
    return found


# --- every place that can say it, through a file ---------------------------------

UNITS = {"um": (4, 1), "micron": (4, 1), r"\u00B5m": (4, 1), "µm": (4, 1), "μm": (4, 1), "mm": (4000, 1)}
UNITS |= {"nm": (1, 250), "inch": (101_600, 1), "cm": (40_000, 1), " um ": (400, 100), "microns": (4, 1)}
TIFFS = {f"imagej {unit}": tags(imagej(unit), x=x) for unit, x in UNITS.items()}
TIFFS |= {"imagej latin-1": tags(imagej("µm").encode("latin-1") + b"\0", x=(4, 1))}
TIFFS |= {
    "tags inch": tags(unit=2, x=(101_600, 1)),
    "tags cm": tags(unit=3, x=(40_000, 1)),
    "tags mm": tags(unit=4, x=(4000, 1)),
    "tags um": tags(unit=5, x=(4, 1)),
    "tags inch by default": tags(unit=None, x=(101_600, 1)),
    "tags of other types": tags() | {282: (11, [40_000.0]), 283: (12, [40_000.0]), 296: (LONG, [3])},
    "tags x only": tags(unit=3, x=(40_000, 1)) | {283: None},
    "tags y zero": tags(unit=3, x=(40_000, 1), y=(0, 0)),
    "ome um": tags(ome_of(0.25, "µm")),
    "ome latin-1": tags(ome('PhysicalSizeX="0.25" PhysicalSizeXUnit="µm"', "ISO-8859-1").encode("latin-1") + b"\0"),
    "ome utf-16": tags(ome('PhysicalSizeX="0.25" PhysicalSizeXUnit="µm"', "UTF-16").encode("utf-16") + b"\0\0"),
    "ome utf-16 big": tags(b"\xfe\xff" + ome_of(0.25, "μm").encode("utf-16-be") + b"\0\0"),
    "ome decimal entity": tags(ome_of(0.25, "&#181;m")),
    "ome hexadecimal entity": tags(ome_of(0.25, "&#xB5;m")),
    "ome comma": tags(ome_of("0,25")),
    "ome exponent": tags(ome_of("2.5E-1")),
    "ome nm": tags(ome_of(250, "nm")),
    "ome mm": tags(ome_of("0.00025", "mm")),
    "ome cm": tags(ome_of("2.5e-5", "cm")),
    "ome no unit": tags(ome_of(0.25)),
    "ome empty unit": tags(ome_of(0.25, "")),
    "ome x only": tags(ome('PhysicalSizeX="0.25"')),
    "ome y only": tags(ome('PhysicalSizeY="0.25"')),
    "ome x nonsense": tags(ome_of("?", y=0.25)),
    "ome single quotes": tags(ome_of(0.25, "µm").replace('"', "'")),
    "ome namespace": tags(ome_of(0.25, "nm", 250).replace("<", "<OME:").replace("<OME:/", "</OME:")
                          .replace("<OME:?", "<?").replace('X="0.25"', 'X="250"')),
    "aperio": tags("Aperio Image Library v11\r\n30x20|AppMag = 40|MPP = 0.2500|Left = 3"),
    "aperio comma": tags("Aperio Image Library v11\r\n30x20|AppMag = 40|MPP = 0,25"),
    "aperio of others": tags("made by a converter; MPP=0.25"),
    "aperio with a density of screens": tags("Aperio |MPP = 0.25", unit=2, x=(72, 1)),
    "philips": tags(philips("&quot;0.00025&quot; &quot;0.00025&quot;")),
    "philips plain": tags(philips('"0.00025" "0.00025"')),
    "philips after its macro": tags(philips('"0.0315" "0.0315"', '"0.00025" "0.00025"', '"0.0005" "0.0005"')),
}  # fmt: skip


@pytest.mark.parametrize("kind", TIFFS)
def test_every_place_and_unit_of_a_tiff(tmp_path, opened, kind):
    path = write_tiff(tmp_path / "a.tif", PIXELS, TIFFS[kind])
    found, warnings = opened(path, refuse_implausible=True)
    assert found.um_per_px == pytest.approx((0.25, 0.25), rel=1e-6)
    assert (found.source, found.in_file, found.conflict, warnings) == (READ, None, "", [])
    assert opened(path, um_per_px=0.4) == (Resolution((0.4, 0.4), GIVEN, ""), [])


def jpeg(path, unit, x, y, exif=b""):
    """A JPEG whose JFIF header says these dots a unit."""
    Image.fromarray(PIXELS).save(path, exif=exif)
    data = path.read_bytes()
    at = data.index(b"JFIF\0") + 7
    path.write_bytes(data[:at] + struct.pack(">BHH", unit, x, y) + data[at + 5 :])
    return path


def exif_of(path, tags):
    """EXIF is a TIFF in a JPEG."""
    return b"Exif\0\0" + write_tiff(path / "exif.tif", PIXELS[:1, :1], tags).read_bytes()


def write_svs(path, description, **tags):
    tiles = {"compression": "jpeg", "photometric": "rgb", "tile": (16, 16), "metadata": None}
    tifffile.imwrite(path, PIXELS, description=description, **tiles, **tags)
    return path


def write_mha(path, spacing):
    image = sitk.GetImageFromArray(PIXELS, isVector=True)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    return path


def write_png(path, **options):
    Image.fromarray(PIXELS).save(path, **options)
    return path


APERIO = "Aperio Image Library v11\r\n30x20 (16x16) JPEG/RGB Q=70"
INCH, CM = tags(unit=2, x=(50_800, 1), y=(101_600, 1)), tags(unit=3, x=(40_000, 1))
OTHERS = {
    "mha": (lambda path: write_mha(path / "a.mha", (0.0005, 0.00025)), (0.5, 0.25)),
    "png": (lambda path: write_png(path / "a.png", dpi=(50_800, 101_600)), (0.5, 0.25)),
    "jfif cm": (lambda path: jpeg(path / "a.jpg", 2, 20_000, 40_000), (0.5, 0.25)),
    "jfif inch": (lambda path: jpeg(path / "a.jpg", 1, 50_800, 25_400), (0.5, 1.0)),
    "exif inch": (lambda path: jpeg(path / "a.jpg", 1, 72, 72, exif_of(path, INCH)), (0.5, 0.25)),
    "exif cm": (lambda path: jpeg(path / "a.jpg", 1, 36_064, 36_064, exif_of(path, CM)), (0.25, 0.25)),
    "svs": (lambda path: write_svs(path / "a.svs", f"{APERIO}|AppMag = 20|MPP = 0.5"), (0.5, 0.5)),
    "svs comma": (lambda path: write_svs(path / "a.svs", f"{APERIO}|AppMag = 20|MPP = 0,5"), (0.5, 0.5)),
    "svs of others": (lambda path: write_svs(path / "a.svs", "a converter|MPP = 0,5"), (0.5, 0.5)),
    "svs tags": (lambda path: write_svs(path / "a.svs", APERIO, resolution=(50_800, 101_600)), (0.5, 0.25)),
    "dicom": (lambda path: write_dicom(path / "a.dcm", PIXELS, 16, spacing_mm=0.0005), (0.5, 0.5)),
    "dicom frames": (lambda path: write_dicom(path / "a.dcm", PIXELS, 16, spacing_in="frames"), (0.25, 0.25)),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_every_place_of_other_formats(tmp_path, opened, kind):
    make, um_per_px = OTHERS[kind]
    path = make(tmp_path)
    found, warnings = opened(path, refuse_implausible=True)
    assert found.um_per_px == pytest.approx(um_per_px, rel=1e-4)
    assert (found.source, found.in_file, found.conflict, warnings) == (READ, None, "", [])
    assert opened(path, um_per_px=0.4) == (Resolution((0.4, 0.4), GIVEN, ""), [])


# --- what says nothing, and what cannot be right -----------------------------------

NOTHING = {
    "no tags": tags(x=None, unit=None),
    "no unit": tags(x=(40_000, 1)),
    "72 dpi": tags(unit=2, x=(72, 1)),
    "unknown unit": tags(unit=9, x=(40_000, 1)),
    "zero": tags(unit=3, x=(0, 1)),
    "over zero": tags(unit=3, x=(40_000, 0)),
    "zero over zero": tags(unit=3, x=(0, 0)),
    "negative": tags(unit=3) | {282: (10, [-40_000, 1]), 283: (10, [40_000, -1])},
    "infinite": tags(unit=3) | {282: (11, [math.inf]), 283: (12, [math.nan])},
    "text for numbers": tags(unit=3) | {282: (ASCII, b"40000\0"), 283: (ASCII, b"x\0"), 296: (ASCII, b"cm\0")},
    "several numbers": tags() | {282: (RATIONAL, [40_000, 1] * 3), 283: (SHORT, [1, 2]), 296: (SHORT, [3, 3])},
    "no numbers": tags() | {282: (RATIONAL, []), 283: (RATIONAL, []), 296: (SHORT, [])},
    "imagej pixel": tags(imagej("pixel"), x=(4, 1)),
    "imagej without": tags("ImageJ=1.53t\nimages=1\n", x=(4, 1)),
    "imagej empty": tags(imagej(""), x=(4, 1)),
    "ome nonsense": tags(ome_of("about a quarter")),
    "ome unknown unit": tags(ome_of("0.25", "furlong")),
    "ome reference frame": tags(ome_of("1", "reference frame")),
    "ome pixel": tags(ome_of("1", "pixel")),
    "ome zero": tags(ome_of("0")),
    "ome negative": tags(ome_of("-0.25")),
    "ome infinite": tags(ome_of("INF", y="NaN")),
    "ome 1 mm": tags(ome_of("1", "mm")),
    "ome cut off": tags(ome_of("0.25").partition(" PhysicalSizeY")[0]),
    "ome without pixels": tags("<OME><Image/></OME>"),
    "aperio nothing": tags("Aperio |MPP = |AppMag = 40"),
    "philips nothing": tags(philips("")),
    "philips words": tags(philips('"none" "none"')),
    "bytes for text": tags() | {270: (7, b"\xff\xfe\x00\x81MPP = \x9d")},
    "numbers for text": tags() | {270: (SHORT, [3, 4, 5])},
}


@pytest.mark.parametrize("kind", NOTHING)
def test_what_says_nothing_is_assumed_and_said(tmp_path, opened, kind):
    path = write_tiff(tmp_path / "a.tif", PIXELS, NOTHING[kind])
    found, (warning,) = opened(path, refuse_implausible=True)
    assert (found.um_per_px, found.source, found.in_file) == ((0.25, 0.25), ASSUMED, None)
    assert warning.startswith("a.tif: no resolution in the file")
    assert "0.25 um/px taken; name another with --mpp" in warning
    assert opened(path, default_um_per_px=0.3)[0].um_per_px == (0.3, 0.3)
    assert opened(path, um_per_px=0.4) == (Resolution((0.4, 0.4), GIVEN, ""), [])


OTHERS_NOTHING = {
    "mha 1 mm": lambda path: write_mha(path / "a.mha", (1, 1)),
    "png none": lambda path: write_png(path / "a.png"),
    "png 72 dpi": lambda path: write_png(path / "a.png", dpi=(72, 72)),
    "jfif none": lambda path: jpeg(path / "a.jpg", 0, 1, 1),
    "jfif zero": lambda path: jpeg(path / "a.jpg", 1, 0, 0),
    "jfif wrapped": lambda path: jpeg(path / "a.jpg", 1, 101_600 % 65_536, 101_600 % 65_536),
    "exif text": lambda path: jpeg(path / "a.jpg", 1, 72, 72, exif_of(path, NOTHING["text for numbers"])),
    "exif several": lambda path: jpeg(path / "a.jpg", 1, 72, 72, exif_of(path, NOTHING["several numbers"])),
    "exif over zero": lambda path: jpeg(path / "a.jpg", 1, 72, 72, exif_of(path, NOTHING["zero over zero"])),
    "exif infinite": lambda path: jpeg(path / "a.jpg", 1, 72, 72, exif_of(path, NOTHING["infinite"])),
    "svs": lambda path: write_svs(path / "a.svs", APERIO),
    "dicom": lambda path: write_dicom(path / "a.dcm", PIXELS, 16, spacing_in="nowhere"),
    "dicom zero": lambda path: write_dicom(path / "a.dcm", PIXELS, 16, spacing_mm=0),
}


@pytest.mark.parametrize("kind", OTHERS_NOTHING)
def test_what_says_nothing_in_other_formats(tmp_path, opened, kind):
    path = OTHERS_NOTHING[kind](tmp_path)
    found, warnings = opened(path, refuse_implausible=True)
    assert (found.um_per_px, found.source, found.in_file, len(warnings)) == ((0.25, 0.25), ASSUMED, None, 1)
    assert opened(path, um_per_px=0.4) == (Resolution((0.4, 0.4), GIVEN, ""), [])


def test_a_header_of_metaimage_that_lies(tmp_path, opened):
    path = write_mha(tmp_path / "a.mha", (0.0005, 0.0005))
    good = path.read_bytes()
    for text in (b"0 0", b"-0.0005 -0.0005", b"nan inf", b"a b", b"", b"0,0005 0,0005"):
        path.write_bytes(re.sub(rb"(?<=ElementSpacing =)[^\n]*", b" " + text, good))
        assert opened(path, um_per_px=0.4)[0].um_per_px == (0.4, 0.4)
        found, warnings = opened(path)
        comma = b"," in text
        assert found.um_per_px == ((0.5, 0.5) if comma else (0.25, 0.25))
        assert len(warnings) == (not comma)


IMPLAUSIBLE = {
    0.05: lambda path: write_tiff(path / "a.tif", PIXELS, tags(unit=3, x=(200_000, 1))),
    0.098: lambda path: write_tiff(path / "a.tif", PIXELS, tags(ome_of(0.098))),
    2.0: lambda path: write_mha(path / "a.mha", (0.002, 0.002)),
    1.2: lambda path: write_svs(path / "a.svs", f"{APERIO}|AppMag = 20|MPP = 1.2"),
    0.04: lambda path: write_dicom(path / "a.dcm", PIXELS, 16, spacing_mm=0.00004),
    0.02: lambda path: write_tiff(path / "a.tif", PIXELS, tags("Aperio |AppMag = 20|MPP = 0.02")),
}


@pytest.mark.parametrize("um_per_px", IMPLAUSIBLE)
def test_what_cannot_be_right_is_refused_or_said(tmp_path, opened, um_per_px):
    path = IMPLAUSIBLE[um_per_px](tmp_path)
    with pytest.raises(UserError, match=f"{path.name}: the file says {um_per_px:g} um/px.*--mpp") as error:
        open_slide(path, refuse_implausible=True)
    found, (warning,) = opened(path)
    assert (found.um_per_px, found.source) == ((0.25, 0.25), ASSUMED)
    assert found.in_file == pytest.approx((um_per_px, um_per_px), rel=1e-4)
    assert f"{um_per_px:g} um/px" in warning
    assert ("objective 20x" in warning) == ("objective 20x" in str(error.value)) == (um_per_px in (1.2, 0.02))
    for refuse in (True, False):
        assert opened(path, um_per_px=0.4, refuse_implausible=refuse) == (Resolution((0.4, 0.4), GIVEN, ""), [])


def test_an_objective_is_a_hint_and_no_resolution(tmp_path, opened):
    for name, text in (("a.tif", "Aperio |AppMag = 20"), ("b.tif", "level=0 mag=20 quality=95")):
        found, (warning,) = opened(write_tiff(tmp_path / name, PIXELS, tags(text)))
        assert (found.um_per_px, found.source) == ((0.25, 0.25), ASSUMED)
        assert "objective 20x" in warning
    xml = ome("").replace("<Image", '<Instrument><Objective NominalMagnification="20.0"/></Instrument><Image')
    assert "objective 20x" in opened(write_tiff(tmp_path / "c.tif", PIXELS, tags(xml)))[1][0]
    assert "objective 20x" in opened(write_svs(tmp_path / "a.svs", f"{APERIO}|AppMag = 20"))[1][0]


def test_two_places_that_disagree_are_said(tmp_path, opened):
    path = write_tiff(tmp_path / "a.tif", PIXELS, tags(ome_of(0.5), unit=3, x=(40_000, 1)))
    found, (warning,) = opened(path)
    assert (found.um_per_px, found.source) == ((0.25, 0.25), READ)
    assert str(found) == "0.25 um/px, read (the resolution tags; OME-XML says 0.5)"
    assert "OME-XML says 0.5" in warning
    assert "--mpp" in warning
    path = write_tiff(tmp_path / "a.tif", PIXELS, tags(ome_of(0.2502), unit=3, x=(40_000, 1)))
    assert opened(path) == (Resolution((0.25, 0.25), READ, "the resolution tags"), [])


# --- what is taken ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "taken", "source", "in_file"),
    [
        ([], 0.25, ASSUMED, None),
        ([0.1], 0.1, READ, None),
        ([1.1], 1.1, READ, None),
        ([0.0999], 0.25, ASSUMED, 0.0999),
        ([1.1001], 0.25, ASSUMED, 1.1001),
        ([352.8], 0.25, ASSUMED, None),
        ([352.8, 0.5], 0.5, READ, None),
        ([0.05, 0.5], 0.5, READ, None),
        ([352.8, 0.05, 2.0], 0.25, ASSUMED, 0.05),
        ([10.0], 0.25, ASSUMED, None),
    ],
)
def test_the_first_that_can_be_right_is_taken(said, taken, source, in_file):
    spacings = [Spacing((each, each), "somewhere") for each in said]
    found = resolve(spacings)
    assert (found.um_per_px, found.source) == ((taken, taken), source)
    assert found.in_file == (in_file and (in_file, in_file))
    assert resolve(spacings, given=0.3) == Resolution((0.3, 0.3), GIVEN, "")


def test_both_axes_must_be_plausible():
    assert resolve([Spacing((0.25, 2.5), "")]).in_file == (0.25, 2.5)
    assert resolve([Spacing((0.25, 352.8), "")]).in_file is None
    assert resolve([Spacing((0.25, 0.5), "")]).um_per_px == (0.25, 0.5)


NUMBERS = st.floats(1e-6, 1e6)
PLAUSIBLE = st.floats(0.1, 1.1)


@settings(deadline=None, max_examples=50)
@given(NUMBERS, st.sampled_from(["{!r}", " {!r}\n", "{:.17e}", "{:.17E}", "+{!r}"]), st.booleans())
def test_a_number_is_read_as_people_write_it(value, layout, comma):
    text = layout.format(value)
    assert resolution.number(text.replace(".", ",") if comma else text) == value


@pytest.mark.parametrize("text", ["", "abc", None, "1.2.3", "1,234.5", "0.25 um", "1/4"])
def test_what_is_no_number_is_nan(text):
    assert math.isnan(resolution.number(text))


NAMES = {"µm": 1, "μm": 1, "um": 1, "UM": 1, "micron": 1, "Microns": 1, "micrometer": 1, "micrometres": 1, "Âµm": 1}
NAMES |= {"&#181;m": 1, "&#xb5;m": 1, "&micro;m": 1, r"\u00B5m": 1, r"\u03bcm": 1, '"um"': 1, "?m": 1, "\ufffdm": 1}
NAMES |= {"nm": 1e-3, "pm": 1e-6, "Å": 1e-4, "\u212b": 1e-4, "nanometer": 1e-3, "mm": 1e3, "millimetres": 1e3}
NAMES |= {"cm": 1e4, "m": 1e6, "inch": 25400, "inches": 25400, "in": 25400}


@settings(deadline=None, max_examples=50)
@given(PLAUSIBLE, PLAUSIBLE, st.sampled_from(sorted(NAMES)), st.booleans())
def test_any_unit_gives_the_same_number_back(x, y, name, comma):
    um = NAMES[name]
    assert resolution.um_of(name) == pytest.approx(um)
    wanted = pytest.approx((x, y), rel=1e-9)
    quoted = name.replace('"', "")
    sizes = [repr(step / um).replace(".", ",") if comma else repr(step / um) for step in (x, y)]
    attributes = f'PhysicalSizeX="{sizes[0]}" PhysicalSizeXUnit="{quoted}" PhysicalSizeY="{sizes[1]}"'
    assert resolution.of_ome(ome(attributes + f' PhysicalSizeYUnit="{quoted}"'))[0].um_per_px == wanted
    assert resolution.of_imagej(imagej(name), um / x, um / y)[0].um_per_px == wanted


@settings(deadline=None, max_examples=50)
@given(PLAUSIBLE, PLAUSIBLE)
def test_tags_and_vendors_give_the_same_number_back(x, y):
    for unit, um in resolution.UM_PER_RESOLUTION_UNIT.items():
        px = [(round(um * 10_000 / step), 10_000) for step in (x, y)]
        assert resolution.of_resolution_tags(unit, *px)[0].um_per_px == pytest.approx((x, y), rel=1e-3)
    assert resolution.of_philips(philips(f'"{y / 1000}" "{x / 1000}"'))[0].um_per_px == pytest.approx((x, y))
    assert resolution.of_aperio(f"x|MPP = {x}|y")[0].um_per_px == pytest.approx((x, x))
    exact = resolution.format_spacing((x, y))
    assert [float(part) for part in exact.split(" x ")] == pytest.approx([x, y] if " x " in exact else [x], rel=1e-3)


@settings(deadline=None, max_examples=50)
@given(PLAUSIBLE)
def test_no_wrapped_density_is_believed_for_a_40x_scan(um_per_px):
    dots = round(25400 / um_per_px) % 65_536
    for spacing in resolution.of_jfif(1, dots, dots):
        right = spacing.um_per_px == pytest.approx((um_per_px, um_per_px), rel=1e-3)
        assert right or not 0.2201 < um_per_px < 0.2749
    assert resolution.of_jfif(1, 50_800, 50_800)[0].um_per_px == (0.5, 0.5)


ANYTHING = st.one_of(st.none(), st.integers(), st.floats(), st.text(), st.tuples(st.integers(), st.integers()),
                     st.lists(st.integers()), st.binary(), st.tuples(st.floats(), st.floats()))  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(ANYTHING, ANYTHING, ANYTHING, st.text())
def test_nothing_in_a_file_raises(unit, x, y, text):
    found = resolution.of_resolution_tags(unit, x, y) + resolution.of_imagej(imagej(text), x, y)
    for read in (resolution.of_ome, resolution.of_philips, resolution.of_aperio):
        for around in ("{}", ome("PhysicalSizeX='{}'"), philips("{}"), "MPP = {}"):
            found += read(around.replace("{}", text))
    resolution.objective_of(f"AppMag = {text}")
    for spacing, step in itertools.product(found, (0, 1)):
        assert 0 < spacing.um_per_px[step] < math.inf
    assert dataclasses.astuple(resolve(found))

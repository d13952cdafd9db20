"""Splits: no glass slide and no case on two sides, whatever is asked; shares near those asked; lines for bad input."""

from argparse import Namespace
from itertools import chain

import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from midog.errors import UserError
from midog.evaluation.provenance import BREAST, COLUMNS, PARIS, VIENNA, XT, describe, domain_of
from midog.evaluation.splits import read_split
from midog.evaluation.tables import chosen_images, holds_crops, read_crop_table
from resources.data import split
from resources.data.split import folds_of, main

DATA = ROOT.parent / "shared" / "data"


def asked(out="split.csv", **given):
    return Namespace(
        **({"split": None, "folds": None, "leave_out": None, "midogpp": None, "seed": 0, "out": out} | given)
    )


def write_fields(root, name, rows, columns="image,case,slide,tumor,laboratory,scanner"):
    """A folder of fields; of each row the last number is that of its mitotic figures. Returns the folder."""
    folder = root / name
    folder.mkdir(exist_ok=True)
    images = [",".join(map(str, row[:-1])) + ",0.25" for row in rows]
    (folder / "images.csv").write_text("\n".join([f"{columns},um_per_px", *images, ""]))
    figures = chain.from_iterable([f"{row[0]},1,1,mitotic figure"] * row[-1] for row in rows)
    (folder / "figures.csv").write_text("\n".join(["image,x,y,label", *figures, ""]))
    return folder


def slides(root, name, count, tumor="dog", figures=1):
    """A folder of one image a slide."""
    return write_fields(
        root, name, [(f"{n}.png", f"c{n}", f"{name}{n}", tumor, "lab", "S", figures) for n in range(count)]
    )


@st.composite
def tables(draw):
    """Images of two sets whose cases share slides, and slides that were on two scanners."""
    row = st.tuples(
        st.sampled_from(["a", "b"]),
        st.integers(0, 20).map("c{}".format),
        st.integers(0, 40).map("glass {}".format),
        st.sampled_from(["dog", "human, breast"]),
        st.sampled_from(["Paris", "Utrecht, NL", "Vienna"]),
        st.sampled_from(["A", "H", "S"]),
        st.integers(0, 9),
    )
    rows = draw(st.lists(row, min_size=3, max_size=40))
    images = pd.DataFrame(rows, columns=["set", "case", *COLUMNS, "figures"])
    return images.assign(image=images.index.map(str), hard_negatives=0)


KINDS = (
    *({"split": (7, 1, 2)}, {"split": (7, 1)}, {"split": (1, 1)}, {"folds": 2}, {"folds": 3}),
    *({"leave_out": "laboratory"}, {"leave_out": "tumor"}, {"leave_out": "scanner"}),
)


@settings(max_examples=80, deadline=None)
@given(tables(), st.sampled_from(KINDS), st.integers(0, 3))
def test_no_slide_and_no_case_is_on_two_sides(images, kind, seed):
    patch = pytest.MonkeyPatch()
    patch.setattr(split, "DRAWS", 2)  # for speed
    patch.setattr(split, "JOINS", 50)
    try:
        fold = folds_of(images, asked(seed=seed, **kind))
    except UserError as error:
        assert "slides" in str(error) or "leaves" in str(error)  # noqa: PT017
        return
    finally:
        patch.undo()
    assert fold.notna().all()
    assert len(fold) == len(images)
    for keys in (["set", "case"], ["slide"], *([[kind["leave_out"]]] if "leave_out" in kind else [])):
        assert (fold.groupby([images[key] for key in keys]).nunique() == 1).all(), keys
    assert (images.figures.groupby(fold).sum() > 0).all()
    assert fold.nunique() == kind.get("folds", len(kind.get("split", fold.unique())))
    assert not fold.str.contains(",").any()


def test_seven_one_two_by_hand(tmp_path):
    """Ten equal slides of one tumour and ten of another, whatever the draw: 7, 1, 2 of each."""
    folders = [slides(tmp_path, "dogs", 10, figures=3), slides(tmp_path, "people", 10, "human")]
    for seed in range(2):
        out = tmp_path / "new" / f"{seed}.csv"
        assert main(["--data", *map(str, folders), "--split", "7:1:2", "--seed", str(seed), "--out", str(out)]) == 0
        table = pd.read_csv(out)
        assert table.columns.tolist() == ["set", "case", "fold", *COLUMNS, "images", "figures"]
        counts = table.groupby(["tumor", "fold"]).size().to_dict()
        assert counts == {(t, f): n for t in ("dog", "human") for f, n in zip(split.PARTS, (7, 1, 2), strict=True)}
        assert table.groupby("set").figures.sum().to_dict() == {"dogs": 30, "people": 10}
    assert len({(tmp_path / f"new/{seed}.csv").read_text() for seed in range(2)}) > 1
    assert (
        main(["--data", *map(str, folders), "--split", "70:10:20", "--seed", "1", "--out", str(tmp_path / "d.csv")])
        == 0
    )
    assert (tmp_path / "d.csv").read_text() == out.read_text()


def test_shares_of_figures_come_near_where_slides_differ_and_a_tumour_has_few(tmp_path, capsys):
    many = [(f"{n}.png", f"c{n}", f"s{n}", "dog", "lab", "S", 1 + n) for n in range(20)]
    few = [(f"f{n}.png", f"f{n}", f"f{n}", "rare", "lab", "S", 4) for n in range(2)]
    folder = write_fields(tmp_path, "set", [*many, *few])
    assert main(["--data", str(folder), "--split", "7:1:2", "--out", str(tmp_path / "s.csv")]) == 0
    table = pd.read_csv(tmp_path / "s.csv")
    shares = table.groupby("fold").figures.sum() / table.figures.sum()
    assert shares.to_dict() == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.04)
    assert "train" in set(table.fold[table.tumor == "rare"])
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines() if " all " in line] == [
        [part, "all"] for part in split.PARTS
    ]


def test_folds_hold_equal_shares_and_read_back(tmp_path):
    folder = slides(tmp_path, "dogs", 12)
    assert main(["--data", str(folder), "--folds", "4", "--out", str(tmp_path / "s.csv")]) == 0
    read = read_split(tmp_path / "s.csv")
    assert sorted(read.names) == ["0", "1", "2", "3"]
    assert all(list(read.folds.values()).count(name) == 3 for name in read.names)
    chosen = {name: chosen_images(folder, read, [name])[1] for name in read.names}
    assert sorted(pd.concat(chosen.values()).case) == sorted(f"c{n}" for n in range(12))
    one = chosen_images(f"{folder}:c0,c1", read, [read.folds["dogs", "c0"]])[1]
    assert "c0" in set(one.case) <= {"c0", "c1"}


def test_leave_out_scanner_joins_scanners_that_saw_one_slide(tmp_path):
    rows = [
        ("1.png", "A1", "one", "dog", "lab", "Aperio", 1),
        ("2.png", "H1", "one", "dog", "lab", "Hamamatsu", 1),
        ("3.png", "A2", "two", "dog", "lab", "Aperio", 1),
        ("4.png", "L3", "three", "dog", "lab", "Leica", 1),
    ]
    folder = write_fields(tmp_path, "set", rows)
    assert main(["--data", str(folder), "--leave-out", "scanner", "--out", str(tmp_path / "s.csv")]) == 0
    folds = {case: fold for (_, case), fold in read_split(tmp_path / "s.csv").folds.items()}
    assert folds == {"A1": "Aperio + Hamamatsu", "H1": "Aperio + Hamamatsu", "A2": "Aperio + Hamamatsu", "L3": "Leica"}


def test_fields_and_crops_of_public_sets_share_their_slides(tmp_path):
    """By name alone: MIDOG21_002 is MIDOGpp_002, TUPAC_27 is TUPAC16_27, and so on; crops' cells of all kinds count."""
    sets = {
        "midogpp": ["MIDOGpp_002", "MIDOGpp_003", "MIDOGpp_210", "MIDOGpp_490"],
        "tupac_cells": ["TUPAC_27", "TUPAC_01"],
        "icpr12": ["A00", "A03", "H03"],
        "atypia14_h": ["H00", "H03", "H12"],
        "atypia14_a_cells": ["A12"],
        "regions": ["H04_03.jpg", "2191a7aa287ce1d5dbc0_patch_0_28860.jpg"],
        "cmc": ["2191a7aa287ce1d5dbc0", "a8773be388e12df89edd"],
        "midesec": ["MID_P0", "MID_P00"],
    }
    described = {name: describe(name, pd.DataFrame({"case": cases})).set_index("case") for name, cases in sets.items()}
    crops = tmp_path / "ami_br"
    crops.mkdir()
    (crops / "labels.csv").write_text(
        "file,label,case,origin\n1.png,0,MIDOG21_002,Here\n2.png,1,TUPAC16_27,\n3.png,-1,CMC_02,\n4.png,2,MIDOG21_002,\n"
    )
    assert holds_crops(crops)
    assert len(read_crop_table(crops)) == 2
    table = read_crop_table(crops, all_labels=True)
    assert table.label.tolist() == [0, 1, -1]
    described["ami_br"] = describe("ami_br", table).set_index("case")
    glass = {(name, case): slide for name, rows in described.items() for case, slide in rows.slide.items()}
    for same in (
        [("midogpp", "MIDOGpp_002"), ("ami_br", "MIDOG21_002")],
        [("tupac_cells", "TUPAC_27"), ("ami_br", "TUPAC16_27")],
        [("icpr12", "A03"), ("icpr12", "H03"), ("atypia14_h", "H03")],
        [("atypia14_h", "H12"), ("atypia14_a_cells", "A12")],
        [("regions", "2191a7aa287ce1d5dbc0_patch_0_28860.jpg"), ("cmc", "2191a7aa287ce1d5dbc0")],
        [("midesec", "MID_P0"), ("midesec", "MID_P00")],
    ):
        assert len({glass[each] for each in same}) == 1, same
    assert glass["icpr12", "A00"] != glass["atypia14_h", "H00"]
    assert glass["midogpp", "MIDOGpp_002"] != glass["midogpp", "MIDOGpp_003"]
    assert described["ami_br"].laboratory.tolist() == ["Here", "two other Dutch centres", "unknown"]
    assert described["midogpp"].loc["MIDOGpp_490", [*COLUMNS]].tolist() == [
        *("MIDOG++ 490", "canine soft tissue sarcoma", "VMU Vienna", "3D Histech")
    ]
    assert described["icpr12"].scanner.tolist() == ["Aperio ScanScope XT"] * 2 + ["Hamamatsu NanoZoomer"]


def test_a_table_s_own_columns_and_crops_of_one_image_without_a_case():
    own = pd.DataFrame(
        {"case": ["1", "2"], "Slide": ["S9", None], "Tumour": ["dog", ""], "Scanner": ["Hamammatsu XR", "X"]}
    )
    told = describe("mine", own)
    assert told.slide.tolist() == ["S9", "mine 2"]
    assert told.tumor.tolist() == ["dog", "unknown"]
    assert told.scanner.tolist() == ["Hamamatsu XR", "X"]
    overlapping = describe("mine", pd.DataFrame({"case": ["1.png", "2.png"], "source_image": ["a.svs", "a.svs"]}))
    assert overlapping.slide.nunique() == 1


PUBLISHED = (
    "Slide;Dataset;Tumor;Scanner;Origin;Species\n1;train;t;s;o;h\n2;test;t;s;o;h\n3;train;t;s;o;h\n201;train;t;s;o;h\n"
)


def test_midogpp_s_own_file(tmp_path, capsys):
    published, out = tmp_path / "datasets_xvalidation.csv", tmp_path / "s.csv"
    published.write_text(PUBLISHED)
    cases = ["MIDOGpp_001", "MIDOGpp_002", "MIDOGpp_003", "MIDOGpp_201"]
    folder = write_fields(tmp_path, "midogpp", [(f"{case}.tiff", case, 1) for case in cases], "image,case")
    same = write_fields(tmp_path, "ami_br", [("1.png", "MIDOG21_002", 1), ("2.png", "TUPAC16_01", 1)], "image,case")
    chosen = ["--midogpp", str(published), "--out", str(out), "--data", str(folder)]
    assert main([*chosen, f"{same}:-TUPAC*"]) == 0
    assert read_split(out).folds == {
        **{("midogpp", case): "test" if case == "MIDOGpp_002" else "train" for case in cases},
        ("ami_br", "MIDOG21_002"): "test",
    }
    assert main([*chosen, "--split", "2:1"]) == 0
    folds = read_split(out).folds
    assert sorted(folds.values()) == ["test", "train", "train", "validation"]
    assert folds["midogpp", "MIDOGpp_002"] == "test"
    capsys.readouterr()
    before = out.read_text()
    assert main([*chosen, str(same)]) == 1
    assert "datasets_xvalidation.csv: lacks 1 of 2 cases of ami_br (TUPAC16_01)" in capsys.readouterr().err
    published.write_text(PUBLISHED.replace("2;test", "2;held"))
    assert main(chosen) == 1
    assert "line 3: Dataset is held, train or test expected" in capsys.readouterr().err
    published.write_text(PUBLISHED.replace(";", ","))
    assert main(chosen) == 1
    told = capsys.readouterr().err
    assert "Slide, Dataset expected, found Slide,Dataset,Tumor" in told
    assert told.count("\n") == 1
    assert out.read_text() == before


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (
            [("1.png", "c", "s", "t", "l", "x", 1)] * 2,
            ["--folds", "2"],
            "2 parts of 1 slides asked for; give fewer folds",
        ),
        (
            [(f"{n}.png", f"c{n}", n, "t", "l", "x", n // 3) for n in range(4)],
            ["--folds", "4"],
            "empty, without mitotic figures; give fewer folds, another ratio or --seed",
        ),
        (
            [("1.png", "c", "s", "t", "", "x", 1)],
            ["--leave-out", "laboratory"],
            "set: the laboratory of case c is unknown",
        ),
        (
            [("1.png", "c", "s", "t", "a", "x", 1), ("2.png", "d", "s", "t", "b", "x", 1)],
            ["--leave-out", "laboratory"],
            "a + b is all there is, or shares slides",
        ),
        (
            [("1.png", "c", "s", "t", "a", "x", 1), ("2.png", "d", "r", "t", "b", "x", 0)],
            ["--leave-out", "laboratory"],
            "leaves b empty, without mitotic figures; leave it out of --data",
        ),
    ],
)
def test_what_cannot_be_split(tmp_path, capsys, rows, options, words):
    folder = write_fields(tmp_path, "set", rows)
    assert main(["--data", str(folder), *options, "--out", str(tmp_path / "s.csv")]) == 1
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
    assert not (tmp_path / "s.csv").exists()


def test_foreign_tables_folders_of_one_name_and_options(tmp_path, capsys):
    folder = slides(tmp_path, "set", 3)
    (folder / "images.csv").write_text("image;case;um_per_px\n1.png;c;0.25\n")
    assert main(["--data", str(folder), "--folds", "2", "--out", str(tmp_path / "s.csv")]) == 1
    assert "images.csv: column image, um_per_px is missing: image, um_per_px expected, found image;case;um_per_px" in (
        capsys.readouterr().err
    )
    (tmp_path / "other").mkdir()
    twice = [str(slides(root, "set", 3)) for root in (tmp_path, tmp_path / "other")]
    assert main(["--data", *twice, "--folds", "2", "--out", str(tmp_path / "s.csv")]) == 1
    assert "has the same name" in capsys.readouterr().err
    for options in ([], ["--split", "7"], ["--split", "7:0:2"], ["--folds", "1"], ["--split", "7:1", "--folds", "2"]):
        with pytest.raises(SystemExit):
            main(["--data", twice[0], "--out", "s.csv", *options])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("set;case;fold\na;b;c\n", "columns set, case, fold expected, found set;case;fold"),
        ("set,case,fold\n", "no case in it"),
        ("", "cannot be read"),
        ("set,case,fold\na,b,train\na,b,test\n", "line 3: case b of a is there twice"),
        ("set,case,fold\na,b,\n", "line 2: set, case or fold is empty"),
    ],
)
def test_split_files_that_are_none(tmp_path, text, words):
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_split(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_unknown_folds_and_cases_are_named(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("set,case,fold,note\nset,c0, UMC Utrecht ,x\nset,NA,train,\n")
    read = read_split(path)
    assert read.names == ["UMC Utrecht", "train"]
    with pytest.raises(UserError, match="no fold test; it has UMC Utrecht, train"):
        read.check(["train", "test"])
    images = pd.DataFrame({"case": ["NA", "c0"]})
    assert read.choose(images, "set", ["train"]).case.tolist() == ["NA"]
    assert read.choose(images, "set", []).empty
    with pytest.raises(UserError, match="case c1 of set is missing; make the split anew with these --data"):
        read.choose(pd.DataFrame({"case": ["c1"]}), "set", ["train"])


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the public data sets")
@pytest.mark.parametrize("options", [["--split", "7:1:2"], ["--folds", "3"], ["--leave-out", "laboratory"]])
def test_known_leaks_of_the_public_sets(tmp_path, monkeypatch, options):
    monkeypatch.setattr(split, "DRAWS", 1)  # for speed
    names = ["icpr12", "atypia14_h", "atypia14_a_cells", "regions", "tupac_cells", "ami_br", "atnorm_md", "cmc_cells"]
    quiet = "quiet_tissue:ICPR12*,CCMCT*"
    data = [str(DATA / name) for name in (*names, quiet)]
    assert main(["--data", *data, *options, "--out", str(tmp_path / "s.csv")]) == 0
    folds = read_split(tmp_path / "s.csv").folds
    shared = [
        [("icpr12", "A03"), ("atypia14_h", "H03")],
        [("icpr12", "A04"), ("atypia14_h", "H04"), ("atypia14_a_cells", "A04"), ("regions", "H04_03.jpg")],
        *[[("atypia14_h", f"H{n}"), ("atypia14_a_cells", f"A{n}")] for n in ("07", "12", "15", "17")],
        [key for key in folds if key[0] == "regions" and key[1].startswith("2191a7aa")],
        [key for key in folds if key[1].startswith("CCMCT_")],
    ]
    for slide in ("00", "01", "03", "04"):
        patches = [
            key for key in folds if key[0] == "quiet_tissue" and key[1][8:10] == slide and key[1][:6] == "ICPR12"
        ]
        assert len(patches) > 20
        shared.append([("icpr12", f"A{slide}"), *patches])
    tupac = [case for name, case in folds if name == "tupac_cells"]
    both = [case for case in tupac if ("ami_br", case.replace("TUPAC_", "TUPAC16_")) in folds]
    assert len(both) > 5
    shared += [[("tupac_cells", case), ("ami_br", case.replace("TUPAC_", "TUPAC16_"))] for case in both]
    for same in shared:
        assert len({folds[each] for each in same}) == 1, same
    for name in ("ami_br", "atnorm_md", "cmc_cells"):  # crops of one source image overlap
        crops = read_crop_table(DATA / name, all_labels=True)
        fold = [folds[name, case] for case in crops.case]
        assert (pd.Series(fold).groupby(crops.source_image).nunique() == 1).all()


@pytest.mark.parametrize(
    ("name", "case", "expected"),
    [
        ("atypia14_a_cells", "A03_01", (BREAST, PARIS, XT)),
        ("midogpp", "MIDOGpp_245", ("canine lymphoma", VIENNA, "3D Histech")),
        ("quiet_tissue", "0e56fd11a762be0983f0", ("quiet_tissue", "unknown", "unknown")),  # a slide, of what is unknown
        ("own", "a1", ("own", "unknown", "unknown")),
    ],
)
def test_the_domain_of_a_case_is_what_its_publication_says_or_its_set(name, case, expected):
    assert domain_of(name, case) == expected


def test_two_lists_are_divided_apart_unless_they_share_slides(tmp_path):
    """Of 30 slides with 10 figures and 3 with 1, a fold of each list has a third; of one list it would not need to."""
    many, few = slides(tmp_path, "many", 30, figures=10), slides(tmp_path, "few", 3)
    path = tmp_path / "folds.csv"
    split.write_folds([str(few)], [str(many)], 3, path)
    divided = pd.read_csv(path)
    assert sorted(divided[divided.set == "few"].fold) == [0, 1, 2]
    assert set(divided[divided.set == "many"].groupby("fold").size()) == {10}
    same = write_fields(tmp_path, "same", [(f"{n}.png", f"s{n}", f"few{n}", "dog", "lab", "S", 1) for n in range(3)])
    split.write_folds([str(few)], [str(same)], 3, path)
    assert set(pd.read_csv(path).groupby("slide").fold.nunique()) == {1}

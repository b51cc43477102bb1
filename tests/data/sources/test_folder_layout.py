"""What folders mean: splits, classes and what is left out, the same in both doors."""

import io
import logging

import numpy as np
import pytest
from PIL import Image

from simclr_jax.data.sources import folder, folder_layout, split_names
from simclr_jax.errors import DataError
from simclr_jax.prepare import archives, entries

SUFFIXES = (".jpg", ".png")
CLASSES = ["ant", "bee", "cat"]


def _understand(*paths, **options):
    ordered = sorted(paths, key=lambda path: path.split("/"))
    return folder_layout.understand(ordered, SUFFIXES, **options)


def _in_classes(*tops, number=1, classes=CLASSES):
    return [
        "/".join(filter(None, (top, name, f"{i}.jpg")))
        for top in tops
        for name in classes
        for i in range(number)
    ]


def _counts(layout):
    """Images by split and class."""
    found = {}
    for name in layout.splits or {"": None}:
        chosen = layout.of_splits([name]) if name else layout.split >= 0
        by_class = layout.class_counts(chosen)
        found[name] = {key: n for key, n in by_class.items() if n} or int(chosen.sum())
    return found


ONE_EACH = dict.fromkeys(CLASSES, 1)


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("train", "train"),
        ("Training_Set", "train"),
        ("TRAIN", "train"),
        ("trainset", "train"),
        ("TrainImages", "train"),
        ("train2017", "train"),
        ("val", "val"),
        ("valid", "val"),
        ("Validation-Data", "val"),
        ("dev", "val"),
        ("test_set", "test"),
        ("Testing", "test"),
        ("test images 2014", "test"),
        ("unlabelled", "unlabeled"),
        ("unlabeled2017", "unlabeled"),
        ("extra", "extra"),
        *((name, None) for name in ("trains", "train_station", "tester", "contest")),
        *((name, None) for name in ("data", "", "train_test", "validé", "train1")),
    ],
)
def test_names_of_splits(name, means):
    assert split_names.meaning(name) == means


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        # Usual names.
        (
            _in_classes("training_set", "test_set"),
            {"training_set": ONE_EACH, "test_set": ONE_EACH},
        ),
        # Around everything lies a folder, and in each split one more.
        (
            _in_classes("x/seg_train/seg_train", "x/seg_test/seg_test"),
            {"seg_train": ONE_EACH, "seg_test": ONE_EACH},
        ),
        # A picture beside them, and folders that are no splits.
        (
            [*_in_classes("Train", "Valid"), "cover.jpg", "docs/1.jpg"],
            {"Train": ONE_EACH, "Valid": ONE_EACH},
        ),
        # Without classes; with and without.
        (["train/1.jpg", "val/1.jpg"], {"train": 1, "val": 1}),
        (
            [*_in_classes("train"), "test/1.jpg", "unlabeled/a/1.jpg"],
            {"train": ONE_EACH, "test": 1, "unlabeled": 1},
        ),
        # One alone.
        (_in_classes("training"), {"training": ONE_EACH}),
        (["Test/1.jpg"], {"Test": 1}),
        # A class is missing, and one is only here.
        (
            [*_in_classes("train"), "val/bee/1.jpg", "val/dog/1.jpg"],
            {"train": ONE_EACH, "val": {"bee": 1, "dog": 1}},
        ),
        # One class alone is a class beside a split that has it, or others.
        (
            [*_in_classes("train"), "val/bee/1.jpg"],
            {"train": ONE_EACH, "val": {"bee": 1}},
        ),
        (
            [*_in_classes("train"), "val/dog/1.jpg"],
            {"train": ONE_EACH, "val": {"dog": 1}},
        ),
        ([*_in_classes("train"), "val/images/1.jpg"], {"train": ONE_EACH, "val": 1}),
        # Splits in each class.
        (
            [
                f"{c}/{s}/{i}.jpg"
                for c in CLASSES
                for s in ("train", "test")
                for i in "1"
            ],
            {"train": ONE_EACH, "test": ONE_EACH},
        ),
        # No splits.
        (["train/1.jpg", "car/1.jpg"], {"": {"car": 1, "train": 1}}),
        (_in_classes("photos/2019"), {"": ONE_EACH}),
        (["1.jpg", "2.png"], {"": 2}),
        ([*_in_classes("", number=4), "cover.jpg"], {"": dict.fromkeys(CLASSES, 4)}),
        ([*_in_classes(""), "1.jpg"], {"": 4}),
        ([*_in_classes(""), "unlabeled/1.jpg"], {"": ONE_EACH}),
        (["test/1.jpg", "1.jpg", "2.jpg"], {"": 3}),
    ],
)
def test_splits_and_classes(paths, expected):
    assert _counts(_understand(*paths)) == expected


def test_hidden_and_system_files_are_neither_classes_nor_images():
    hidden = [
        *("train/.ipynb_checkpoints/1.jpg", "train/@eaDir/1.jpg", "._1.jpg"),
        *("__MACOSX/train/ant/._0.jpg", "train/ant/@eaDir/0.jpg/SYNO.jpg"),
        *("train/ant/.thumbnails/0.jpg", "Thumbs.db", "train/DESKTOP.INI"),
        *("#recycle/1.jpg", "$RECYCLE.BIN/1.jpg", "lost+found/1.jpg"),
        *("System Volume Information/1.jpg", "val/.DS_Store", "val/thumbnails/1.jpg"),
    ]
    layout = _understand(*_in_classes("train", "val"), *hidden, "a.txt", "val/up/")
    assert _counts(layout) == {"train": ONE_EACH, "val": ONE_EACH}
    left = layout.left_out
    assert {reason: left[reason].count for reason in left} == {
        folder_layout.HIDDEN: len(hidden),
        folder_layout.NO_IMAGE: 1,
        folder_layout.LINK: 1,
    }
    assert left[folder_layout.NO_IMAGE].names == ["a.txt"]
    # A folder counts once.
    layout = _understand("x/@eaDir/1.jpg", "x/@eaDir/b/2.jpg", "x/1.jpg")
    assert layout.left_out[folder_layout.HIDDEN].names == ["x/@eaDir/"]


def test_stray_files_are_named():
    paths = [*_in_classes("train", "test"), "cover.jpg", "docs/1.jpg", "docs/2.jpg"]
    layout = _understand(*paths)
    outside = layout.left_out[folder_layout.OUTSIDE]
    assert outside == folder_layout.LeftOut(3, ["cover.jpg", "docs/"])
    assert "config.data.split='.'" in layout.remarks[0]


def test_other_readings_are_named_and_can_be_chosen():
    paths = ["train/1.jpg", "car/1.jpg"]
    assert "config.data.split=NAME" in _understand(*paths).remarks[0]
    assert _counts(_understand(*paths, top_folders="splits")) == {"train": 1, "car": 1}
    paths = _in_classes("train", "test")
    assert not _understand(*paths).remarks, "there is no other reading"
    layout = _understand(*paths, top_folders="classes")
    assert _counts(layout) == {"": {"train": 3, "test": 3}}
    (remark,) = _understand(*_in_classes("photos")).remarks
    assert "photos/ was read as a folder around the classes" in remark
    layout = _understand(*_in_classes("photos"), top_folders="classes")
    assert _counts(layout) == {"": 3}
    (remark,) = _understand("ant/1.jpg", "Ant/1.jpg").remarks
    assert "Ant, ant are different classes" in remark
    loose = [*_in_classes(""), "1.jpg"]
    assert "not read as classes" in _understand(*loose).remarks[0]
    layout = _understand(*loose, top_folders="classes")
    assert _counts(layout) == {"": ONE_EACH}
    assert layout.labels.tolist() == [-1, 0, 1, 2]


def test_the_table_shows_what_was_understood():
    paths = [
        *_in_classes("train", number=2),
        "val/ant/1.jpg",
        "notes.txt",
        ".git/1.jpg",
    ]
    lines = _understand(*paths).table().splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "split images classes",
        "train 6 3: ant 2, bee 2, cat 2",
        "val 1 1: ant 1, bee 0, cat 0",
        "left out: 1 hidden or of a system (.git/)",
        "left out: 1 not named as an image (notes.txt)",
    ]
    many = [
        f"{split}/{n:02}/{i}.jpg" for split in "ab" for n in range(30) for i in "12"
    ]
    layout = _understand(*many[1:80], top_folders="splits")
    _, a, b = layout.table().splitlines()
    assert a.endswith("30 of 1 to 2 images")
    assert b.endswith("10 of 2 to 2 images; none of 10, 11, 12, ...")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("train", "training_set"),
        ("Test", "test"),
        ("validation", "Val"),
        ("extra", None),
        ("2019", None),
    ],
)
def test_splits_are_found_by_meaning(wanted, found):
    splits = {"training_set": "train", "test": "test", "Val": "val"}
    assert split_names.find(wanted, splits, what="x") == found


def test_two_splits_of_one_meaning():
    splits = {"train": "train", "training": "train", "test": "test"}
    assert split_names.find("train", splits, what="x") == "train"
    assert split_names.find("val", splits, what="x") == "test"
    with pytest.raises(DataError, match="'Train' may be train or training"):
        split_names.find("Train", splits, what="x")
    with pytest.raises(DataError, match="train and training both mean"):
        split_names.to_train(splits, what="x")
    with pytest.raises(DataError, match="only the held-out splits val, test"):
        split_names.to_train({"val": "val", "test": "test"}, what="x")


# Both doors ---------------------------------------------------------------------------


def _write(root, names):
    buffer = io.BytesIO()
    for number, name in enumerate(names):
        buffer.seek(0)
        pixels = np.full((4, 5, 3), number, np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(buffer.getvalue())


def _linked(root):
    _write(root / "store", _in_classes(""))
    (root / "set").mkdir()
    for name in CLASSES:
        (root / "set" / name).symlink_to(root / "store" / name)
    return root / "set"


def _linked_twice(root):
    set_ = _linked(root)
    (set_ / "dog").symlink_to(root / "store" / "cat")
    return set_


def _hidden(root):
    _write(root, [*_in_classes("train", "val"), "train/.ipynb_checkpoints/1.jpg"])
    _write(root, ["train/@eaDir/1.jpg"])
    return root


def _apple(root):
    _write(root, _in_classes(""))
    (root / "ant/._0.jpg").write_bytes(b"\0\5\26\7")
    (root / ".DS_Store").write_bytes(b"\0")
    return root


def _of(*names):
    def make(root):
        _write(root, names)
        return root

    return make


TREES = {
    "linked": (_linked, {"train": 3}, CLASSES),
    "linked twice": (_linked_twice, {"train": 4}, [*CLASSES, "dog"]),
    "hidden": (_hidden, {"train": 3, "val": 3}, CLASSES),
    "apple double": (_apple, {"train": 3}, CLASSES),
    "kaggle": (
        _of(*_in_classes("training_set", "test_set")),
        {"train": 3, "test": 3},
        CLASSES,
    ),
    "val lacks a class": (
        _of(*_in_classes("train"), "val/bee/1.jpg"),
        {"train": 3, "val": 1},
        CLASSES,
    ),
    "flat splits": (
        _of("TRAIN/1.jpg", "Unlabelled/2.jpg", "Validation/3.jpg", "4.jpg"),
        {"train": 1, "validation": 1, "unlabeled": 1},
        None,
    ),
    "in classes": (
        _of("photos/a/train/1.jpg", "photos/b/train/2.jpg", "photos/b/test/1.jpg"),
        {"train": 2, "test": 1},
        ["a", "b"],
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_both_doors_agree(name, tmp_path):
    make, sizes, class_names = TREES[name]
    root = make(tmp_path)
    listing = entries.list_images(entries.FolderInput(str(root), without=""))
    assert listing.class_names == class_names
    splits = np.array(listing.splits or ["train"] * len(listing.entries))
    assert {s: int((splits == s).sum()) for s in splits.tolist()} == sizes
    for split in sizes:
        wanted = split if listing.splits else "all"
        source = folder.FolderSource(str(root), split=wanted)
        chosen = np.flatnonzero(splits == split)
        files = [
            entries.FolderInput(str(root), without="").read(listing.entries[n])
            for n in chosen
        ]
        records, labels = source.read(np.arange(source.num_examples))
        assert records.tolist() == files
        assert labels.tolist() == listing.labels[chosen].tolist()
        assert source.class_names == (class_names if (labels >= 0).any() else None)


def test_all_leaves_out_what_is_held_out(tmp_path, caplog):
    names = [*_in_classes("train", "test"), "unlabeled/1.jpg", "unlabeled/a/2.jpg"]
    _write(tmp_path, names)
    with caplog.at_level(logging.INFO):
        source = folder.FolderSource(str(tmp_path))
        folder.FolderSource(str(tmp_path))
    assert source.labels.tolist() == [0, 1, 2, -1, -1]
    assert source.num_classes == 3
    assert "split 'all' is train, unlabeled, without test: 5 images" in caplog.text
    assert caplog.text.count("classes\n") == 1, "the table comes once"
    assert folder.FolderSource(str(tmp_path), split="unlabeled").class_names is None
    assert folder.FolderSource(str(tmp_path), split=".").num_examples == len(names)


def test_only_a_test_split(tmp_path, caplog):
    _write(tmp_path, _in_classes("test"))
    with pytest.raises(DataError, match=r"only the held-out splits test.*data\.split"):
        folder.FolderSource(str(tmp_path))
    assert folder.FolderSource(str(tmp_path), split="val").split == "test"
    assert "the test split test takes its place" in caplog.text
    with pytest.raises(DataError, match=r"'train' means a sub-folder.*there: test"):
        folder.FolderSource(str(tmp_path), split="train")


def test_any_sub_folder_may_be_a_split(tmp_path):
    _write(tmp_path, [*_in_classes("train"), *_in_classes("car")])
    assert folder.FolderSource(str(tmp_path)).class_names == ["car", "train"]
    for split in ("train", "car"):
        source = folder.FolderSource(str(tmp_path), split=split)
        assert (source.num_examples, source.class_names) == (3, CLASSES)


def test_splits_of_one_name_cannot_be_prepared(tmp_path):
    _write(tmp_path, _in_classes("train", "training", "test"))
    source = entries.FolderInput(str(tmp_path), without="")
    with pytest.raises(DataError, match="train and training would both be the split"):
        entries.list_images(source)
    assert entries.list_images(source, "splits").class_names == CLASSES


def test_archives_are_understood_alike(tmp_path):
    import zipfile

    _write(tmp_path / "x", _in_classes("Training_Set", "Test_Set"))
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in (tmp_path / "x").rglob("*.jpg"):
            archive.write(file, f"data/{file.relative_to(tmp_path / 'x')}")
        archive.writestr("__MACOSX/data/._Training_Set", b"")
    listing = entries.list_images(archives.ZipInput(str(path)))
    assert listing.class_names == CLASSES
    assert sorted({*listing.splits}) == ["test", "train"]


def test_globs_do_not_go_round_links(tmp_path):
    _write(tmp_path, _in_classes(""))
    (tmp_path / "ant" / "up").symlink_to(tmp_path)
    for pattern in ("**/*.jpg", "*/*.jpg", "*", "**"):
        source = entries.FolderInput(f"{tmp_path}/{pattern}", without="")
        listing = entries.list_images(source)
        assert [entry.path for entry in listing.entries] == _in_classes(""), pattern
        assert listing.class_names == CLASSES

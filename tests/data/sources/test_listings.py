"""What tells one dataset from another, for every kind of source."""

import dataclasses
import json
import shutil
import time

import numpy as np
import pytest
from PIL import Image
from tfds_files import prepare

from simclr_jax.data.sources import arrays, in_memory, listings, registry, subsets
from simclr_jax.data.sources.listings import Listing
from simclr_jax.prepare import build

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 9, 3), np.uint8)


def save_folder(root, count=12, classes=3):
    for number in range(count):
        path = root / f"class{number % classes}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[number]).save(path)
    return root


def open_folder(root):
    return registry.open_source(f"folder:{root}", split="all")


def test_a_folder_is_the_same_at_another_place_and_time(tmp_path):
    save_folder(tmp_path / "here")
    here = open_folder(tmp_path / "here").listing()
    shutil.copytree(tmp_path / "here", tmp_path / "there")  # new times, too
    there = open_folder(tmp_path / "there").listing()
    assert here == there
    assert here.fingerprint == there.fingerprint
    assert here.num_examples == 12
    assert here.class_names == ["class0", "class1", "class2"]
    size = (tmp_path / "here/class0/00.png").stat().st_size
    assert here.entries["class0/00.png"] == f"{size} bytes"
    assert listings.from_json(json.loads(json.dumps(here.as_json()))) == here


def test_a_change_of_a_folder_is_named(tmp_path):
    root = save_folder(tmp_path)
    before = open_folder(root).listing()
    (root / "class1/04.png").unlink()
    after = open_folder(root).listing()
    assert before.fingerprint != after.fingerprint
    assert listings.differences(before, after) == [
        "12 -> 11 examples",
        "file class1/04.png removed",
    ]
    assert listings.differences(after, before) == [
        "11 -> 12 examples",
        "file class1/04.png added",
    ]
    (root / "class1/04.png").write_bytes((root / "class1/01.png").read_bytes())
    with (root / "class1/04.png").open("ab") as file:
        file.write(b"\0")
    (found,) = listings.differences(before, open_folder(root).listing())
    assert found.startswith("file class1/04.png: ")
    shutil.rmtree(root / "class2")
    (root / "class0").rename(root / "another")
    found = listings.differences(before, open_folder(root).listing())
    assert found[:3] == [
        "12 -> 8 examples",
        "classes removed: class0, class2",
        "classes added: another",
    ]
    assert found[3].startswith("file another/00.png added, another/03.png added, ")
    assert found[3].endswith(" more")


def test_a_large_folder_is_listed_by_sub_folder(monkeypatch):
    monkeypatch.setattr(listings, "MOST_FILES", 4)
    paths = ["0.png", "1.png", "a/0.png", "a/b/1.png", "b/0.png"]
    sizes = np.arange(5)
    unit, entries = listings.of_files(paths, sizes)
    assert unit == "folder"
    assert [*entries] == ["./", "a/", "b/"]
    assert entries["a/"].startswith("2 files ")
    # One changed size, one changed name.
    _, others = listings.of_files(paths, np.array([0, 1, 2, 9, 4]))
    assert {n for n in entries if entries[n] != others[n]} == {"a/"}
    _, others = listings.of_files([*paths[:3], "a/b/2.png", paths[4]], sizes)
    assert {n for n in entries if entries[n] != others[n]} == {"a/"}
    assert listings.of_files(paths[:4], sizes[:4])[0] == "file"


def test_a_folder_of_imagenets_size_takes_less_than_a_second():
    paths = [f"n{n:08}/n{n:08}_{i:05}.JPEG" for n in range(1000) for i in range(1281)]
    sizes = np.random.default_rng(0).integers(1, 10**6, len(paths))
    start = time.process_time()
    unit, entries = listings.of_files(paths, sizes)
    fingerprint = Listing(len(paths), 1000, None, unit, entries).fingerprint
    assert time.process_time() - start < 1
    assert len(entries) == 1000
    assert len(fingerprint) == 16


def test_arrays_are_told_apart_by_shape_and_content():
    labels = np.arange(12, dtype=np.int32) % 3
    before = arrays.ArraySource(IMAGES, labels, name="memory").listing()
    assert before.entries["images"].startswith("12x8x9x3 uint8 ")
    changed = IMAGES.copy()
    changed[7, 3, 3, 0] ^= 1
    other = arrays.ArraySource(changed, labels, name="memory").listing()
    (found,) = listings.differences(before, other)
    assert found.startswith("array images: 12x8x9x3 uint8 ")
    swapped = arrays.ArraySource(IMAGES, labels[::-1], name="memory").listing()
    (found,) = listings.differences(before, swapped)
    assert found.startswith("array labels: 12 int32 ")
    shorter = arrays.ArraySource(IMAGES[:11], labels[:11], name="memory").listing()
    assert listings.differences(before, shorter)[0] == "12 -> 11 examples"
    unlabelled = arrays.ArraySource(IMAGES, name="memory").listing()
    assert "3 -> no classes" in listings.differences(before, unlabelled)


def test_of_large_arrays_parts_are_hashed(monkeypatch):
    monkeypatch.setattr(listings, "_HASHED_BYTES", IMAGES.nbytes // 3)
    before = listings.of_array(IMAGES)
    for number, same in ((0, False), (1, True), (3, False)):
        changed = IMAGES.copy()
        changed[number] ^= 255
        assert (listings.of_array(changed) == before) is same


def test_synthetic_images_are_told_apart_by_size():
    eight = registry.open_source("synthetic:8", split="train").listing()
    nine = registry.open_source("synthetic:9", split="train").listing()
    assert eight.num_examples == 1_281_167
    assert any("images: 64x8x8x3" in d for d in listings.differences(eight, nine))


def test_a_dataset_in_memory_or_a_part_of_one_is_the_whole_dataset(tmp_path):
    source = open_folder(save_folder(tmp_path))
    expected = source.listing()
    held = in_memory.hold(source, limit_mb=10)
    assert isinstance(held, arrays.ArraySource)
    assert held.listing() == expected
    shapes = [image[: 5 + n] for n, image in enumerate(IMAGES[:3])]
    files = arrays.HeldFiles(source, shapes, np.zeros(3, np.int32))
    assert files.listing() == expected
    half = subsets.class_balanced(source, 0.5, seed=0)
    assert half.num_examples == 6
    assert half.listing() == expected


def test_tfds_shards_are_listed_wherever_they_lie(tmp_path):
    listed = {}
    for place in ("here", "there"):
        prepare(tmp_path / place, shards=(5, 4, 3))
        source = registry.open_source(
            "noise", split="train", data_dir=str(tmp_path / place)
        )
        listed[place] = source.listing()
    assert listed["here"] == listed["there"]
    assert listed["here"].num_examples == 12
    assert listed["here"].entries["version"] == "1.0.0"
    parts = [name for name in listed["here"].entries if "noise-train" in name]
    assert [listed["here"].entries[name] for name in parts] == [
        "5 from 0 on of 5",
        "4 from 0 on of 4",
        "3 from 0 on of 3",
    ]
    first = registry.open_source(
        "noise", split="train[:7]", data_dir=str(tmp_path / "here")
    )
    found = listings.differences(listed["here"], first.listing())
    assert found[0] == "12 -> 7 examples"
    assert found[1].startswith("shard noise-train.tfrecord-00001-of-00003: 4 from 0")


def test_a_prepared_dataset_is_listed_by_its_manifest(tmp_path):
    for place, count in (("here", 12), ("same", 12), ("less", 11)):
        root = save_folder(tmp_path / f"{place}-files", count)
        options = build.Options(input=str(root))
        build.prepare(options, str(tmp_path / place), num_workers=1)

    def listing(place):
        source = registry.open_source(f"prepared:{tmp_path / place}", split="all")
        return source.listing()

    here = listing("here")
    assert here == listing("same")
    manifest = json.loads((tmp_path / "here/manifest.json").read_text())
    (split,) = manifest["splits"].values()
    assert here.entries[split["shards"][0]["file"]] == split["shards"][0]["sha256"]
    found = listings.differences(here, listing("less"))
    assert found[0] == "12 -> 11 examples"
    assert found[1].startswith("shard ")


def test_an_order_or_a_unit_that_changes_is_named():
    one = Listing(2, 2, ["a", "b"], "file", {"a/0": "1", "b/0": "1"})
    assert listings.differences(one, one) == []
    turned = dataclasses.replace(one, class_names=["b", "a"])
    assert listings.differences(one, turned) == ["classes in another order"]
    moved = dataclasses.replace(one, entries={"b/0": "1", "a/0": "1"})
    assert listings.differences(one, moved) == ["files in another order"]
    assert one.fingerprint != moved.fingerprint
    by_folder = dataclasses.replace(one, unit="folder")
    assert listings.differences(one, by_folder) == ["a list by file -> by folder"]


@pytest.mark.parametrize("content", [[], {}, {"entries": 1}, None, "text"])
def test_what_is_no_listing_is_refused(content):
    with pytest.raises(ValueError, match="must be an object"):
        listings.from_json(content)

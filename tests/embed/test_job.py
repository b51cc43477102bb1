"""Features of datasets of every kind, with names, labels, and what cannot be read."""

import csv
import dataclasses

import embed_runs
import jax
import numpy as np
import pytest

from simclr_jax import parallel
from simclr_jax.data.sources import prepared
from simclr_jax.embed import extraction, job, outputs, writing
from simclr_jax.embed.parts import Part
from simclr_jax.errors import ConfigError, DataError, RunFailed
from simclr_jax.weights import load

COUNT = 45
COLOURS = np.random.default_rng(0).integers(0, 256, (COUNT, 3))


@pytest.fixture(autouse=True)
def opened(monkeypatch):
    """Small parts; two devices; returns the steps that were opened."""
    monkeypatch.setattr(extraction, "PART_IMAGES", 16)
    monkeypatch.setattr(job, "PART_IMAGES", 16)
    steps = []

    def open_program(path, *, step=None):
        steps.append((path, step))
        return embed_runs.program()

    monkeypatch.setattr(load, "load", open_program)
    create = parallel.create_mesh
    monkeypatch.setattr(
        parallel, "create_mesh", lambda devices=None: create(jax.devices()[:2])
    )
    return steps


def npz(tmp_path, labels=None):
    """A dataset in memory, which needs no TensorFlow."""
    images = np.broadcast_to(COLOURS[:, None, None].astype("u1"), (COUNT, 6, 6, 3))
    arrays = {} if labels is None else {"labels": labels}
    np.savez(tmp_path / "images.npz", images=images, **arrays)
    return f"npz:{tmp_path}/images.npz"


def embed(tmp_path, dataset, name="out.npz", **options):
    options = {"batch_size": 6, **options}
    output = str(tmp_path / name)
    return job.embed(job.Options("run", dataset, output, **options))


def read(path):
    """All arrays, without pickle."""
    with np.load(path) as file:
        return dict(file)


def rows(path):
    with open(path, newline="") as file:
        return [*csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def test_features_of_arrays_have_their_names_and_labels(tmp_path, opened):
    labels = np.arange(COUNT) % 5
    said = embed(tmp_path, npz(tmp_path, labels), step=3)
    assert said.startswith("45 images, 6 features each: ")
    assert opened == [("run", 3)]
    found = read(tmp_path / "out.npz")
    assert {name: array.dtype.kind for name, array in found.items()} == {
        "features": "f",
        "index": "i",
        "labels": "i",
        "paths": "U",
        "class_names": "U",
    }
    assert found["features"].dtype == np.float32
    np.testing.assert_allclose(
        found["features"], embed_runs.expected(COLOURS), rtol=1e-5, atol=1e-3
    )
    np.testing.assert_array_equal(found["index"], np.arange(COUNT))
    np.testing.assert_array_equal(found["labels"], labels)
    assert found["paths"][7] == f"image 7 of npz:{tmp_path}/images.npz"
    assert len(found["class_names"]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"images.npz", "out.npz"}


def test_files_keep_their_names_and_broken_ones_are_listed(tmp_path):
    odd = "tab\tline\n\udcff"
    classes = ("a", odd)
    files = embed_runs.write_folder(tmp_path / "images", COLOURS, classes)
    colours = {path.name: c for path, c in zip(files, COLOURS, strict=True)}
    # Of the second part: no image; cut; empty. And a whole part.
    whole = files[20].read_bytes()
    files[17].write_text("no image")
    files[20].write_bytes(whole[: len(whole) // 2])
    files[40].write_bytes(b"")
    broken = [17, 20, 40]
    said = embed(tmp_path, f"folder:{tmp_path}/images")
    assert "42 images" in said
    assert f"3 broken images are left out: {tmp_path}/out.broken.tsv" in said
    found = read(tmp_path / "out.npz")
    good = np.setdiff1d(np.arange(COUNT), broken)
    np.testing.assert_array_equal(found["index"], good)
    assert found["paths"].tolist() == [str(files[number]) for number in good]
    assert found["class_names"].tolist() == ["a", odd]
    assert [found["class_names"][label] for label in found["labels"]] == [
        files[number].parent.name for number in good
    ]
    wanted = np.array([colours[files[number].name] for number in good])
    np.testing.assert_allclose(
        found["features"], embed_runs.expected(wanted), rtol=1e-4, atol=1e-2
    )
    listed = rows(tmp_path / "out.broken.tsv")
    assert [row["index"] for row in listed] == ["17", "20", "40"]
    assert "no image of a known kind" in listed[0]["reason"]
    assert "{{" not in listed[1]["reason"]
    assert listed[2]["path"].endswith("/tab\\tline\\n\\udcff/040.png")


def test_a_stopped_command_goes_on_where_it_was(tmp_path, monkeypatch):
    dataset = npz(tmp_path)
    embed(tmp_path, dataset, "whole.npz")
    encoded, extract = [], extraction.features.extract

    def counted(*args, num_examples, **options):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(num_examples)
        return extract(*args, num_examples=num_examples, **options)

    monkeypatch.setattr(extraction.features, "extract", counted)
    with pytest.raises(KeyboardInterrupt):
        embed(tmp_path, dataset)
    assert encoded == [16, 16]
    assert not (tmp_path / "out.npz").exists()
    parts = tmp_path / "out.npz.parts"
    names = {path.name for path in parts.iterdir()}
    assert names == {"index.json", "part-000000.npz", "part-000001.npz"}
    # A part that was half written does not count.
    (parts / "part-000001.npz").write_bytes(b"PK\3\4")
    del encoded[:]
    embed(tmp_path, dataset)
    assert encoded == [16, 13]
    assert not parts.exists()
    whole, resumed = (tmp_path / name for name in ("whole.npz", "out.npz"))
    assert whole.read_bytes() == resumed.read_bytes()


def test_parts_of_anything_else_are_not_used(tmp_path, monkeypatch, caplog):
    dataset = npz(tmp_path)
    options = job.Options("run", dataset, str(tmp_path / "out.npz"), batch_size=6)
    source = job._open(options)
    parts = job.Parts(options.output)

    def kept(what):
        parts.open(what)
        parts.write(0, Part(*_nothing(), {}))
        return parts.has(0)

    program = embed_runs.program()
    what = job._describe(options, source, program)
    assert kept(what)
    parts.open(what)
    assert parts.has(0), "the same command finds it"
    np.savez(tmp_path / "more.npz", images=np.zeros((COUNT, 6, 6, 3), np.uint8))
    other = dataclasses.replace(options, dataset=f"npz:{tmp_path}/more.npz")
    for changed, differing in (
        (job._describe(options, source, embed_runs.program(2.0)), "weights"),
        (job._describe(options, job._open(other), program), "content, images"),
        ({**what, "version": "0.0"}, "version"),
        ({**what, "format": 0}, "format"),
        ({**what, "layer": -1}, "layer"),
        ({**what, "preprocessing": {"image_size": 8}}, "preprocessing"),
    ):
        assert kept(what)
        parts.open(changed)
        assert not parts.has(0), differing
        assert f"differ in {differing}" in caplog.text
        caplog.clear()
    parts.delete()
    parts.folder.mkdir()
    (parts.folder / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"out.npz.parts: must be free"):
        embed(tmp_path, dataset)
    assert (parts.folder / "precious.txt").exists()


def _nothing():
    return np.zeros((0, 6), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int32)


def test_an_output_is_replaced_only_where_that_is_asked_for(tmp_path):
    dataset = npz(tmp_path)
    for name in ("out.npz", "out.neighbours.tsv"):
        (tmp_path / name).write_text("old")
        with pytest.raises(ConfigError, match=rf"{name} exists; --overwrite"):
            embed(tmp_path, dataset)
        assert (tmp_path / name).read_text() == "old"
        embed(tmp_path, dataset, overwrite=True)
        assert len(read(tmp_path / "out.npz")["index"]) == COUNT
        assert not (tmp_path / "out.neighbours.tsv").exists(), "it is of the old one"
        (tmp_path / "out.npz").unlink()


def test_neighbours_and_duplicates_have_names(tmp_path, monkeypatch):
    colours = COLOURS.copy()
    colours[[30, 33]] = colours[4]
    files = embed_runs.write_folder(tmp_path / "images", colours)
    files[2].write_text("no image")
    dataset = f"folder:{tmp_path}/images"
    said = embed(tmp_path, dataset, neighbours=2, duplicates_above=1)
    assert f"3 pairs of similarity 1 or more: {tmp_path}/out.duplicates.tsv" in said
    listed = rows(tmp_path / "out.neighbours.tsv")
    assert len(listed) == 2 * (COUNT - 1)
    assert [*listed[0]] == [
        *("path", "rank", "neighbour", "similarity", "index", "neighbour_index")
    ]
    of_copy = [row for row in listed if row["index"] == "30"]
    assert [row["neighbour_index"] for row in of_copy] == ["4", "33"]
    assert [row["rank"] for row in of_copy] == ["1", "2"]
    assert {row["similarity"] for row in of_copy} == {"1.000000"}
    assert of_copy[1]["neighbour"] == str(files[33])
    pairs = rows(tmp_path / "out.duplicates.tsv")
    numbers = [(row["index"], row["duplicate_index"]) for row in pairs]
    assert numbers == [("4", "30"), ("4", "33"), ("30", "33")]
    assert pairs[0]["path"] == str(files[4])
    # A list of too many pairs ends.
    monkeypatch.setattr(writing, "MOST_PAIRS", 2)
    embed(tmp_path, dataset, neighbours=2, duplicates_above=1, overwrite=True)
    assert len(rows(tmp_path / "out.duplicates.tsv")) == 2


def test_parquet_holds_the_same(tmp_path):
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    embed_runs.write_folder(tmp_path / "images", COLOURS, ("a", "\udcff\t"))
    for name in ("out.npz", "out.parquet"):
        embed(tmp_path, f"folder:{tmp_path}/images", name)
    arrays = read(tmp_path / "out.npz")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["path", "index", "label", "class_name", "features"]
    np.testing.assert_array_equal(
        np.array(table["features"].to_pylist(), np.float32), arrays["features"]
    )
    np.testing.assert_array_equal(table["label"].to_numpy(), arrays["labels"])
    assert set(table["class_name"].to_pylist()) == {"a", "\\udcff\t"}
    assert table["path"][0].as_py() == arrays["paths"][0]
    assert parquet.ParquetFile(tmp_path / "out.parquet").num_row_groups == 3


BAD = [
    ({"output": "out.csv"}, r"--output=.*out.csv: must end in .npz or .parquet"),
    ({"output": "folder.npz"}, r"--output=.*folder.npz: must be a file"),
    ({"duplicates_above": 1.5}, r"--duplicates_above=1.5: must be"),
    ({"duplicates_above": float("nan")}, r"--duplicates_above=nan: must be"),
    ({"neighbours": COUNT}, rf"--neighbours={COUNT}: must be less than the {COUNT} "),
    ({"layer": 1}, r"--layer=1: must be 0, since a StableHLO"),
    ({"dataset": "cifar10"}, r"--split: must be given for --dataset=cifar10"),
    ({"dataset": "npz:{split}.npz"}, r"--split: must be given"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_bad_flags_are_named_before_any_work(tmp_path, change, words):
    (tmp_path / "folder.npz").mkdir()
    change = {"dataset": npz(tmp_path), "output": "out.npz", **change}
    change["output"] = str(tmp_path / change["output"])
    with pytest.raises(ConfigError, match=words):
        job.embed(job.Options("run", **change))
    assert not (tmp_path / "out.npz.parts").exists()


def test_parquet_needs_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package pyarrow.*\[parquet\]"):
        embed(tmp_path, npz(tmp_path), "out.parquet")


def test_without_any_image_nothing_is_written(tmp_path):
    for path in embed_runs.write_folder(tmp_path / "images", COLOURS[:20]):
        path.write_text("no image")
    with pytest.raises(DataError, match=r"none of its 20 images can be read, such as"):
        embed(tmp_path, f"folder:{tmp_path}/images")
    assert not (tmp_path / "out.npz").exists()


def test_features_that_are_no_numbers_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        load, "load", lambda path, step: embed_runs.program(float("inf"))
    )
    with pytest.raises(RunFailed, match=r"image \d+ of npz:.* not finite"):
        embed(tmp_path, npz(tmp_path))


def test_the_name_of_a_record_is_read_without_its_image():
    def field(number, content):
        assert len(content) < 128
        return bytes([number << 3 | 2, len(content)]) + content

    def entry(name, value):
        feature = field(1, field(1, value))
        return field(1, field(1, name) + field(2, feature))

    name, image = entry(b"file_name", b"a/1 \xff.jpg"), entry(b"image", b"x" * 50)
    example = field(1, name + image)
    for length in (len(example), 2 + len(name)):
        found = prepared.find_file_name(example[:length], len(example))
        assert found == b"a/1 \xff.jpg"
    for other in (field(1, image), example[:9], b""):
        with pytest.raises((KeyError, IndexError)):
            prepared.find_file_name(other, len(other))

"""Lists, several inputs, globs with braces, shards of WebDataset."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from simclr_jax import paths
from simclr_jax.data.sources import registry, storage
from simclr_jax.errors import DataError
from simclr_jax.prepare import archives, build, entries, inputs, patterns


def _image(seed=0, kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _listing(given, tmp_path):
    source = inputs.open_input(str(given), scratch=f"{tmp_path}/scratch", without="")
    listing = entries.list_images(source)
    # As in other processes.
    travelled = pickle.loads(pickle.dumps(source))
    for entry in listing.entries:
        if entry.size:
            assert travelled.read(entry)[:4] == _image()[:4]
    return listing


def _labels(listing):
    """(class name or None, split) of each path."""
    splits = listing.splits or [None] * len(listing.entries)
    return {
        entry.path: (listing.class_names[label] if label >= 0 else None, split)
        for entry, label, split in zip(
            listing.entries, listing.labels, splits, strict=True
        )
    }


def _message(given, tmp_path, *parts):
    with pytest.raises(DataError) as caught:
        _listing(given, tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    for part in ("--input", *parts):
        assert str(part) in text, text


# Lists --------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path):
    for number in range(4):
        _write(tmp_path / "images" / f"{number}.png", _image(number))
    return tmp_path / "images"


EXPECTED = {
    "images/0.png": ("ant", "train"),
    "images/1.png": ("bee", "val"),
    "images/2.png": (None, "train"),
}
ROWS = [("images/0.png", "ant", "train"), ("images/1.png", "bee", "val")]
ROWS.append(("images/2.png", "", "Train"))


def _table(header, delimiter=",", end="\n", quote=""):
    rows = [[*header], *ROWS] if header else ROWS
    lines = [delimiter.join(f"{quote}{c}{quote}" for c in row) for row in rows]
    return end.join([*lines, ""])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", _table(("path", "label", "split"))),
        ("a.csv", _table(("File Name", "Class", "subset"), end="\r\n")),
        ("a.tsv", _table(("filename", "target", "SET"), "\t")),
        ("a.csv", _table(("image", "category", "partition"), ";", quote='"')),
        ("a.csv", "\ufeff" + _table(())),
        ("a.CSV", _table((), ", ").replace("\n", "\n\n,,\n")),
        ("a.csv", _table(("img_path", "y", "split"), "|", end="\r")),
        ("a.csv", _table(("path", "label", "split")).replace("images/", "images\\")),
        ("a.csv", _table(()).replace("images/1", "./images/../images/1")),
    ],
)
def test_lists_as_people_write_them(name, text, images, tmp_path):
    path = _write(tmp_path / name, text.encode())
    assert _labels(_listing(path, tmp_path)) == EXPECTED


def test_a_list_of_a_spreadsheet_in_utf_16(images, tmp_path):
    text = _table(("path", "label", "split"), "\t").replace("ant", "Käfer")
    path = _write(tmp_path / "a.tsv", text.encode("utf-16"))
    assert _labels(_listing(path, tmp_path))["images/0.png"] == ("Käfer", "train")


def test_columns_in_another_order_beside_others(images, tmp_path):
    text = 'id,label,image\n7,"big, red ""ant""",images/0.png\n8,b,images/1.png\n'
    listing = _listing(_write(tmp_path / "a.csv", text.encode()), tmp_path)
    assert listing.class_names == ["b", 'big, red "ant"']
    assert listing.splits is None
    assert listing.labels.tolist() == [1, 0]


def test_numbers_are_classes_in_the_order_of_their_values(images, tmp_path):
    for labels in (("10", "9", "-1"), ("10.0", "9.0", "-1.0")):
        text = "".join(f"images/{i},{n}\n" for i, n in enumerate(labels))
        path = _write(tmp_path / "a.csv", text.replace(",", ".png,").encode())
        listing = _listing(path, tmp_path)
        assert listing.class_names == list(labels[::-1])
        assert listing.labels.tolist() == [2, 1, 0]


def test_paths_alone_are_images_without_labels(images, tmp_path):
    absolute = f"path\n{images / '3.png'}\nimages/0.png\n{images}/0.png\n"
    listing = _listing(_write(tmp_path / "a.csv", absolute.encode()), tmp_path)
    assert list(_labels(listing)) == ["images/0.png", "images/3.png"]
    assert listing.class_names is None
    assert listing.counts_left_out() == {"rows that repeat another": 1}
    elsewhere = _write(tmp_path / "lists" / "a.csv", absolute.encode())
    elsewhere.write_text(f"{images}/0.png\n../images/1.png\n")
    listing = _listing(elsewhere, tmp_path)
    assert list(_labels(listing)) == [f"{images}/0.png", f"{tmp_path}/images/1.png"]


def test_missing_files_are_broken_images_of_their_line(images, tmp_path):
    text = "path,label\nimages/0.png,a\n\nimages/none.png,b\nimages,b\n"
    path = _write(tmp_path / "a.csv", text.encode())
    options = build.Options(input=str(path))
    manifest = build.prepare(options, str(tmp_path / "out"), num_workers=1)
    assert (manifest["num_images"], manifest["num_broken"]) == (1, 2)
    assert manifest["class_names"] == ["a", "b"]
    assert (tmp_path / "out" / "broken.tsv").read_text().splitlines() == [
        "images\tcannot be read (line 5 of the list: Is a directory)",
        "images/none.png\tcannot be read (line 4 of the list: No such file or "
        "directory)",
    ]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("holds no row",)),
        ("label,split\nx,y\n", ("line 1", "label, split", "path")),
        ("hello\nworld\n", ("line 1", "'hello'", "header")),
        ("a.png,b,c,d\n", ("line 1", "4 columns", "no header")),
        ("path,label\na.png,b\n\nb.png,x,y\n", ("line 4", "3 columns", "quotation")),
        ("path,label\n,b\n", ("line 2", "no path")),
        ("path,label\na.png,b\na.png,c\n", ("line 3", "'c'", "line 2", "'b'")),
        ("path,split\na.png,all\n", ("line 2", "'all'")),
        ("path,split\na.png,a/b\n", ("line 2", "letters")),
        ("path\nhttp://a/b.png\n", ("line 2", "http://a/b.png", "gs://")),
        ('path\n"a.png\nb.png\n', ("line 2", "no row of a table")),
        ("path,path\na.png,b.png\n", ("line 1", "column path", "once")),
        (b"path\na.png\n\xff\xfa.png\n", ("line 3", "UTF-8")),
    ],
)
def test_wrong_lists_are_refused_with_the_line(text, parts, tmp_path):
    content = text if isinstance(text, bytes) else text.encode()
    path = _write(tmp_path / "a.csv", content)
    _message(path, tmp_path, path, *parts)


def test_a_list_on_a_store(gcs, images, tmp_path):
    paths.upload(images, paths.as_path(f"{gcs}/images"))
    local = images / "3.png"
    text = f"images/0.png,a\n{gcs}/images/1.png,b\n{local},b\nimages/none.png,a\n"
    paths.as_path(f"{gcs}/a.csv").write_text(text)
    listing = _listing(f"{gcs}/a.csv", tmp_path)
    assert _labels(listing) == {
        "images/0.png": ("a", None),
        "images/1.png": ("b", None),
        "images/none.png": ("a", None),
        str(local): ("b", None),
    }
    assert [entry.size > 0 for entry in listing.entries] == [True, True, True, False]


# Several inputs -----------------------------------------------------------------------


def _classes(root, names, number=2):
    for k, name in enumerate(names):
        for i in range(number):
            _write(root / name / f"{i}.png", _image(10 * k + i))
    return root


def test_classes_of_several_inputs_are_matched_by_name(tmp_path):
    one = _classes(tmp_path / "a" / "photos", ("cat", "ant"))
    two = _classes(tmp_path / "b" / "photos", ("bee", "cat", "dog"), 1)
    text = "photos/bee/0.png,dog\n"
    three = _write(tmp_path / "b" / "more.csv", text.encode())
    four = _classes(tmp_path / "c", ("cat",), 1)
    flat = _write(tmp_path / "flat" / "0.png", _image()).parent
    given = f"{one}/,{two},{three},{four}, {flat}"
    listing = _listing(given, tmp_path)
    assert listing.class_names == ["ant", "bee", "cat", "dog"]
    assert _labels(listing) == {
        "a/photos/ant/0.png": ("ant", None),
        "a/photos/ant/1.png": ("ant", None),
        "a/photos/cat/0.png": ("cat", None),
        "a/photos/cat/1.png": ("cat", None),
        "b/photos/bee/0.png": ("bee", None),
        "b/photos/cat/0.png": ("cat", None),
        "b/photos/dog/0.png": ("dog", None),
        "b/more.csv/photos/bee/0.png": ("dog", None),
        "c/cat/0.png": ("cat", None),
        "flat/0.png": (None, None),
    }


def test_inputs_named_like_splits_are_splits(tmp_path):
    _classes(tmp_path / "train", ("ant", "bee"))
    _classes(tmp_path / "val", ("bee", "cat"), 1)
    found = _labels(_listing(f"{tmp_path}/train,{tmp_path}/val/", tmp_path))
    assert found["train/ant/0.png"] == ("ant", "train")
    assert found["val/bee/0.png"] == ("bee", "val")
    assert len(found) == 6


def test_several_inputs_become_one_dataset(tmp_path):
    one = _classes(tmp_path / "one", ("ant", "bee"))
    two = _write(tmp_path / "a.csv", b"path,label,split\none/bee/0.png,ant,val\n")
    text = f"{one},{two}"
    options = build.Options(input=text)
    manifest = build.prepare(options, str(tmp_path / "out"), num_workers=1)
    # Images of an input without splits are those of --split.
    train, val = (manifest["splits"][split] for split in ("train", "val"))
    assert train["images_per_class"] == {"ant": 2, "bee": 2}
    assert val["images_per_class"] == {"ant": 1, "bee": 0}
    source = registry.open_source(f"prepared:{tmp_path}/out", split="val")
    assert source.read(np.array([0]))[0][0] == _image(10)
    assert build.prepare(options, str(tmp_path / "out"), num_workers=1) == manifest


def test_inputs_must_differ(tmp_path):
    root = _classes(tmp_path / "a", ("ant", "bee"))
    _message(f"{root},{root}", tmp_path, "twice", root)
    nested = _write(root / "bee" / "more" / "0.png", _image()).parent
    _message(f"{root},{nested}", tmp_path, "must not lie in each other", nested)
    _message(f"{root},{root}/none", tmp_path, f"{root}/none", "no such file")


def test_a_folder_with_a_comma_is_one_input(tmp_path):
    _classes(tmp_path / "a,b", ("ant", "bee"))
    assert len(_labels(_listing(tmp_path / "a,b", tmp_path))) == 4


# Globs with braces --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a{b,c}d", ["abd", "acd"]),
        ("{008..011}", ["008", "009", "010", "011"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b{1,2}}-{x,}", ["a-x", "a-", "b1-x", "b1-", "b2-x", "b2-"]),
        ("{a}{}{0..}{,", ["{a}{}{0..}{,"]),
        ("{1..2}{a}", ["1{a}", "2{a}"]),
    ],
)
def test_braces_are_those_of_a_shell(pattern, names):
    assert patterns.expand_braces(pattern) == names


def test_too_many_names_are_refused(monkeypatch):
    monkeypatch.setattr(patterns, "_MOST_NAMES", 1000)
    for pattern in ("{0..1000}", "{0..99}{0..99}"):
        with pytest.raises(DataError, match="more than 1,000 names"):
            patterns.expand_braces(pattern)


def test_globs_with_braces(tmp_path):
    root = _classes(tmp_path / "set", ("ant", "bee", "cat", "x{1}"))
    found = _labels(_listing(f"{root}/{{ant,c*}}/[01].png", tmp_path))
    assert found == {
        f"{name}/{i}.png": (name, None) for name in ("ant", "cat") for i in (0, 1)
    }
    folders = _labels(_listing(f"{root}/{{ant,bee}}", tmp_path))
    assert set(folders.values()) == {("ant", None), ("bee", None)}
    assert len(_labels(_listing(f"{root}/x{{1}}", tmp_path))) == 2
    _message(f"{root}/{{ant,dog}}/0.png", tmp_path, "set/dog/0.png", "one of 2")


def test_globs_with_braces_on_a_store(gcs, tmp_path):
    root = _classes(tmp_path / "set", ("ant", "bee", "cat"))
    paths.upload(root, paths.as_path(f"{gcs}/set"))
    for pattern in ("{ant,c*}/{0..1}.png", "{ant,cat}"):
        found = _labels(_listing(f"{gcs}/set/{pattern}", tmp_path))
        assert sorted(found) == ["ant/0.png", "ant/1.png", "cat/0.png", "cat/1.png"]
    _message(f"{gcs}/set/{{ant,dog}}", tmp_path, "set/dog")


# Shards of WebDataset -----------------------------------------------------------------


def _tar(path, files, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def _samples(labels, suffix, first=0):
    files = {}
    for i, label in enumerate(labels, start=first):
        files[f"{i:04}.{suffix}"] = label
        files[f"{i:04}.png"] = _image(i)
    return files


def _shards(root, names, suffix="cls", labels=("3", "11", "3"), mode="w", end=""):
    for number, name in enumerate(names):
        files = _samples(labels, suffix, first=10 * number)
        _tar(root / f"{name}.tar{end}", files, mode)
    return root


@pytest.mark.parametrize(
    ("suffix", "labels", "names"),
    [
        ("cls", ("3", "11\n", " 3"), ["3", "11"]),
        ("cls", ("sea lion", "ant", "sea lion"), ["ant", "sea lion"]),
        ("json", ('{"label": 3}', '{"label": 11, "x": [1]}', "3"), ["3", "11"]),
        ("json", ('{"class_name": "b"}', '{"class_name": "a"}', "{"), ["a", "b"]),
        ("txt", ("ant", "bee", "ant"), ["ant", "bee"]),
        ("CLS", ("1", "0", ""), ["0", "1"]),
    ],
)
def test_labels_beside_images(suffix, labels, names, tmp_path):
    root = _shards(tmp_path / "set", ("a-000", "a-001"), suffix, labels)
    listing = _listing(root, tmp_path)
    assert listing.class_names == names
    assert listing.splits is None
    assert [entry.path for entry in listing.entries][::3] == [
        "a-000.tar/0000.png",
        "a-001.tar/0010.png",
    ]
    numbers = listing.labels.tolist()
    assert numbers[:2] == numbers[3:5] == [names.index(n) for n in _named(labels[:2])]
    assert numbers[2] == (numbers[0] if labels[2] not in ("", "{") else -1)
    if labels[2] == "{":
        assert listing.counts_left_out() == {".json that cannot be read": 2}


def _named(labels):
    for label in labels:
        described = json.loads(label) if label.startswith("{") else label.strip()
        if isinstance(described, dict):
            described = described.get("class_name", described.get("label"))
        yield str(described)


def test_the_ways_to_name_shards(tmp_path):
    root = _shards(tmp_path / "set", ("a-0008", "a-0009", "a-0010"))
    every = _labels(_listing(root, tmp_path))
    assert len(every) == 9
    for given in ("*.tar", "a-{0008..0010}.tar", "{a-0010,a-000?}.tar", "*"):
        assert _labels(_listing(root / given, tmp_path)) == every
    single = _labels(_listing(root / "a-0008.tar", tmp_path))
    assert single["0001.png"] == ("11", None)
    assert len(single) == 3
    two = _labels(_listing(f"{root}/a-0008.tar,{root}/a-0010.tar", tmp_path))
    assert two["a-0010.tar/0021.png"] == ("11", None)
    _message(root / "a-{0008..0011}.tar", tmp_path, "a-0011.tar", "one of 4")


def test_names_of_shards_and_folders_tell_splits(tmp_path):
    root = _shards(tmp_path / "set", ("my-train-0", "my-train-1", "val/0"))
    splits = [split for _, split in _labels(_listing(root, tmp_path)).values()]
    assert splits == ["train"] * 6 + ["val"] * 3
    single = _labels(_listing(root / "my-train-0.tar", tmp_path))
    assert {split for _, split in single.values()} == {"train"}
    groups = _labels(_listing(f"{root}/{{my-train-*,val/*}}.tar", tmp_path))
    assert [split for _, split in groups.values()] == splits


@pytest.mark.parametrize(("end", "mode"), [("", "w"), (".gz", "w:gz")])
def test_shards_on_a_store(end, mode, gcs, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_REMOTE_BUFFER_BYTES", 700)
    root = _shards(tmp_path / "set", ("train-0", "test-0"), mode=mode, end=end)
    expected = _labels(_listing(root, tmp_path / "a"))
    paths.upload(root, paths.as_path(f"{gcs}/set"))
    for given in ("set", "set/{train,test}-*", f"set/{{train,test}}-0.tar{end}"):
        assert _labels(_listing(f"{gcs}/{given}", tmp_path / given)) == expected
    assert (tmp_path / "set" / "scratch").exists() == bool(end), "read from the store"
    single = _labels(_listing(f"{gcs}/set/test-0.tar{end}", tmp_path / "b"))
    assert single["0012.png"] == ("3", "test")


def test_captions_are_left_out(tmp_path, caplog):
    labels = ("a dog on a beach", "two cats", "the sea at night")
    root = _shards(tmp_path / "set", ("000",), "txt", labels)
    _shards(root, ("001",), "txt", ("one", "x" * 90, "a dog on a beach"))
    with caplog.at_level("INFO"):
        listing = _listing(root, tmp_path)
    assert len(listing.entries) == 6
    assert listing.class_names is None
    assert "6 .txt files hold captions, which are left out" in caplog.text


def test_the_image_of_a_sample(tmp_path):
    files = {}
    for i in range(4):
        files |= {f"x/{i}.seg.png": _image(90), f"x/{i}.PNG": _image(i)}
        files |= {f"x/{i}.cls": str(i % 2), f"x/{i}.npy": b"array", f"x/._{i}.png": b""}
    path = _tar(tmp_path / "a.tar", files)
    listing = _listing(path, tmp_path)
    assert list(_labels(listing)) == [f"x/{i}.PNG" for i in range(4)]
    assert listing.counts_left_out() == {
        "further images of a sample": 4,
        ".npy": 4,
        "hidden": 4,
    }


def test_tars_without_labels_are_one_folder_of_images(tmp_path):
    for shard in range(2):
        names = ("top/cat/1.png", "top/dog/1.2.png", "top/dog/1.3.png")
        files = {name: _image(shard) for name in names[shard:]}
        _tar(tmp_path / "set" / f"{shard}.tar", {**files, "top/readme": b"text"})
        flat = {f"{i}.png": _image(i) for i in range(2)}
        _tar(tmp_path / "flat" / f"{shard}.tar", flat)
    listing = _listing(tmp_path / "set", tmp_path)
    assert _labels(listing) == {
        "0.tar/top/cat/1.png": ("cat", None),
        "0.tar/top/dog/1.2.png": ("dog", None),
        "0.tar/top/dog/1.3.png": ("dog", None),
        "1.tar/top/dog/1.2.png": ("dog", None),
        "1.tar/top/dog/1.3.png": ("dog", None),
    }
    assert listing.counts_left_out() == {"": 2}
    flat = _labels(_listing(tmp_path / "flat", tmp_path))
    assert flat == {f"{s}.tar/{i}.png": (None, None) for s in (0, 1) for i in (0, 1)}


def test_wrong_shards_are_named(tmp_path):
    path = _tar(tmp_path / "set" / "1.tar", _samples(("x" * 101,), "cls"))
    _message(path, tmp_path, ".cls", "at most 100 characters")
    cut = _write(tmp_path / "cut" / "0.tar", path.read_bytes()[:700])
    _tar(tmp_path / "cut" / "1.tar", _samples(("1",), "cls"))
    _message(tmp_path / "cut", tmp_path, cut.name, "no whole .tar file")
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 4, 4, 3), np.uint8))
    _message(tmp_path / "x.npz", tmp_path, "data.dataset=npz:")


# folder: ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("a.csv", "a.csv"),
        ("a.tar", "a.tar"),
        ("*.tar", "'*.tar'"),
        ("{0..3}.tar.gz", "'{0..3}.tar.gz'"),
        ("tars", "tars"),
        ("lists", "lists/a.csv"),
        ("tables", "tables"),
    ],
)
def test_folder_names_the_command_that_reads_others(
    given, named, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "a.tar", "tars/b.tar", "lists/a.csv", "tables/0.parquet"):
        _write(tmp_path / name, b"text")
    with pytest.raises(DataError) as caught:
        registry.open_source(f"folder:{given}", split="all")
    command = f"`python -m simclr_jax.prepare --input={named} --output=DIR`"
    assert command in str(caught.value)
    assert "config.data.dataset=prepared:DIR" in str(caught.value)
    _write(tmp_path / "text" / "readme.txt", b"text")
    with pytest.raises(DataError) as caught:
        registry.open_source("folder:text", split="all")
    assert "prepare" not in str(caught.value)


def test_ranges_of_tars_are_read_from_where_they_are(tmp_path):
    path = _tar(tmp_path / "a.tar", _samples(("1", "0"), "cls"))
    listing = _listing(path, tmp_path)
    _, offset = listing.entries[1].place
    assert storage.read_range(str(path), offset, listing.entries[1].size) == _image(1)

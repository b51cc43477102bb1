"""Names from data: no class, path or dataset breaks a file, a log or a terminal.

What is written is read back and compared, for names that file systems and archives
allow and that look bad.
"""

import contextlib
import io
import json
import logging
import pathlib
import re
import tarfile
import types
import zipfile

import numpy as np
import pytest
from PIL import Image

from simclr_jax import cli, errors
from simclr_jax.configs import smoke
from simclr_jax.data.sources import folder, registry
from simclr_jax.errors import DataError
from simclr_jax.evaluation import receipts
from simclr_jax.prepare import archives, build, entries, files
from simclr_jax.runs import directory, metrics_writer
from simclr_jax.weights import model_card

# Of files and folders: anything without '/' and NUL, up to 255 bytes.
NAMES = [
    "two\nlines",
    "return\r",
    "\ttab\t",
    "\x1b[2J\x1b]0;title\x07",  # clears a terminal
    "nel\x85ls\u2028ps\u2029",  # more ends of lines
    "\u202egnp.exe",  # right to left from here
    "\u05d0\u05d1\u05d2",
    "zero\u200bwidth",
    "both \" and '",
    "back\\slash\\n",
    "`code` ```",
    "|cell|",
    "<script>alert(1)<!--",
    "[link](example.com)",
    "$(id); `id` & %s {0}",
    " blanks ",
    "blanks",
    ",;=#-",
    "\udcff\udcfe not UTF-8",
    "caf\u00e9 \U0001f600",
    "x" * 250,
]
LONG = "y" * 300


def _jpeg(number):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 9, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A folder for each name, with an image in it; the last one has a broken one."""
    root = tmp_path_factory.mktemp("classes")
    for number, name in enumerate(NAMES):
        (root / name).mkdir()
        (root / name / "1.jpg").write_bytes(_jpeg(number))
    for name in NAMES:
        (root / name / f"{name[:200]}.jpg").write_bytes(b"broken")
    return root


@pytest.fixture(scope="module")
def prepared(classes, tmp_path_factory):
    output = tmp_path_factory.mktemp("dataset") / "out"
    build.prepare(build.Options(input=str(classes)), str(output), num_workers=1)
    return output


def _unescaped(text):
    """The inverse of `files._one_line`."""
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape")


def test_classes_of_a_folder(classes, tmp_path):
    for number, name in enumerate(NAMES):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(_jpeg(number))
    source = folder.FolderSource(str(tmp_path))
    assert source.class_names == sorted(NAMES)
    with pytest.raises(DataError) as error:
        folder.FolderSource(str(classes))
    assert "\n" not in errors.printable(str(error.value))


def test_classes_of_a_prepared_dataset(prepared):
    source = registry.open_source(f"prepared:{prepared}", split="train")
    assert source.class_names == sorted(NAMES)
    records, labels = source.read(np.arange(source.num_examples))
    found = dict(zip(records, labels, strict=True))
    for number, name in enumerate(NAMES):
        assert source.class_names[found[_jpeg(number)]] == name
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert manifest["splits"]["train"]["images_per_class"] == dict.fromkeys(NAMES, 1)


def test_lists_of_a_prepared_dataset(prepared):
    rows = (prepared / "broken.tsv").read_text().splitlines()
    assert len(rows) == len(NAMES)
    found = [row.split("\t") for row in rows]
    assert all(len(row) == 2 and "".join(row).isprintable() for row in found)
    paths = {_unescaped(path) for path, _ in found}
    assert paths == {f"{name}/{name[:200]}.jpg" for name in NAMES}
    # All broken files are equal.
    rows = (prepared / "duplicates.tsv").read_text().splitlines()
    assert {_unescaped(row.split("\t")[0]) for row in rows} < paths


def test_labels_file_has_a_line_for_each_class(prepared):
    text = (prepared / "label.labels.txt").read_text()
    lines = text.splitlines()
    assert lines == [line.strip() for line in text.split("\n")[:-1]]
    assert len(lines) == len(set(lines)) == len(NAMES)
    assert all(line.isprintable() and line for line in lines)
    assert lines[sorted(NAMES).index("caf\u00e9 \U0001f600")] == "caf\u00e9 \U0001f600"
    assert files.label_lines(["a", LONG, "", " ", "a "]) == [
        "a",
        LONG,
        "_",
        "__3",
        "a_4",
    ]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_paths_of_archives(kind, tmp_path):
    path = tmp_path / f"x.{kind}"
    # Zip archives are in UTF-8.
    names = [n for n in [*NAMES, LONG] if kind == "tar" or n.isascii()]
    if kind == "tar":
        with tarfile.open(path, "w", errors="surrogateescape") as archive:
            for number, name in enumerate(names):
                member = tarfile.TarInfo(f"{name}/1.jpg")
                member.size = len(_jpeg(number))
                archive.addfile(member, io.BytesIO(_jpeg(number)))
        source = archives.TarInput(str(path), scratch=str(tmp_path))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for number, name in enumerate(names):
                archive.writestr(f"{name}/1.jpg", _jpeg(number))
        source = archives.ZipInput(str(path))
    listing = entries.list_images(source)
    assert listing.class_names == sorted(names)
    for entry, label in zip(listing.entries, listing.labels, strict=True):
        name = listing.class_names[label]
        assert source.read(entry) == _jpeg(names.index(name))


@pytest.mark.parametrize("name", [*NAMES, LONG, '"); import os; ("', "<folder>"])
def test_names_in_model_cards(name):
    quoted = model_card.in_quotes(name)
    assert eval(f'"{quoted}"') == name
    assert "`" not in quoted
    assert quoted.isprintable()
    shown = model_card.plain(name)
    assert shown.isprintable()
    assert not re.search(r"(?<!\\)(\\\\)*[`*|<>\[\]~&]", shown)
    assert re.sub(r"\\(.)", r"\1", shown) == errors.printable(name)


@pytest.mark.parametrize("name", [*NAMES, LONG])
def test_names_in_logs_and_errors(name, capsys):
    record = logging.LogRecord("x", 20, "", 0, "file %s: %s", (name, "lost"), None)
    text = cli._Formatter("%(asctime)s %(message)s", "%H:%M:%S").format(record)
    first, *others = text.split("\n")
    assert all(line.isprintable() for line in (first, *others))
    # So that no name looks like a line of the log.
    assert all(line.startswith("  ") for line in others)
    for error in (DataError(f"file {name}: is lost"), KeyError(name)):
        with contextlib.suppress(SystemExit):
            cli._exit(error, 2)
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said[:-1].isprintable()
        assert said.endswith("\n")
    cli.say(f"wrote {name}")
    assert all(line.isprintable() for line in capsys.readouterr().out.split("\n"))


@pytest.mark.parametrize("name", [*NAMES, LONG])
def test_names_in_json(name, tmp_path):
    config = smoke.get_config()
    config.data.dataset = f"folder:{name}"
    directory.write_config(str(tmp_path), config)
    found = directory.read_config(str(tmp_path))
    assert found["data"]["dataset"] == f"folder:{name}"
    writer = metrics_writer.MetricsWriter(str(tmp_path), resume_step=0)
    writer.write(1, {"verdict": name})
    writer.write(2, {"verdict": name})
    writer.close()
    path = tmp_path / metrics_writer.FILE_NAME
    assert [r["verdict"] for r in metrics_writer.read_metrics(path)] == [name, name]
    assert path.read_bytes().count(b"\n") == 2


def test_folders_of_receipts_are_names_of_folders():
    found = set()
    for name in [*NAMES, LONG, LONG + "z"]:
        context = types.SimpleNamespace(
            network=types.SimpleNamespace(config={"data": {"dataset": "own"}}),
            dataset=types.SimpleNamespace(name=name),
            workdir="run",
        )
        place = pathlib.Path(receipts.folder(context))
        assert place.parent == pathlib.Path("run/eval")
        assert re.fullmatch(r"[A-Za-z0-9._-]+", place.name)
        assert len(place.name) < 200
        found.add(place.name)
    assert len({name for name in found if name.startswith("yyy")}) == 2

"""Readers of other people's bytes end with one of the package's errors, or well.

    bash launch/test.sh -m slow tests/fuzz -n 0 -s --fuzz-secs=600

`docs/bad_inputs.md` says what was found.
"""

import contextlib
import io
import json
import os
import pathlib
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from sample_images import encoded

pytest.importorskip("hypothesis")

from absl import flags
from fuzzing import changed_json, damaged
from hypothesis import strategies as st
from ml_collections import config_dict, config_flags
from safetensors import numpy as safetensors_numpy

from simclr_jax import cli
from simclr_jax.config import identity, rules
from simclr_jax.configs import base, smoke
from simclr_jax.data.sources import folder, pixels, prepared, reading, registry
from simclr_jax.data.tf_cpu import tf
from simclr_jax.evaluation import overrides
from simclr_jax.prepare import entries, image_check, inputs, parts
from simclr_jax.runs import checkpoints, directory, format_version, metrics_writer
from simclr_jax.weights import tensor_bundles, torch_files

pytestmark = [
    pytest.mark.slow,
    # Of ml_collections.
    pytest.mark.filterwarnings("ignore:the load_module"),
]
ROOT = pathlib.Path(__file__).parents[2]
KEYS = sorted(identity.flatten(base.get_config()))


# Configs ------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def argv(monkeypatch):
    """A command line of its own: ml_collections looks at the process's."""
    line = ["pretrain"]
    monkeypatch.setattr(sys, "argv", line)
    return line


def _parse(argv, arguments):
    """What a command makes of its arguments: a valid config, or one line and exit 2."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    saved, flags.FLAGS = flags.FLAGS, values
    argv[1:] = arguments
    said = io.StringIO()
    code = None
    try:
        with contextlib.redirect_stderr(said):
            cli._parse(argv)
        if values.config is not None:
            rules.validate(values.config)
    except SystemExit as error:
        code = error.code
    finally:
        flags.FLAGS = saved
    if code is not None:
        assert code == 2
        assert said.getvalue().startswith("error: ")
        assert said.getvalue().endswith("\n")
        assert said.getvalue()[:-1].isprintable(), ascii(said.getvalue())


_NUMBERS = ("1", "-1", "0", "nan", "inf", "1e400", "0x10", "1_0", "9" * 40)
_OTHER_WORDS = ("None", "True", "()", "(,)", "[", "{", "{}", "lambda", "'a'", "~", "$")
WORDS = st.text(max_size=12) | st.sampled_from(_NUMBERS + _OTHER_WORDS)
NAMES = st.sampled_from(KEYS) | st.sampled_from(KEYS).map(lambda k: k[:-1]) | WORDS
ARGUMENTS = st.lists(
    st.tuples(NAMES, st.sampled_from(("=", "", "==")), WORDS).map(
        lambda parts: "--config." + "".join(parts)
    )
    | st.sampled_from(("--config", "--config=cifar10", "--", "-", "--config=smoke:x"))
    | WORDS.map(lambda word: f"--config={word}"),
    max_size=4,
)


def test_arguments(run, argv):
    run(lambda more: _parse(argv, ["--config=smoke", *more]), ARGUMENTS)


def test_config_files(run, argv, tmp_path):
    path = tmp_path / "x.py"
    source = pathlib.Path(smoke.__file__).read_bytes()

    def check(content):
        path.write_bytes(content)
        _parse(argv, [f"--config={path}"])

    run(check, damaged([source, b"def get_config():\n  return 1\n"]))


# Images -------------------------------------------------------------------------------


def _encoded(kind, mode="RGB", **options):
    return encoded(kind, mode, size=(15, 12), **options)


IMAGES = [
    _encoded("JPEG"),
    _encoded("JPEG", "CMYK", progressive=True),
    _encoded("MPO", frames=2),
    _encoded("PNG"),
    _encoded("PNG", "P"),
    _encoded("PNG", "I;16"),
    _encoded("PNG", frames=2),
    _encoded("WEBP"),
    _encoded("WEBP", lossless=True),
    _encoded("BMP"),
    _encoded("GIF", frames=2),
    _encoded("TIFF"),
    _encoded("TIFF", compression="tiff_lzw"),
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n%%EOF\n",
]


def test_images_of_folders(run, tmp_path):
    path = tmp_path / "x.jpg"

    def check(content):
        path.write_bytes(content)
        source = folder.FolderSource(str(tmp_path))
        with contextlib.suppress(folder.DataError):
            pixels.shapes(source, np.array([0]))
        with contextlib.suppress(folder.DataError):
            pixels.read(source, np.array([0]))
        batches = reading.record_batches(
            source,
            np.array([0]),
            lambda record, label: {"images": reading.decode_rgb(record)},
            batch_size=1,
            threads=1,
        )
        list(batches)

    run(check, damaged(IMAGES))


def test_images_of_prepare(run):
    encoding = image_check.Encoding(short_side=8)

    def check(content):
        with contextlib.suppress(image_check.NotAnImage):
            image_check.check_image(content, encoding)

    run(check, damaged(IMAGES))


# Archives and datasets ----------------------------------------------------------------


def _tar(mode):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name in ("ant/1.jpg", "bee/2.jpg", "../3.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(IMAGES[0])
            archive.addfile(member, io.BytesIO(IMAGES[0]))
    return buffer.getvalue()


def _zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("ant/1.jpg", "bee/2.jpg", "../3.jpg"):
            archive.writestr(name, IMAGES[0])
    return buffer.getvalue()


ARCHIVES = {
    ".tar": [_tar("w"), _tar("w:").replace(b"ustar", b"xxxxx")],
    ".tar.gz": [_tar("w:gz")],
    ".tar.xz": [_tar("w:xz")],
    ".zip": [_zip()],
}


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_archives(suffix, run, tmp_path):
    path = tmp_path / f"x{suffix}"
    scratch = tmp_path / "scratch"
    number = 0

    def check(content):
        nonlocal number
        number += 1
        path.write_bytes(content)
        (scratch / "input.tar").unlink(missing_ok=True)
        # Each with a name of its own: an open archive is kept by its name.
        link = tmp_path / f"{number}{suffix}"
        os.symlink(path, link)
        try:
            source = inputs.open_input(str(link), scratch=str(scratch), without="")
            for entry in entries.list_images(source).entries:
                with contextlib.suppress(image_check.NotAnImage):
                    parts._read(source, entry)
        finally:
            link.unlink()

    run(check, damaged(ARCHIVES[suffix]))


def _npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_arrays(run, tmp_path):
    path = tmp_path / "x.npz"
    images = np.zeros((3, 4, 4, 3), np.uint8)

    def check(content):
        path.write_bytes(content)
        source = registry.open_source(f"npz:{path}", split="train")
        source.read(np.arange(source.num_examples))

    run(check, damaged([_npz(images=images, labels=np.arange(3))]))


def test_manifests(run, tmp_path):
    index = _npz(
        shard=np.zeros(2, np.int32),
        offset=np.array([0, 4]),
        length=np.array([4, 4]),
        image_offset=np.array([0, 4]),
        image_length=np.array([4, 4]),
        label=np.array([0, 1]),
    )
    (tmp_path / "a.tfrecord").write_bytes(bytes(8))
    manifest = {
        "format_version": 1,
        "class_names": ["ant", "bee"],
        "splits": {
            "train": {
                "shards": [{"file": "a.tfrecord", "bytes": 8, "records": 2}],
                "index": {"file": "index.npz", "bytes": len(index)},
            }
        },
    }

    def check(example):
        content, positions = example
        (tmp_path / "manifest.json").write_bytes(content)
        (tmp_path / "index.npz").write_bytes(positions)
        source = prepared.ShardSource(str(tmp_path), split="train")
        source.read(np.arange(source.num_examples))

    valid = json.dumps(manifest).encode()
    run(
        check,
        st.tuples(changed_json(manifest) | damaged([valid]), st.just(index))
        | st.tuples(st.just(valid), damaged([index])),
    )


# Weights ------------------------------------------------------------------------------


ARRAYS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.array(7),
    "c": np.zeros((0, 3), np.float16),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_state_dicts(suffix, run, tmp_path):
    path = tmp_path / f"x{suffix}"
    samples = [safetensors_numpy.save(ARRAYS)]
    if suffix == ".pth":
        golden = ROOT / "tests" / "golden" / "torch_kinds.pth"
        stored = io.BytesIO()
        # Without checksums in the way of a damaged pickle.
        with zipfile.ZipFile(golden) as archive, zipfile.ZipFile(stored, "w") as copy:
            for name in archive.namelist():
                copy.writestr(name, archive.read(name))
        samples = [golden.read_bytes(), stored.getvalue()]

    def check(content):
        path.write_bytes(content)
        torch_files.is_torch_file(str(path))
        state_dict = torch_files.read_state_dict(str(path))
        tensors = torch_files.as_tensors(str(path), state_dict)
        for name in tensors.shapes:
            tensors.read(name)

    run(check, damaged(samples))


def test_pickles(run, tmp_path):
    """Damaged pickles in archives whose checksums are right."""
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(ROOT / "tests" / "golden" / "torch_kinds.pth") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))

    def check(content):
        with zipfile.ZipFile(path, "w") as archive:
            for member, old in members.items():
                archive.writestr(member, content if member == name else old)
        torch_files.read_state_dict(str(path))

    run(check, damaged([members[name]]))


def test_tensorflow_checkpoints(run, tmp_path):
    prefix = str(tmp_path / "model.ckpt")
    graph = tf.train.Checkpoint(v=tf.Variable([1.0]))
    graph.write(prefix)
    files = {s: pathlib.Path(prefix + s) for s in (".index", ".data-00000-of-00001")}
    originals = {suffix: path.read_bytes() for suffix, path in files.items()}

    def check(example):
        suffix, content = example
        for other, path in files.items():
            path.write_bytes(content if other == suffix else originals[other])
        tensors, found = tensor_bundles.open_bundle(prefix)
        for name in tensors.shapes:
            tensors.read(name)
        if found is not None:
            found.key("v")
            found.count("v")

    run(
        check,
        st.sampled_from(list(files)).flatmap(
            lambda s: st.tuples(st.just(s), damaged([originals[s]]))
        ),
    )


def test_object_graphs(run):
    graph = tf.train.Checkpoint(v=tf.Variable([1.0]), w=[tf.Variable([1.0])])
    path = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"fuzz-graph-{os.getpid()}")
    graph.write(path)
    content = tf.train.load_checkpoint(path).get_tensor(tensor_bundles.GRAPH)

    def check(damaged_graph):
        try:
            found = tensor_bundles.parse_graph(damaged_graph)
        except ValueError:  # which `open_bundle` turns into a DataError
            return
        for name in ("v", "w", "w/0", "w/0/x"):
            found.key(name)
            found.count(name)

    run(check, damaged([content]))


# Run directories ----------------------------------------------------------------------


def test_metrics(run, tmp_path):
    path = tmp_path / metrics_writer.FILE_NAME
    lines = [json.dumps({"step": n, "loss": 1.5, "rate": "é"}) for n in range(5)]
    sample = ("\n".join(lines) + "\n").encode()

    def check(content):
        path.write_bytes(content)
        for record in metrics_writer.read_metrics(path):
            assert isinstance(record["step"], int)
        writer = metrics_writer.MetricsWriter(str(tmp_path), resume_step=3)
        writer.write(4, {"loss": 1.0})
        writer.close()
        records = metrics_writer.read_metrics(path)
        assert [r["step"] for r in records] == sorted({r["step"] for r in records})
        assert records[-1] == {"step": 4, "loss": 1.0}

    any_json = changed_json([{"step": n, "loss": 1.5} for n in range(4)])
    run(check, damaged([sample]) | any_json | any_json.map(_as_lines))


def _as_lines(content):
    value = json.loads(content)
    return b"\n".join(json.dumps(item).encode() for item in value)


def test_configs_of_runs(run, tmp_path):
    stored = format_version.stamp(identity.as_json(smoke.get_config()))
    path = tmp_path / directory.CONFIG

    def check(content):
        path.write_bytes(content)
        config = directory.read_config(str(tmp_path))
        result = overrides.with_overrides(config, ["evaluation.knn_k=3"])
        rules.validate(config_dict.ConfigDict(result))

    valid = json.dumps(stored).encode()
    run(check, changed_json(stored) | damaged([valid]))


def test_descriptions_of_checkpoints(run, tmp_path):
    folder_ = checkpoints.paths.as_path(tmp_path)
    (tmp_path / "description").mkdir()
    path = tmp_path / "description" / "metadata"
    sample = {"config_hash": "x", "encoder": {"depth": 18}, "checksums": {}}

    def check(content):
        path.write_bytes(content)
        checkpoints.read_description(folder_)

    run(check, changed_json(sample) | damaged([json.dumps(sample).encode()]))

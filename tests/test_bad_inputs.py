"""Bad input of every kind ends in one line that names the key, flag or file.

The table of `docs/bad_inputs.md` is what these tests write; see `bad_input_page.py`.
"""

import contextlib
import functools
import io
import json
import os
import pathlib
import pickle
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import bad_input_page
import commands
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image
from sample_images import encoded

import simclr_jax
from simclr_jax import cli, errors, paths
from simclr_jax.config import resolve, rules
from simclr_jax.configs import base, distill, finetune, smoke
from simclr_jax.data.buffers import Buffers
from simclr_jax.data.sources import pixels, registry
from simclr_jax.errors import InvalidInput, RunFailed
from simclr_jax.evaluation import overrides
from simclr_jax.parallel import processes
from simclr_jax.prepare import build
from simclr_jax.runs import atomic, directory
from simclr_jax.study import cells, command
from simclr_jax.training import profiling
from simclr_jax.weights import convert, descriptions, export, load

pytestmark = [
    pytest.mark.filterwarnings("ignore:the load_module"),  # of ml_collections
    # pytest makes errors of what `image_files` has switched off.
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]
PAGE = commands.ROOT / "docs" / "bad_inputs.md"


class Case(NamedTuple):
    """One bad input.

    Attributes:
      group: heading of the page.
      given: how it is made, for the page.
      names: what the line must name.
      call: makes it in a folder, and hands it to the package.
    """

    group: str
    given: str
    names: str
    call: Callable[[pathlib.Path], Any]


# Configs ------------------------------------------------------------------------------


def _config_with(make: Callable[..., Any], changes: dict[str, Any], _) -> None:
    config = make()
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    rules.validate(config)
    resolve.resolve(config, num_examples=10_000)


def _value(make: Callable[..., Any], *names: str, **changes: Any) -> Case:
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    given = ", ".join(f"config.{key}={value!r}" for key, value in keys.items())
    call = functools.partial(_config_with, make, keys)
    return Case("Config values", given, f"config.{(names or tuple(keys))[0]}", call)


_PLAIN = base.get_config
_TUNING = functools.partial(finetune.get_config, "cifar10,0.1")
_DISTILLING = functools.partial(distill.get_config, "cifar10")
_INF, _NAN = float("inf"), float("nan")
VALUES = [
    _value(_PLAIN, seed=2**32),
    _value(_PLAIN, seed=-1),
    _value(_PLAIN, image_size=100_000),
    _value(_PLAIN, image_size=4),
    _value(_PLAIN, image_size="224"),
    _value(_PLAIN, data__dataset=""),
    _value(_PLAIN, data__threads=0),
    _value(_PLAIN, data__block_size=0),
    _value(_PLAIN, data__block_size=16, augment__placement="accelerator"),
    _value(_PLAIN, batch__batch_size=1),
    _value(_PLAIN, batch__batch_size=20_000),
    _value(_PLAIN, batch__micro_batch_size=1000),
    _value(_PLAIN, augment__operations=("crop", "twirl")),
    _value(_PLAIN, augment__operations=("flip", "crop")),
    _value(_PLAIN, augment__operations=3),
    _value(_PLAIN, augment__crop__area_max=1e-8),
    _value(_PLAIN, augment__crop__ratio_max=_INF),
    _value(_PLAIN, augment__crop__ratio_min=1.5),
    _value(_PLAIN, augment__blur__sigma_max=_INF),
    _value(_PLAIN, augment__blur__kernel_fraction=0.0),
    _value(_PLAIN, augment__noise__stddev_max=_INF),
    _value(_PLAIN, augment__color_jitter__brightness=1e30),
    _value(_PLAIN, augment__color_jitter__hue=0.6),
    _value(_PLAIN, encoder__depth=20),
    _value(_PLAIN, encoder__width=1e6),
    _value(_PLAIN, encoder__compute_dtype="float16"),
    _value(_PLAIN, head__num_layers=0),
    _value(_PLAIN, loss__name="triplet"),
    _value(_PLAIN, loss__temperature=1e-9),
    _value(_PLAIN, loss__temperature=_NAN),
    _value(_PLAIN, loss__normalize="yes"),
    _value(_PLAIN, optimizer__learning_rate=_NAN),
    _value(_PLAIN, optimizer__momentum=1.0),
    _value(_PLAIN, schedule__train_steps=2**40),
    _value(_PLAIN, schedule__train_epochs=1e300),
    _value(_PLAIN, log__every_steps=0),
    _value(_PLAIN, log__writers=("tensorbord",)),
    _value(_PLAIN, checkpoint__every_secs=0.0),
    _value(_PLAIN, evaluation__knn_k=(20, 0)),
    _value(_PLAIN, evaluation__l2_penalties=(_NAN,)),
    _value(_PLAIN, evaluation__layer=-2),
    _value(_TUNING, finetune__label_fraction=2.0),
    _value(_TUNING, finetune__after_group=5),
    _value(_DISTILLING, distill__temperature=0.0),
    Case(
        "Config values",
        "config.data.threads=1000 on a host with little memory",
        "config.data.threads=1000",
        lambda _: Buffers.choose(batch_bytes=1, memory_mb=6000, threads=1000),
    ),
]


def _parsed(arguments: list[str]) -> Any:
    """The config of a command line; the line of an exit code 2 as InvalidInput."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    saved, line = flags.FLAGS, sys.argv
    flags.FLAGS, sys.argv = values, ["pretrain", *arguments]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            cli._parse(sys.argv)
    except SystemExit as error:
        if error.code != 2:
            raise
        raise InvalidInput(said.getvalue().strip().removeprefix("error: ")) from error
    finally:
        flags.FLAGS, sys.argv = saved, line
    rules.validate(values.config)
    return values.config


def _file(given: str, content: bytes | str, names: str = "mine.py") -> Case:
    def call(folder: pathlib.Path) -> None:
        _write(folder / "mine.py", content)
        _parsed([f"--config={folder / 'mine.py'}"])

    return Case("Config files", given, names, call)


def _write(path: pathlib.Path, content: bytes | str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


_START = (
    "from simclr_jax.configs import base\ndef get_config():\n  c = base.get_config()\n"
)
CONFIG_FILES = [
    _file("without get_config", "x = 1\n"),
    _file("import of a module that is not there", "import nosuchmodule\n"),
    _file("a mistake in the syntax", "def get_config(:\n"),
    _file("a key that there is not", f"{_START}  c.loss.temperatur = 1.0\n"),
    _file("a value of another type", f"{_START}  c.seed = 'x'\n"),
    _file("a value that breaks a rule", f"{_START}  c.seed = -1\n  return c\n", "seed"),
    _file("get_config returns 1", "def get_config():\n  return 1\n"),
    _file("get_config raises", "def get_config():\n  raise RuntimeError('no')\n"),
    _file("sys.exit(0)", "import sys\nsys.exit(0)\n"),
    _file("not text", b"\0\1\2"),
]


def _line(*arguments: str, names: str = "") -> Case:
    given = " ".join(arguments)
    names = names or arguments[-1]
    return Case("Command lines", given, names, lambda _: _parsed([*arguments]))


def _prepare(folder: pathlib.Path, given: pathlib.Path, **options: Any) -> None:
    options = {"input": str(given), **options}
    build.prepare(build.Options(**options), str(folder / "out"), num_workers=1)


def _option(flag: str, value: Any) -> Case:
    return Case(
        "Command lines",
        f"prepare --{flag}={value}",
        f"--{flag}=",
        lambda folder: _prepare(folder, folder, **{flag: value}),
    )


def _set(text: str) -> Case:
    config = smoke.get_config().to_dict()
    return Case(
        "Command lines",
        f"evaluate --set={text}",
        f"--set={text}",
        lambda _: overrides.with_overrides(config, [text]),
    )


COMMAND_LINES = [
    _line("--config="),
    _line("--config=cifar11"),
    _line("--config=configs"),
    _line("--config=none.py"),
    _line("--config=smoke:x", names="smoke.py"),
    _line("--config=imagenet:50xx", names="imagenet.py:50xx"),
    _line("--config=finetune:cifar10,many", names="finetune.py:cifar10,many"),
    _line("--config=smoke", "--config.batch.batch_size=many"),
    _line("--config=smoke", "--config.batch.batch_sizes=64"),
    _line("--config=smoke", "--config.augment.device=split", names="augment.device"),
    _line("--config=smoke", "--wrkdir=RUN", names="wrkdir"),
    _line("--config=smoke", "RUN"),
    _option("val_fraction", 2.0),
    _option("jpeg_quality", 0),
    _option("shard_size_mb", _INF),
    _option("resize_short_side", 0),
    _option("resize_filter", "box"),
    _option("split", "a b"),
    _option("input", ""),
    _set("loss.temperature=1"),
    _set("evaluation.knn_k=many"),
    _set("evaluation.batch_size"),
    _set("seed=" + "[" * 50 + "1"),
    Case(
        "Command lines",
        "--profile_steps=15:10",
        "--profile_steps=15:10",
        lambda _: profiling.parse("15:10", 100),
    ),
    Case(
        "Command lines",
        "--startup_timeout_secs=nan",
        "--startup_timeout_secs=nan",
        lambda _: cli.check_secs("startup_timeout_secs", _NAN),
    ),
    Case(
        "Command lines",
        "bench --secs=inf",
        "--secs=inf",
        lambda _: cli.check_secs("secs", _INF),
    ),
    Case(
        "Command lines",
        "--coordinator_address=h:1 --num_processes=2 --process_id=2",
        "--process_id=2",
        lambda _: processes.start("h:1", 2, 2, timeout_secs=1),
    ),
    Case(
        "Command lines",
        "--workdir=ftp://host/run",
        "ftp://host/run",
        lambda _: atomic.check_no_file("ftp://host/run"),
    ),
    Case(
        "Command lines",
        "--workdir=gs://",
        "gs://",
        lambda _: paths.check_reachable("gs://", flag="workdir"),
    ),
    Case(
        "Command lines",
        "--compilation_cache: a file",
        "--compilation_cache=",
        lambda folder: atomic.make_folder(
            str(_write(folder / "cache", "")), flag="compilation_cache"
        ),
    ),
    Case(
        "Command lines",
        "--compilation_cache: below a file",
        "--compilation_cache=",
        lambda folder: atomic.make_folder(
            f"{_write(folder / 'x', '')}/cache", flag="compilation_cache"
        ),
    ),
    Case(
        "Command lines",
        "--workdir: a file",
        "--workdir=",
        lambda folder: atomic.check_no_file(str(_write(folder / "run", ""))),
    ),
]

# Images -------------------------------------------------------------------------------


def _one_bit_png(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def _lying_jpeg() -> bytes:
    content = bytearray(encoded("JPEG"))
    start = content.index(b"\xff\xc0") + 5
    content[start : start + 4] = b"\x0f\xa0\x0f\xa0"
    return bytes(content)


def _open(dataset: str, split: str = "all") -> None:
    source = registry.open_source(dataset, split=split)
    pixels.read(source, np.arange(source.num_examples))


def _image(given: str, content: Callable[[], bytes], name: str = "x.jpg") -> Case:
    def call(folder: pathlib.Path) -> None:
        _write(folder / name, content())
        _open(f"folder:{folder}")

    return Case("Images and folders", f"folder: with {given}", name, call)


def _folders(*names: str, split: str = "all") -> Callable[[pathlib.Path], None]:
    def call(folder: pathlib.Path) -> None:
        for name in names:
            _write(folder / name, encoded("JPEG"))
        _open(f"folder:{folder}", split)

    return call


def _npz(given: str, names: str = "x.npz", **arrays: Any) -> Case:
    def call(folder: pathlib.Path) -> None:
        np.savez(folder / "x.npz", **arrays)
        _open(f"npz:{folder / 'x.npz'}")

    return Case("Images and folders", f"npz: with {given}", names, call)


_FEW = np.zeros((3, 4, 4, 3), np.uint8)
IMAGES = [
    _image("text named .jpg", lambda: b"just some text"),
    _image("an empty file", lambda: b""),
    _image("EPS named .jpg", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n"),
    _image("a JPEG that ends early", lambda: encoded("JPEG")[:-600]),
    _image("a JPEG whose header says 4000 x 4000", _lying_jpeg),
    _image("a PNG that ends early", lambda: encoded("PNG")[:-600], "x.png"),
    _image("a PNG of 144 megapixels in 18 kB", lambda: _one_bit_png(12_000), "x.png"),
    _image("a HEIC named .jpg", lambda: b"\0\0\0\x18ftypheic" + bytes(16)),
    _image("a TIFF in Lab colours", lambda: encoded("TIFF", mode="LAB"), "x.tif"),
    Case(
        "Images and folders",
        "folder: that is not there",
        "DIR/none",
        lambda folder: _open(f"folder:{folder / 'none'}"),
    ),
    Case(
        "Images and folders",
        "folder: without a path",
        "folder:",
        lambda _: _open("folder:"),
    ),
    Case(
        "Images and folders",
        "folder: without images",
        "folder:DIR",
        _folders("readme.txt"),
    ),
    Case(
        "Images and folders",
        "folder: of nothing but held-out splits",
        "config.data.split",
        _folders("val/1.jpg", "test/2.jpg"),
    ),
    Case(
        "Images and folders",
        "folder: with two training splits",
        "train and training both mean the split 'train'",
        _folders("train/1.jpg", "training/2.jpg"),
    ),
    Case(
        "Images and folders",
        "folder: without the split that is asked for",
        "splits that are there: train",
        _folders("train/1.jpg", split="test"),
    ),
    _npz("no images", labels=np.arange(3)),
    _npz("normalized images", "npz:", images=_FEW.astype(np.float32) - 1),
    _npz("a single image", "npz:", images=_FEW[0]),
    _npz("images of 12 bits", "npz:", images=np.full((2, 4, 4), 4095, np.uint16)),
    _npz("arrays of other names", "x_train", pictures=_FEW),
    _npz("two labels for three images", "npz:", images=_FEW, labels=np.arange(2)),
    Case(
        "Images and folders",
        "npz: that is no archive",
        "x.npz",
        lambda folder: _open(f"npz:{_write(folder / 'x.npz', 'text')}"),
    ),
    Case(
        "Images and folders",
        "synthetic:0",
        "synthetic:0",
        lambda _: _open("synthetic:0"),
    ),
    Case(
        "Images and folders",
        "synthetic:100000",
        "synthetic:100000",
        lambda _: _open("synthetic:100000"),
    ),
    Case(
        "Images and folders",
        "photographs, split val",
        "'val'",
        lambda _: _open("photographs", "val"),
    ),
]

# Archives and prepared datasets -------------------------------------------------------


def _archive(given: str, name: str, content: bytes | Callable[[], bytes]) -> Case:
    def call(folder: pathlib.Path) -> None:
        made = content if isinstance(content, bytes) else content()
        _prepare(folder, _write(folder / name, made))

    return Case("Archives", f"prepare --input={name}: {given}", name, call)


def _tar(mode: str, name: str = "a/1.jpg") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        member = tarfile.TarInfo(name)
        member.size = 5000
        archive.addfile(member, io.BytesIO(bytes(5000)))
    return buffer.getvalue()


def _zip(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"text")
    return buffer.getvalue()


ARCHIVES = [
    _archive("text", "x.tar", b"just some text" * 100),
    _archive("cut in the middle", "x.tar", lambda: _tar("w")[:2000]),
    _archive("cut in the middle", "x.tar.gz", lambda: _tar("w:gz")[:60]),
    _archive("text", "x.tar.xz", b"text"),
    _archive("text", "x.zip", b"text"),
    _archive("holds no images", "x.zip", lambda: _zip("readme.txt")),
    _archive("holds a broken image only", "x.zip", lambda: _zip("1.jpg")),
    _archive("of a kind that is not read", "x.rar", b"Rar!"),
    _archive("a list without a column of paths", "x.csv", b"label,split\n1,train\n"),
    _archive("a list with a row of three columns", "x.csv", b"path,label\n1.jpg,a,b\n"),
    _archive("a list with two labels for a file", "x.tsv", b"1.jpg\ta\n1.jpg\tb\n"),
    _archive("a list of missing files", "x.csv", b"path,label\n1.jpg,a\n"),
    Case(
        "Archives",
        "prepare --input=shard-{0..1}.tar, of which none is there",
        "shard-0.tar",
        lambda folder: _prepare(folder, folder / "shard-{0..1}.tar"),
    ),
    Case(
        "Archives",
        "prepare --input=none.tar, which is not there",
        "none.tar",
        lambda folder: _prepare(folder, folder / "none.tar"),
    ),
    Case(
        "Archives",
        "prepare --output with other files in it",
        "--output=",
        lambda folder: _prepare(_write(folder / "out" / "x", "").parents[1], folder),
    ),
]

_MANIFEST: dict[str, Any] = {
    "format_version": 1,
    "class_names": None,
    "splits": {
        "train": {
            "shards": [{"file": "a.tfrecord", "bytes": 8, "records": 1}],
            "index": {"file": "i.npz", "bytes": 4},
        }
    },
}


def _prepared(given: str, names: str, content: Any) -> Case:
    def call(folder: pathlib.Path) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        _write(folder / "manifest.json", text)
        _write(folder / "i.npz", b"text")
        _open(f"prepared:{folder}", "train")

    return Case("Prepared datasets", given, names, call)


PREPARED = [
    Case(
        "Prepared datasets",
        "a folder without manifest.json",
        "manifest.json",
        lambda folder: _open(f"prepared:{folder}", "train"),
    ),
    _prepared("a manifest that ends early", "manifest.json", '{"format'),
    _prepared("a manifest of a later version", "format_version", {"format_version": 2}),
    _prepared("a manifest without splits", "manifest.json", {**_MANIFEST, "splits": 1}),
    _prepared("a manifest with no split", "manifest.json", {**_MANIFEST, "splits": {}}),
    _prepared(
        "a split that there is not",
        "'train'",
        {**_MANIFEST, "splits": {"test": _MANIFEST["splits"]["train"]}},
    ),
    _prepared("a shard that is not there", "a.tfrecord", _MANIFEST),
]

# Weights ------------------------------------------------------------------------------


def _pickled(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return buffer.getvalue()


class _Call:
    def __reduce__(self):
        return os.system, ("true",)


def _weights(given: str, name: str, content: bytes | None, **options: Any) -> Case:
    def call(folder: pathlib.Path) -> None:
        if content is not None:
            _write(folder / name, content)
        convert.read(str(folder / name), **{"normalization": "none", **options})

    return Case("Weights", f"convert --input={name}: {given}", name, call)


WEIGHTS = [
    _weights("is not there", "x.pth", None),
    _weights("text", "x.pth", b"text"),
    _weights("PyTorch's format before 1.6", "x.pth", pickle.dumps([1], protocol=2)),
    _weights("a zip archive", "x.pth", _zip("readme.txt")),
    _weights("no tensors", "x.pth", _pickled(pickle.dumps({"epoch": 3}, 2))),
    _weights("calls a program", "x.pth", _pickled(pickle.dumps({"a": _Call()}, 2))),
    _weights("ends early", "x.pth", _pickled(pickle.dumps({"a": 1}, 2)[:-4])),
    _weights("text", "x.safetensors", b"text" * 10),
    _weights("a header of 2**60 bytes", "x.safetensors", b"\0" * 7 + b"\x10{}"),
    Case(
        "Weights",
        "convert --input=x.pth without --normalization",
        "--normalization",
        lambda folder: convert.read(str(_write(folder / "x.pth", _zip("a")))),
    ),
    Case(
        "Weights",
        "convert --input=model.ckpt, a TensorFlow checkpoint that is not there",
        "model.ckpt",
        lambda folder: convert.read(str(folder / "model.ckpt")),
    ),
    Case(
        "Weights",
        "convert --input=model.ckpt, whose index is text",
        "model.ckpt",
        lambda folder: convert.read(
            str(_write(folder / "model.ckpt.index", "text")).removesuffix(".index")
        ),
    ),
    Case(
        "Weights",
        "an export whose preprocessing.json is a list",
        "preprocessing.json",
        lambda folder: descriptions.read_preprocessing(
            _write(folder / "preprocessing.json", "[]").parent
        ),
    ),
    Case(
        "Weights",
        "an export of an unknown format",
        "encoder.json",
        lambda folder: load.load(
            str(_write(folder / "encoder.json", '{"format": "x"}').parent)
        ),
    ),
]

# Runs ---------------------------------------------------------------------------------


def _run(given: str, content: str | None, names: str = "config.json") -> Case:
    def call(folder: pathlib.Path) -> None:
        if content is not None:
            _write(folder / "config.json", content)
        directory.read_config(str(folder))

    return Case("Run directories", given, names, call)


def _description(folder: pathlib.Path, content: str) -> None:
    checkpoint = folder / "checkpoints" / "5"
    _write(checkpoint / "description" / "metadata", content)
    _write(checkpoint / "_CHECKPOINT_METADATA", "{}")
    _write(checkpoint / "commit_success.txt", "")
    simclr_jax.load(str(folder))


RUNS = [
    _run("without config.json", None),
    _run("config.json that ends early", '{"seed": '),
    _run("config.json holds a list", "[1]"),
    _run("config.json without keys", "{}"),
    _run("100,000 nested brackets in config.json", "[" * 100_000),
    _run("config.json of a later version", '{"format_version": 99}'),
    Case(
        "Run directories",
        "config.json is a folder",
        "config.json",
        lambda folder: directory.read_config(
            str(_write(folder / "config.json" / "x", "").parents[1])
        ),
    ),
    Case(
        "Run directories",
        "a description {} in a checkpoint",
        "checkpoints/5",
        lambda folder: _description(folder, "{}"),
    ),
    Case(
        "Run directories",
        "simclr_jax.load of what is not there",
        "none",
        lambda folder: simclr_jax.load(str(folder / "none")),
    ),
    Case(
        "Run directories",
        "simclr_jax.load of an empty folder",
        "DIR",
        lambda folder: simclr_jax.load(str(folder)),
    ),
    Case(
        "Run directories",
        "simclr_jax.load(DIR, step=35.0)",
        "step=35.0",
        lambda folder: simclr_jax.load(str(folder), step=35.0),
    ),
    Case(
        "Run directories",
        "simclr_jax.load(None)",
        "path=None",
        lambda folder: simclr_jax.load(None),
    ),
    Case(
        "Run directories",
        "export --format=onnx",
        "onnx",
        lambda folder: export.export(str(folder), "onnx", str(folder / "out")),
    ),
]


def _study(given: str, names: str, *arguments: Any) -> Case:
    return Case("Studies", given, names, lambda _: cells.open_study(*arguments))


STUDIES = [
    _study("--study=temprature", "--study=temprature", "temprature", "minutes"),
    _study("--scale=hours", "--scale=hours", "objectives", "hours"),
    _study(
        "--study=temperature --set=loss.temperature=1",
        "sets loss.temperature",
        *("temperature", "gpu", ["loss.temperature=1"]),
    ),
    _study(
        "--study=batch_size_epochs --set=schedule.train_steps=500",
        "would override schedule.train_epochs",
        *("batch_size_epochs", "minutes", ["schedule.train_steps=500"]),
    ),
    Case(
        "Studies",
        "--study=batch_size_epochs --set=batch.micro_batch_size=96",
        "cell 3-64-seed0: config.batch.micro_batch_size=96",
        lambda _: cells.expand(
            cells.open_study(
                "batch_size_epochs", "minutes", ["batch.micro_batch_size=96"]
            )
        ),
    ),
    Case(
        "Studies",
        "--workdir=DIR/studies of another study",
        "--workdir=DIR/studies: holds --study=objectives",
        lambda folder: [
            cells.Folder(str(folder / "studies")).claim(name, "minutes")
            for name in ("objectives", "temperature")
        ],
    ),
    Case(
        "Studies",
        "--only_figures, no study in --workdir",
        "--only_figures: there is no study",
        lambda folder: list(
            command.run(
                command.Request(
                    "objectives", "minutes", str(folder / "new"), only_figures=True
                ),
                start=lambda: None,
            )
        ),
    ),
]

CASES = {
    f"{case.group}: {case.given}": case
    for case in (
        *(*VALUES, *CONFIG_FILES, *COMMAND_LINES, *IMAGES),
        *(*ARCHIVES, *PREPARED, *WEIGHTS, *RUNS, *STUDIES),
    )
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_ends_in_one_line(name, tmp_path, record_property, monkeypatch):
    case = CASES[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InvalidInput, RunFailed)) as error:
        case.call(tmp_path)
    message = errors.printable(" ".join(str(error.value).split()))
    message = message.replace(str(tmp_path), "DIR").replace(f"{commands.ROOT}/", "")
    assert "\n" not in str(error.value).strip()
    assert case.names in message, message
    assert len(message) < 700
    for internal in ("Traceback", "{{", "[Op:", "function_node", "<class '", " at 0x"):
        assert internal not in message, message
    row = {"group": case.group, "given": case.given, "message": message}
    record_property("bad input", row)


def test_the_page_lists_every_input():
    rows = [f"| {bad_input_page.cell(case.given)} |" for case in CASES.values()]
    assert len(rows) >= 60
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    listed = [line for line in lines if line != "| given | error |"]
    for row, line in zip(rows, listed, strict=True):
        assert line.startswith(row)


# The same through commands, as users see it.
_RUN = "--workdir=DIR/run"
COMMANDS = {
    "a value": ["pretrain", "--config=smoke", "--config.loss.temperature=0", _RUN],
    "a flag": ["pretrain", "--config=smoke", "--wrkdir=DIR/run", _RUN],
    "a file": ["pretrain", "--config=DIR/mine.py", _RUN],
    "images": ["prepare", "--input=DIR/images", "--output=DIR/out"],
    "weights": ["convert", "--input=DIR/x.pth", "--normalization=none", _RUN],
    "a run": ["evaluate", "--workdir=DIR/none", "--protocol=knn"],
}
_SAYS = {
    "a value": "config.loss.temperature=0.0: must be positive",
    "a flag": "Unknown command line flag 'wrkdir'",
    "a file": "--config=DIR/mine.py, line 1: ",
    "images": "DIR/images: holds no image",
    "weights": "DIR/x.pth: is not a PyTorch file",
    "a run": "DIR/none",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_end_with_one_line(name, tmp_path):
    _write(tmp_path / "mine.py", "import nosuchmodule\n")
    _write(tmp_path / "images" / "readme.txt", "")
    _write(tmp_path / "x.pth", "text")
    module, *arguments = [word.replace("DIR", str(tmp_path)) for word in COMMANDS[name]]
    code, out, err = commands.run(module, *arguments)
    assert code == 2
    *logged, last = err.splitlines()
    assert last.startswith("error: ")
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in logged)
    assert _SAYS[name] in last.replace(str(tmp_path), "DIR")
    assert not (tmp_path / "run").exists()
    assert not out

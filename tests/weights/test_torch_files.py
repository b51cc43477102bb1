"""Files of PyTorch 2.14, read without PyTorch."""

import io
import pathlib
import pickle
import resource
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from simclr_jax.errors import DataError
from simclr_jax.weights import torch_files

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
BASE = np.arange(12, dtype=np.float32)
KINDS = {
    "whole": BASE.reshape(3, 4),
    "transposed": BASE.reshape(3, 4).T,
    "slice": BASE[3:9:2],
    "scalar": np.array(7),
    "half": np.array([0.5, -2], np.float16),
    "bfloat16": np.array([1.5, -3], jnp.bfloat16),
    "double": np.array([1e-300]),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
    "uint8": np.array([255], np.uint8),
    "expanded": np.array([2, 2, 2], np.float32),
}


def test_every_kind_of_tensor():
    got = torch_files.read_state_dict(str(GOLDEN / "torch_kinds.pth"))
    assert got.keys() == KINDS.keys()
    for key, want in KINDS.items():
        np.testing.assert_array_equal(got[key], want)
        assert got[key].dtype == want.dtype


def test_training_checkpoints_keep_weights_under_a_key():
    got = torch_files.read_state_dict(str(GOLDEN / "torch_moco.pth"))
    assert all(name.startswith("module.encoder_") for name in got)
    assert len(got) == 2 * 122


def test_safetensors(tmp_path):
    arrays = {k: v for k, v in KINDS.items() if k != "bfloat16"}
    arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    path = str(tmp_path / "x.safetensors")
    safetensors.numpy.save_file(arrays, path)
    got = torch_files.read_state_dict(path)
    assert got.keys() == arrays.keys()
    for key, want in arrays.items():
        np.testing.assert_array_equal(got[key], want)


# The first bytes of the format before PyTorch 1.6: its magic number, pickled.
OLD_FORMAT = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


def test_the_old_format_names_its_conversion(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(OLD_FORMAT + b"rest")
    with pytest.raises(DataError, match=r"torch\.load.*torch\.save") as caught:
        torch_files.read_state_dict(str(path))
    assert str(caught.value).startswith(f"file {path}: is not in the zip format")


class Attack:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self._path,)


def zipped(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return buffer.getvalue()


@pytest.mark.parametrize("wrap", [zipped, bytes])
def test_nothing_in_a_file_is_executed(wrap, tmp_path):
    made = tmp_path / "made"
    evil = tmp_path / "evil.pth"
    content = pickle.dumps({"state_dict": Attack(made)}, protocol=2)
    pickle.loads(content)
    assert made.exists()  # so it is an attack
    made.unlink()
    evil.write_bytes(wrap(content))
    with pytest.raises(DataError):
        torch_files.read_state_dict(str(evil))
    assert not made.exists()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.95])
@pytest.mark.parametrize("name", ["torch_moco.pth", "safetensors"])
def test_truncated_files(name, share, tmp_path):
    if name == "safetensors":
        content = safetensors.numpy.save({"x": np.ones(1000, np.float32)})
        path = tmp_path / "x.safetensors"
    else:
        content = (GOLDEN / name).read_bytes()
        path = tmp_path / "x.pth"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=f"file {path}: cannot be read"):
        torch_files.read_state_dict(str(path))


def test_a_flipped_bit_is_noticed_in_archives(tmp_path):
    content = bytearray((GOLDEN / "torch_moco.pth").read_bytes())
    with zipfile.ZipFile(GOLDEN / "torch_moco.pth") as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
    content[entry.header_offset + 200] ^= 4
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(DataError, match="CRC"):
        torch_files.read_state_dict(str(path))


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((3,), (2,), 0), ((2,), (1,), 4), ((2,), (-1,), 1), ((-2,), (1,), 0)],
)
def test_tensors_stay_in_their_storage(size, stride, offset):
    storage = torch_files._Storage(lambda: np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="outside its storage"):
        torch_files._Lazy(storage, offset, size, stride).array()


def test_files_without_tensors_name_what_they_hold(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(zipped(pickle.dumps({"epoch": 3, "best": 0.5}, protocol=2)))
    with pytest.raises(DataError, match="its keys are epoch, best"):
        torch_files.read_state_dict(str(path))


def test_files_are_told_by_their_content(tmp_path):
    for content in ((GOLDEN / "torch_moco.pth").read_bytes(), OLD_FORMAT):
        (tmp_path / "any.name").write_bytes(content)
        assert torch_files.is_torch_file(str(tmp_path / "any.name"))
    (tmp_path / "text").write_text("hello")
    for path in (tmp_path / "text", tmp_path, tmp_path / "nowhere"):
        assert not torch_files.is_torch_file(str(path))


def test_a_small_file_cannot_fill_the_memory():
    storage = torch_files._Storage(lambda: np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="far larger than its storage"):
        torch_files._Lazy(storage, 0, (10**8,), (0,)).array()


def test_nested_dicts_do_no_harm(tmp_path):
    shared = {"a": 1}
    for _ in range(60):
        shared = {"a": shared, "b": shared}
    circle = {}
    circle["state_dict"] = circle
    for i, content in enumerate((shared, circle)):
        path = tmp_path / f"{i}.pth"
        path.write_bytes(zipped(pickle.dumps(content, protocol=2)))
        with pytest.raises(DataError, match="must hold tensors by name"):
            torch_files.read_state_dict(str(path))


def test_no_number_in_a_pickle_takes_memory_or_time(tmp_path):
    # The hash of tuples of tuples takes 2**60 steps.
    tuples = b")" + b"2\x86" * 60
    contents = {
        "the number of a memo's entry": b"\x80\x02}r\xff\xff\xff\x7f.",
        "the size of a byte array": b"\x80\x05\x96" + bytes(4) + b"\1\0\0\0.",
        "a key": b"\x80\x02}" + tuples + b"K\x01s.",
        "a member of a set": b"\x80\x04\x8f(" + tuples + b"\x90.",
        "a member of a frozen set": b"\x80\x04(" + tuples + b"\x91.",
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in contents.values():
        path = tmp_path / "x.pth"
        path.write_bytes(zipped(content))
        with pytest.raises(DataError):
            torch_files.read_state_dict(str(path))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1 << 18, "in KiB"

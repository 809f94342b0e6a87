"""The labelled sets of the papers: read from their published files, whole and broken, and fetched when asked for."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from adedge.data import labelled_sets
from adedge.data.datasets import load_dataset
from adedge.data.labelled_sets import Source
from adedge.errors import DataError
from adedge.limits import Limit


def idx(values: NDArray[np.uint8]) -> bytes:
    """The idx format, as its page describes it: 0, 0, type 8, dimensions; lengths big-endian; bytes."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(length.to_bytes(4, "big") for length in values.shape)
    return header + values.tobytes()


def write_idx_set(folder: Path, *, zipped: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """40 training and 20 test pictures of 6 x 5 pixels; returns the test pictures and labels."""
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 6, 5), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, values in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            data = idx(values)
            (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(data) if zipped else data)
    return images, labels


@pytest.mark.parametrize(
    ("data", "folder", "zipped"),
    [
        ("mnist:3", "mnist", True),
        ("mnist:3", "MNIST/raw", False),
        ("fashion-mnist:3", "fashion_mnist", True),
        ("fashion-mnist:3", "FashionMNIST/raw", True),
    ],
)
def test_one_class_is_good_and_the_others_anomalous(tmp_path: Path, data: str, folder: str, zipped: bool) -> None:
    images, labels = write_idx_set(tmp_path / folder, zipped=zipped)
    dataset = load_dataset(data, root=tmp_path, holdout=0.25)
    assert (dataset.name, len(dataset.train), len(dataset.calibration)) == (data, 3, 1)
    assert [sample.label for sample in dataset.test] == [int(label != 3) for label in labels]
    assert [sample.kind for sample in dataset.test][:5] == ["0", "1", "2", "good", "4"]
    np.testing.assert_array_equal(np.stack([sample.read() for sample in dataset.test]), images[..., None])
    assert dataset.test[0].read_mask() is None
    assert dataset.sizes == {(6, 5): 24}


def test_sets_are_found_through_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx_set(tmp_path / "mnist", zipped=True)
    monkeypatch.setenv("ADEDGE_DATA", str(tmp_path))
    assert len(load_dataset("mnist:0").test) == 20


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("foo:3", "'foo:3' is neither a folder nor a known set: give a folder of pictures, or mnist:0 to mnist:9"),
        ("mnist:10", "mnist has no class '10': give one of mnist:0 to mnist:9"),
        ("mnist:-1", "mnist has no class '-1'"),
        ("mnist:", "mnist has no class ''"),
        ("mnist:3", "the files of mnist .*train-images-idx3-ubyte.gz.* are not in .*add --download"),
        ("cifar10:3", "the files of cifar10 .*data_batch_1.bin.*cifar-10-binary.tar.gz.* are not in"),
    ],
)
def test_sets_that_are_unknown_or_absent_are_refused(tmp_path: Path, data: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        load_dataset(data, root=tmp_path)


@pytest.mark.parametrize(
    ("name", "damage", "sentence"),
    [
        ("train-images-idx3-ubyte", lambda data: data[:-1], "should hold 1200 bytes after its header and holds 1199"),
        ("train-images-idx3-ubyte", lambda data: data + b"x", "and holds more"),
        ("train-images-idx3-ubyte", lambda data: data[:10], "is no idx file of 3 dimension"),
        ("train-images-idx3-ubyte", lambda data: b"\x01" + data[1:], "is no idx file of 3 dimension"),
        ("train-labels-idx1-ubyte", lambda data: idx(np.zeros(39, np.uint8)), "has 40 pictures and .* 39 labels"),
        ("t10k-labels-idx1-ubyte", lambda data: data[:-1] + b"\x0a", "has the label 10, above 9"),
    ],
    ids=["truncated", "too-long", "no-header", "other-magic", "fewer-labels", "label-10"],
)
def test_damaged_idx_files_are_named(tmp_path: Path, name: str, damage: object, sentence: str) -> None:
    write_idx_set(tmp_path / "mnist", zipped=False)
    path = tmp_path / "mnist" / name
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=sentence):
        load_dataset("mnist:3", root=tmp_path)


@pytest.mark.fault("archives that are bombs, cut off or unsafe")
@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:100] + b"\xff" * 50 + data[150:]])
def test_damaged_gzip_files_are_named(tmp_path: Path, damage: object) -> None:
    write_idx_set(tmp_path / "mnist", zipped=True)
    path = tmp_path / "mnist/train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match="train-images-idx3-ubyte.gz cannot be read"):
        load_dataset("mnist:3", root=tmp_path)


def cifar_batches() -> dict[str, bytes]:
    """Six small batches whose n-th picture is red n, green n + 50, blue n + 100, with a darker first row."""
    batches = {}
    for number, name in enumerate([f"data_batch_{part}.bin" for part in range(1, 6)] + ["test_batch.bin"]):
        records = b""
        for n in range(10):
            planes = np.stack([np.full((32, 32), number + n + 50 * channel, np.uint8) for channel in range(3)])
            planes[:, 0] //= 2
            records += bytes([n]) + planes.tobytes()
        batches[name] = records
    return batches


@pytest.mark.parametrize("archived", [False, True], ids=["files", "tar.gz"])
def test_cifar10_is_read_in_bgr_order(tmp_path: Path, archived: bool) -> None:
    folder = tmp_path / "cifar10"
    folder.mkdir()
    if archived:
        with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
            for name, data in cifar_batches().items():
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    else:
        for name, data in cifar_batches().items():
            (folder / name).write_bytes(data)
    dataset = load_dataset("cifar10:5", root=tmp_path)
    assert (len(dataset.train), len(dataset.calibration), len(dataset.test)) == (4, 1, 10)
    frame = dataset.test[2].read()
    assert frame.shape == (32, 32, 3)
    assert frame[1, 0].tolist() == [107, 57, 7]  # test is batch number 5
    assert frame[0, 31].tolist() == [53, 28, 3]


def test_truncated_cifar10_is_named(tmp_path: Path) -> None:
    for name, data in cifar_batches().items():
        (tmp_path / name).write_bytes(data[:-1] if name == "data_batch_4.bin" else data)
    with pytest.raises(DataError, match=r"data_batch_4.bin of .* has 30729 bytes, no multiple of 3073"):
        load_dataset("cifar10:5", root=tmp_path)
    (tmp_path / "data_batch_4.bin").unlink()
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="cifar-10-binary.tar.gz cannot be read"):
        load_dataset("cifar10:5", root=tmp_path)


def test_an_archive_without_all_batches_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz"):
        pass
    with pytest.raises(DataError, match="cifar-10-binary.tar.gz has no data_batch_1.bin"):
        load_dataset("cifar10:5", root=tmp_path)


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"data": 1}))
    with pytest.raises(DataError, match=r"is CIFAR-10's Python version, a pickle.*get the binary version"):
        load_dataset("cifar10:5", root=tmp_path)


def published(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MNIST be published in ``folder``, with the digests of the files that are there now."""
    files = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setitem(labelled_sets.SOURCES, "mnist", Source(url=f"{folder.as_uri()}/", files=files))


def test_a_download_needs_no_torchvision_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = write_idx_set(tmp_path / "web", zipped=True)
    published(tmp_path / "web", monkeypatch)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    dataset = load_dataset("mnist:3", root=tmp_path / "root", download=True)
    assert np.array_equal(np.stack([sample.read() for sample in dataset.test]), images[..., None])
    assert sorted(path.name for path in (tmp_path / "root/mnist").iterdir()) == sorted(
        path.name for path in (tmp_path / "web").iterdir()
    )
    assert load_dataset("mnist:3", root=tmp_path / "root").digest == dataset.digest


def test_a_download_of_other_bytes_or_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx_set(tmp_path / "web", zipped=True)
    published(tmp_path / "web", monkeypatch)
    changed = tmp_path / "web/t10k-images-idx3-ubyte.gz"
    changed.write_bytes(changed.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz is not the file that was published"):
        load_dataset("mnist:3", root=tmp_path / "root", download=True)
    assert not (tmp_path / "root/mnist" / changed.name).exists()
    changed.unlink()
    with pytest.raises(DataError, match=r"mnist cannot be downloaded to .*root/mnist .*: put its files there by hand"):
        load_dataset("mnist:3", root=tmp_path / "root", download=True)


def test_nothing_is_downloaded_when_the_files_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled_sets, "_download", lambda name, root: pytest.fail("downloaded"))
    write_idx_set(tmp_path / "mnist", zipped=True)
    load_dataset("mnist:3", root=tmp_path, download=True)


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives of at most 1 MB, and their files of 0.5 MB: bombs for a test to light."""
    monkeypatch.setattr(labelled_sets, "ARCHIVE_BYTES", Limit(1 << 20, "bytes"))
    monkeypatch.setattr(labelled_sets, "SET_BYTES", Limit(1 << 19, "bytes"))


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    return info, data


@pytest.mark.fault("archives that are bombs, cut off or unsafe")
@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize(
    ("archive", "sentence"),
    [
        (
            tar_of(member("readme", bytes(2 << 20))),
            r"cifar-10-binary\.tar\.gz, decompressed, has .* bytes, and at most",
        ),
        (tar_of(member("data_batch_1.bin", bytes(600_000))), "data_batch_1.bin of .* has 6e.05 bytes, and at most"),
        (tar_of(member("a/data_batch_1.bin", b"x"), member("data_batch_1.bin", b"y")), "two files data_batch_1.bin"),
        (tar_of(member("data_batch_1.bin", b"", tarfile.SYMTYPE)), "has no data_batch_1.bin"),
        (tar_of(member("data_batch_1.bin", b"x"))[:-9], "cannot be read"),
        (b"PK\x05\x06" + bytes(18), "cannot be read"),
    ],
    ids=["bomb", "large-file", "twice", "link", "cut", "zip"],
)
def test_archives_that_are_not_as_published_are_refused(tmp_path: Path, archive: bytes, sentence: str) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(archive)
    with pytest.raises(DataError, match=sentence) as caught:
        load_dataset("cifar10:3", root=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.fault("archives that are bombs, cut off or unsafe")
@pytest.mark.usefixtures("small_limits")
def test_an_idx_file_that_grows_is_refused(tmp_path: Path) -> None:
    write_idx_set(tmp_path / "mnist", zipped=True)
    bomb = gzip.compress(bytes([0, 0, 8, 3, 0, 0, 64, 0, 0, 0, 64, 0, 0, 0, 64, 0]) + bytes(1 << 20))
    (tmp_path / "mnist/train-images-idx3-ubyte.gz").write_bytes(bomb)
    with pytest.raises(DataError, match=r"ubyte\.gz, decompressed, has .* bytes, and at most 524288"):
        load_dataset("mnist:3", root=tmp_path)

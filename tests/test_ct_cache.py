"A CT that is kept as it was read: the same to the bit, and made again after any change"

import locale
import multiprocessing
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from xvr import volume as module
from xvr.volume import make_volume, read_volume

SHAPE = 100, 110, 120
OPTIONS = dict(plain={}, window=dict(window=(-500, 900)), bone=dict(bone_attenuation_multiplier=2))
FIELDS = "density", "labels", "world_from_voxel", "centre"


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    "A ball of bone in tissue in air, with padding to be noted, and a labelmap of it"
    folder = tmp_path_factory.mktemp("ct")
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    away = np.sqrt((z - 50.0) ** 2 + (y - 55) ** 2 + (x - 60) ** 2)
    noise = np.random.default_rng(0).integers(-20, 20, SHAPE)
    hu = np.select([away < 15, away < 45], [700, 40], -1000) + noise
    hu[:, :2] = -3024
    image = sitk.GetImageFromArray(hu.astype(np.int16))
    image.SetSpacing([1.0, 1.25, 1.5])
    sitk.WriteImage(image, str(folder / "ct.nii.gz"))
    labels = sitk.GetImageFromArray(np.where(away < 15, 300, 0).astype(np.int16))
    labels.CopyInformation(image)
    sitk.WriteImage(labels, str(folder / "labels.nii.gz"))
    return folder / "ct.nii.gz"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XVR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "volumes"


@pytest.fixture
def reads(monkeypatch):
    "The paths that were read anew"
    read, paths = module._read_anew, []
    monkeypatch.setattr(
        module, "_read_anew", lambda path, *args, **how: (paths.append(path), read(path, *args, **how))[1]
    )
    return paths


def same(one, other) -> bool:
    tensors = ((getattr(v, name) for v in (one, other)) for name in FIELDS)
    alike = all(a is b is None or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in tensors)
    return alike and (one.notes, one.hu_range, one.names) == (other.notes, other.hu_range, other.names)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_cold_and_warm_are_the_same_to_the_bit(ct, cache, reads, options):
    anew = read_volume(ct, no_cache=True, **options)
    assert not cache.exists()
    cold, warm = read_volume(ct, **options), read_volume(ct, **options)
    assert same(anew, cold) and same(anew, warm) and len(reads) == 2
    assert "window" in options or "below -1024 HU (down to -3024)" in anew.notes[0]
    for level in (2, 5, 9):
        shape = cold.at(level).shape
        assert torch.equal(cold.at(level).density, anew.at(level).density) and shape == anew.at(level).shape
        assert torch.equal(warm.at(level).density, anew.at(level).density)
        assert torch.equal(warm.at(level).world_from_voxel, anew.at(level).world_from_voxel)


def test_labels_are_kept_too(ct, cache, reads):
    mask = ct.with_name("labels.nii.gz")
    anew = read_volume(ct, mask, [300], no_cache=True)
    assert same(read_volume(ct, mask, [300]), anew) and same(read_volume(ct, mask, [300]), anew)
    assert anew.labels.dtype == torch.int16 and torch.equal(anew.density > 0, (anew.labels == 300) & (anew.density > 0))
    assert len(reads) == 2 and not same(read_volume(ct, mask), anew)
    assert len(reads) == 3


def test_a_series_is_read_again_after_one_of_its_slices_changed(tmp_path, cache, reads):
    hu = np.random.default_rng(0).integers(-1000, 500, (8, 400, 400)).astype(np.int16)
    series, before = tmp_path / "series", locale.setlocale(locale.LC_ALL)
    series.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for n, plane in enumerate(hu):
        image = sitk.GetImageFromArray(plane[None])
        tags = {"0020|000e": "1.2.3", "0008|0060": "CT", "0020|0032": f"0\\0\\{n}", "0020|0037": "1\\0\\0\\0\\1\\0"}
        for tag, value in (tags | {"0028|1053": "1", "0028|1052": "0"}).items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(series / f"{n}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)  # SimpleITK 2.5.7 leaves it at C when it has written a slice's position
    first = read_volume(series)
    assert same(first, read_volume(series)) and len(reads) == 1
    content = bytearray((series / "3.dcm").read_bytes())
    content[-2000:-1000] = bytes(1000)
    (series / "3.dcm").write_bytes(content)
    assert not torch.equal(read_volume(series).density, first.density) and len(reads) == 2
    (series / "7.dcm").unlink()
    assert read_volume(series).shape[2] == 7


def test_a_file_of_the_same_size_and_time_but_other_ends_is_read_again(ct, tmp_path, cache, reads):
    path = tmp_path / "ct.nii"
    image = sitk.ReadImage(str(ct))
    sitk.WriteImage(image, str(path))
    first, about = read_volume(path), path.stat()
    image[119, 109, 99] = 1000
    sitk.WriteImage(image, str(path))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert path.stat().st_size == about.st_size and path.stat().st_mtime_ns == about.st_mtime_ns
    assert read_volume(path).density[99, 109, 119] > first.density[99, 109, 119] == 0 and len(reads) == 2


def test_another_place_other_options_and_another_library_are_other_entries(ct, cache, monkeypatch):
    how = dict(window=None)
    entries = [module._entry_of(ct, None, how), module._entry_of(ct, None, dict(window=(0, 1)))]
    entries += [module._entry_of(ct, ct.with_name("labels.nii.gz"), how)]
    entries += [module._entry_of(shutil.copy2(ct, cache.parent.parent / "ct.nii.gz"), None, how)]
    monkeypatch.setattr(module, "version", lambda name: "0")
    entries += [module._entry_of(ct, None, how)]
    assert len({*entries}) == 5 and {e.parent for e in entries} == {cache}


@pytest.mark.parametrize("shape", [(40, 90, 101), (7, 64, 33), (130, 17, 16)])
def test_levels_are_averages_under_tents(shape):
    density = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    volume = make_volume(density, torch.diag(torch.tensor([0.7, 1, 2.1, 1])).double())
    for spacing in (1, 2, 5, 30):
        level, exact = volume.at(spacing), density.double()
        for axis, (n, m) in enumerate(zip(shape, level.density.shape)):
            place = torch.arange(-n, 2 * n).double()
            centre = (torch.arange(m).double() + 0.5) * n / m - 0.5
            tent = (1 - (place - centre[:, None]).abs() * m / n).clamp(min=0)
            tent = (tent / tent.sum(1, keepdim=True))[:, n : 2 * n] if m < n else torch.eye(n).double()
            exact = torch.tensordot(tent, exact.movedim(axis, 0), 1).movedim(0, axis)
        assert torch.allclose(level.density.double(), exact, rtol=0, atol=3e-7)


def cut(path: Path):
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path):
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\x7f" * 16)


@pytest.mark.parametrize("damage", [cut, overwrite, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["about.json", "density", "level_*"])
def test_a_damaged_entry_is_made_again(ct, cache, reads, name, damage):
    level = read_volume(ct).at(6).density.clone()
    (path,) = cache.glob(f"*/{name}")
    damage(path)
    again = read_volume(ct)
    assert same(again, read_volume(ct, no_cache=True)) and torch.equal(again.at(6).density, level)
    assert same(read_volume(ct), again) and len(reads) == (2 if "level" in name else 3)
    assert len(list(cache.iterdir())) == 1


def test_what_is_changed_in_memory_stays_out_of_the_cache(ct, cache):
    anew, ours = read_volume(ct, no_cache=True), read_volume(ct)
    ours.density[:50] = 1
    assert ours.at(6).density[0].min() > 0.5  # of the changed density
    ours.at(6).density.zero_()
    assert same(read_volume(ct), anew) and torch.equal(read_volume(ct).at(6).density, anew.at(6).density)


@pytest.mark.parametrize("how", ["0", "file"])
def test_no_folder_is_no_error(ct, tmp_path, monkeypatch, how):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XVR_CACHE", "0" if how == "0" else str(tmp_path / "file"))
    anew = read_volume(ct, no_cache=True)
    assert same(read_volume(ct), anew) and same(read_volume(ct), anew) and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_no_error(ct, cache, monkeypatch):
    anew = read_volume(ct, no_cache=True)

    def write(values, path):
        path.write_bytes(b"a part")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(module, "_write_tensor", write)
        assert same(read_volume(ct), anew) and not [*cache.iterdir()]
    kept = read_volume(ct)
    with monkeypatch.context() as full:
        full.setattr(module, "_write_tensor", write)
        assert torch.equal(kept.at(6).density, anew.at(6).density)
    assert sorted(p.name for p in cache.rglob("*") if p.is_file()) == ["about.json", "density"]


def test_what_was_not_used_for_longest_goes_first(ct, cache, monkeypatch):
    size = read_volume(ct, no_cache=True).density.nbytes
    monkeypatch.setattr(module, "_MOST_KEPT", int(2.5 * size))
    paths = [Path(shutil.copy2(ct, cache.parent.parent / f"{n}.nii.gz")) for n in range(3)]
    entry = [module._entry_of(p, None, dict(window=None, bone_attenuation_multiplier=1.0, labels=None)) for p in paths]
    read_volume(paths[0]), read_volume(paths[1])
    os.utime(entry[0], (1, 1)), os.utime(entry[1], (2, 2))
    read_volume(paths[0])  # used again
    read_volume(paths[2])
    assert {*cache.iterdir()} == {entry[0], entry[2]}
    monkeypatch.setattr(module, "_MOST_KEPT", size // 2)
    read_volume(paths[1])
    assert entry[1] not in {*cache.iterdir()}


def checksum(path, cache, start, found):
    os.environ["XVR_CACHE"] = str(cache)
    start.wait()
    volume = read_volume(path)
    found.put([zlib.crc32(v.density.numpy().tobytes()) for v in (volume, volume.at(3), volume.at(9))])


def test_two_processes_at_once(ct, cache):
    context = multiprocessing.get_context("spawn")  # a fork would have PyTorch's threads, which do not run there
    start, found = context.Barrier(2), context.Queue()
    children = [context.Process(target=checksum, args=(ct, cache.parent, start, found)) for _ in range(2)]
    for child in children:
        child.start()
    results = [found.get(timeout=120) for _ in children]
    for child in children:
        child.join()
    anew = read_volume(ct, no_cache=True)
    assert results == 2 * [[zlib.crc32(v.density.numpy().tobytes()) for v in (anew, anew.at(3), anew.at(9))]]
    assert len([*cache.iterdir()]) == 1 and same(read_volume(ct), anew)


PEAK = """
import re, sys
from pathlib import Path
import nibabel
from xvr.volume import read_volume
peak = lambda: int(re.search("VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
read_volume(sys.argv[1])  # what is allocated once
for path in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")  # begins a new peak
    before = peak()
    volume = read_volume(path)
    print((peak() - before) / volume.density.nbytes)
    del volume
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel reports the peak of memory")
def test_reading_takes_little_more_memory_than_the_density(tmp_path):
    hu = np.full((120, 320, 320), -1000, np.int16)
    hu[20:100, 40:280, 40:280], hu[50:60, 100:110, 100:110], hu[:, :3] = 30, 5000, -2048
    paths = [tmp_path / name for name in ("ct.nii.gz", "ct.nii", "ct.nrrd", "float.nii")]
    for path in paths:
        kind = np.float32 if path.stem == "float" else np.int16
        sitk.WriteImage(sitk.GetImageFromArray(hu.astype(kind)), str(path))
    script = [sys.executable, "-c", PEAK, *map(str, paths)]
    printed = subprocess.run(script, env=os.environ | {"XVR_CACHE": "0"}, capture_output=True, check=True).stdout
    ratios = [float(line) for line in printed.split()]
    assert max(ratios) < 1.8, ratios  # measured: 1.0 to 1.5; a second copy would be 2

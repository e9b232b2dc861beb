"Labelmaps that are not on the grid of their volume: each label is found where it was drawn"

import numpy as np
import pytest
import SimpleITK as sitk

from xvr.conventions import XvrError
from xvr.volume import read_volume

TURNED = (0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1)
SIZE = (20, 24, 16)


def grid(values, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)):
    "Values indexed z, y, x on voxels of 2 x 3 x 4 mm"
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((2, 3, 4))
    image.SetOrigin((10, -20, 30))
    image.SetDirection(direction)
    return image


@pytest.fixture(params=[(1, 0, 0, 0, 1, 0, 0, 0, 1), TURNED], ids=["straight", "oblique"])
def case(request, tmp_path):
    "A CT in a file, and its labels: 3 at x 5 to 8, 9 at x 9 to 11"
    hu, labels = np.full(SIZE[::-1], -1000, np.int16), np.zeros(SIZE[::-1], np.uint8)
    hu[2:14, 4:20, 3:17] = np.random.default_rng(0).integers(20, 60, (12, 16, 14))
    labels[4:9, 6:15, 5:9], labels[4:9, 6:15, 9:12] = 3, 9
    sitk.WriteImage(grid(hu, request.param), str(tmp_path / "ct.nrrd"))
    return tmp_path / "ct.nrrd", grid(labels, request.param)


def read(path, labels, suffix=".nrrd"):
    mask = path.parent / f"mask{suffix}"
    sitk.WriteImage(labels, str(mask))
    return read_volume(path, mask)


@pytest.mark.parametrize("suffix", [".seg.nrrd", ".nii.gz", ".mha"])
@pytest.mark.parametrize("margin", [0, 2])
def test_cropped_to_its_segments(case, suffix, margin):
    path, labels = case
    m = margin
    v = read(path, labels[5 - m : 12 + m, 6 - m : 15 + m, 4 - m : 9 + m], suffix)
    assert np.array_equal(v.labels, sitk.GetArrayFromImage(labels))
    assert v.notes == [f"the labelmap mask{suffix} covers a part of the volume: background outside"]


def test_cropped_labels_alone_are_kept(case):
    path, labels = case
    mask = path.parent / "mask.nrrd"
    sitk.WriteImage(labels[5:12, 6:15, 4:9], str(mask))
    v = read_volume(path, mask, [9])
    assert np.array_equal(v.density, np.where(sitk.GetArrayFromImage(labels) == 9, read_volume(path).density, 0))


def test_the_whole_grid_needs_no_note(case):
    path, labels = case
    v = read(path, labels)
    assert np.array_equal(v.labels, sitk.GetArrayFromImage(labels)) and not v.notes


def test_more_than_the_volume(case):
    path, labels = case
    whole = sitk.ReadImage(str(path))
    sitk.WriteImage(whole[3:17, 4:20, 2:14], str(path))
    v = read(path, labels)
    assert np.array_equal(v.labels, sitk.GetArrayFromImage(labels)[2:14, 4:20, 3:17]) and "covers" not in str(v.notes)


def test_finer_and_cropped(case):
    path, labels = case
    part = labels[4:13, 4:18, 3:12]
    fine = sitk.Resample(
        part, [2 * n - 1 for n in part.GetSize()], sitk.Transform(), sitk.sitkNearestNeighbor, part.GetOrigin(),
        [s / 2 for s in part.GetSpacing()], part.GetDirection(),
    )  # fmt: skip
    assert np.array_equal(read(path, fine).labels, sitk.GetArrayFromImage(labels))


@pytest.mark.parametrize("moved", [(60, 0, 0), (0, 0, 40), (500, 0, 0)])
def test_partly_or_wholly_elsewhere_is_refused(case, moved):
    path, labels = case
    part = labels[2:14, 4:18, 3:12]
    part.SetOrigin(np.add(part.GetOrigin(), moved))
    with pytest.raises(XvrError, match="does not cover the volume"):
        read(path, part)


@pytest.mark.parametrize("suffix", [".seg.nrrd", ".nrrd"])
def test_layers(case, suffix):
    path, labels = case
    words = (
        "2 layers of segments.*3D Slicer as a binary labelmap" if suffix == ".seg.nrrd" else "not a 3D volume of one"
    )
    with pytest.raises(XvrError, match=words):
        read(path, sitk.Compose(labels, labels), suffix)

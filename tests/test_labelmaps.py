"Labelmaps that are not on the grid of their volume: each label is found where it was drawn"

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    RLELossless,
    SegmentationStorage,
    generate_uid,
)

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


def named(labels, *segments):
    "With the header that 3D Slicer writes: name, number and layer of each segment"
    for n, (name, value, layer) in enumerate(segments):
        for key, stated in dict(ID=f"Segment_{n}", Name=name, LabelValue=str(value), Layer=str(layer)).items():
            labels.SetMetaData(f"Segment{n}_{key}", stated)
    return labels


def inside_of(path, mask, *labels):
    "The voxels that are kept, and the notes"
    v, whole = read_volume(path, mask, list(labels)), read_volume(path)
    assert torch.equal(v.density, whole.density * v.inside(list(labels)))
    return v.inside(list(labels)).numpy(), v.notes


@pytest.mark.parametrize(
    "suffix, labels", [(".seg.nrrd", ["Hip left", "femur"]), (".nii.gz", ["hip_left", 3]), (".mha", [9, 3])]
)
def test_names_and_numbers_in_files(case, suffix, labels):
    path, image = case
    values, mask = sitk.GetArrayFromImage(image), path.parent / f"mask{suffix}"
    sitk.WriteImage(named(image, ("Femur", 3, 0), ("hip left", 9, 0)), str(mask))
    if suffix == ".nii.gz":
        scan = nib.load(mask)
        table = "".join(
            f'<Label Key="{n}" Red="1.0" Alpha="1"><![CDATA[{name}]]></Label>'
            for n, name in ((3, "femur"), (9, "hip_left"))
        )
        scan.header.extensions.append(nib.nifti1.Nifti1Extension(0, f"<LabelTable>{table}</LabelTable>".encode()))
        nib.save(scan, mask)
    for label, number in zip(labels, (9, 3)):
        kept, notes = inside_of(path, mask, label)
        assert np.array_equal(kept, values == number) and not notes
    if suffix != ".mha":
        with pytest.raises(
            XvrError,
            match="no structure 'hip', the nearest are hip_left; `labels` may be 3 femur, 9 hip.left"
            if suffix == ".nii.gz"
            else "nearest are hip_left",
        ):
            read_volume(path, mask, ["hip"])


def test_names_of_a_table(case):
    path, image = case
    mask = path.parent / "mask.nii.gz"
    sitk.WriteImage(sitk.Cast((image == 3) * 75 + (image == 9) * 77, sitk.sitkUInt8), str(mask))
    kept, [note] = inside_of(path, mask, "hip_left")
    assert np.array_equal(kept, sitk.GetArrayFromImage(image) == 9)
    assert note.startswith("hip_left is taken as label 77, as in TotalSegmentator's table total") and "`labels`" in note
    with pytest.raises(XvrError, match=r"labels \[25\] are not in the labelmap; it has \[0, 75, 77\]"):
        read_volume(path, mask, ["sacrum"])
    with pytest.raises(XvrError, match="no structure 'femur', the nearest are femur_left; `labels` may be 75, 77"):
        read_volume(path, mask, ["femur"])


@pytest.mark.parametrize("values", [(1, 1), (1, 2)], ids=["each from 1", "one count"])
@pytest.mark.parametrize("header", [True, False])
def test_layers_overlap(case, values, header):
    path, image = case
    array = sitk.GetArrayFromImage(image)
    masks = [array > 0, (array == 9) | (np.indices(array.shape)[0] == 6)]
    layers = sitk.Compose(*(grid(mask.astype(np.uint8) * v, image.GetDirection()) for mask, v in zip(masks, values)))
    mask = path.parent / "mask.seg.nrrd"
    sitk.WriteImage(named(layers, ("a", values[0], 0), ("b", values[1], 1)) if header else layers, str(mask))
    for n, label in enumerate(["a", "b"] if header else [1, 2]):
        kept, notes = inside_of(path, mask, label)
        assert np.array_equal(kept, masks[n])
        assert [("share numbers" in note) for note in notes] == [True] * (values == (1, 1))
    kept, _ = inside_of(path, mask, 1, 2)
    assert np.array_equal(kept, masks[0] | masks[1])


def test_layers_without_segments_are_refused(case):
    path, labels = case
    with pytest.raises(XvrError, match="not a 3D volume of one"):
        read(path, sitk.Compose(labels, labels), ".nrrd")


def test_segments_of_3d_slicer_before_it_had_layers(case):
    path, image = case
    array = sitk.GetArrayFromImage(image)
    layers = sitk.Compose(*(grid((array == v).astype(np.uint8), image.GetDirection()) for v in (3, 9)))
    for n, name in enumerate(("femur", "hip")):
        layers.SetMetaData(f"Segment{n}_Name", name)
    sitk.WriteImage(layers, str(path.parent / "mask.seg.nrrd"))
    for name, number in (("femur", 3), ("hip", 9)):
        assert np.array_equal(inside_of(path, path.parent / "mask.seg.nrrd", name)[0], array == number)


def item(**tags):
    made = Dataset()
    for keyword, value in tags.items():
        setattr(made, keyword, value)
    return made


def write_segmentation(
    path, image, masks, *, kind="BINARY", own=False, order=None, every=1, steps=True, syntax=ExplicitVRLittleEndian
):
    "Masks by number on the grid of an image, as a DICOM segmentation without empty frames"
    size, axes = image.GetSize(), np.array(image.GetDirection()).reshape(3, 3)
    frames = [(n, k) for n, mask in masks.items() for k in range(size[2]) if mask[k].any()]
    if kind == "LABELMAP":
        merged = sum(np.uint8(n) * mask for n, mask in masks.items())
        frames = [(0, k) for k in range(size[2]) if merged[k].any()]
    frames = [frames[i] for i in (range(len(frames)) if order is None else order.permutation(len(frames)))]
    more = dict(SpacingBetweenSlices=4) if steps else {}
    alike = dict(
        PlaneOrientationSequence=[item(ImageOrientationPatient=axes.T[:2].ravel().round(12).tolist())],
        PixelMeasuresSequence=[item(PixelSpacing=[3, 2], SliceThickness=4, **more)],
    )
    place = lambda k: image.TransformIndexToPhysicalPoint((0, 0, k))
    groups = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[f"{v:.10g}" for v in place(k)])],
            **(dict(SegmentIdentificationSequence=[item(ReferencedSegmentNumber=n)]) if n else {}),
            **(alike if own else {}),
        )
        for n, k in frames
    ]
    bits = 1 if kind == "BINARY" else 8
    tags = item(
        SOPClassUID=SegmentationStorage, SOPInstanceUID=generate_uid(), Modality="SEG", SegmentationType=kind,
        Rows=size[1], Columns=size[0], NumberOfFrames=len(frames), SamplesPerPixel=1, PixelRepresentation=0,
        PhotometricInterpretation="MONOCHROME2", BitsAllocated=bits, BitsStored=bits, HighBit=bits - 1,
        SegmentSequence=[item(SegmentNumber=n, SegmentLabel=f"Bone {n}") for n in masks],
        SharedFunctionalGroupsSequence=[item(**({} if own else alike))], PerFrameFunctionalGroupsSequence=groups,
    )  # fmt: skip
    tags.file_meta = FileMetaDataset()
    tags.file_meta.TransferSyntaxUID = syntax
    tags.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    if kind == "LABELMAP":
        pixels = np.stack([merged[k] for _, k in frames])
    else:
        pixels = np.stack([masks[n][k] for n, k in frames]).astype(np.uint8)
    if kind == "FRACTIONAL":
        tags.MaximumFractionalValue = 200
        pixels = np.where(pixels, 120, 80).astype(np.uint8)
    data = np.packbits(pixels, bitorder="little").tobytes() if bits == 1 else pixels.tobytes()
    tags.PixelData = data + bytes(len(data) % 2)
    if syntax == RLELossless:
        tags.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        tags.compress(RLELossless)
    tags.save_as(path, enforce_file_format=True)


LAYOUTS = {
    "highdicom": dict(),
    "dcmqi": dict(own=True),
    "random order": dict(order=np.random.default_rng(0)),
    "no steps stated": dict(steps=False),
    "fractional": dict(kind="FRACTIONAL"),
    "fractional, packed": dict(kind="FRACTIONAL", syntax=RLELossless),
    "numbers": dict(kind="LABELMAP", own=True),
    "deflated": dict(syntax=DeflatedExplicitVRLittleEndian),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dicom_segmentations(case, layout):
    path, image = case
    array = sitk.GetArrayFromImage(image)
    masks = {4: array == 3, 7: array == 9}
    write_segmentation(path.parent / "seg.dcm", image, masks, **LAYOUTS[layout])
    v = read_volume(path, path.parent / "seg.dcm")
    assert np.array_equal(v.labels, 4 * masks[4] + 7 * masks[7]) and v.names == {4: "Bone 4", 7: "Bone 7"}
    expected = (
        ["the segments of seg.dcm are fractional: a voxel belongs to one from half on"]
        if "fractional" in layout
        else []
    )
    assert v.notes == [*expected, "the labelmap seg.dcm covers a part of the volume: background outside"]
    assert np.array_equal(inside_of(path, path.parent / "seg.dcm", "bone 7")[0], masks[7])


def test_overlapping_dicom_segments(case):
    path, image = case
    array = sitk.GetArrayFromImage(image)
    masks = {1: array > 0, 2: array == 9, 3: array == 3, 4: np.indices(array.shape)[0] == 6}
    write_segmentation(path.parent / "seg.dcm", image, masks, order=np.random.default_rng(1))
    v = read_volume(path, path.parent / "seg.dcm")
    assert len(v.labels) == 3  # 2 and 3 share one
    for n, mask in masks.items():
        assert np.array_equal(v.inside([n]), mask)


def test_empty_slices_between_segments_stay_empty(case):
    path, image = case
    mask = (sitk.GetArrayFromImage(image) > 0) & (np.indices(SIZE[::-1])[0] % 2 == 0)
    write_segmentation(path.parent / "seg.dcm", image, {1: mask})
    assert np.array_equal(read_volume(path, path.parent / "seg.dcm").labels, mask)


def test_a_segment_of_a_single_slice(case):
    path, image = case
    mask = (sitk.GetArrayFromImage(image) > 0) & (np.indices(SIZE[::-1])[0] == 6)
    for steps in (True, False):
        write_segmentation(path.parent / "seg.dcm", image, {1: mask}, steps=steps)
        assert np.array_equal(read_volume(path, path.parent / "seg.dcm").labels, mask)


def damaged(path, **changes):
    tags = pydicom.dcmread(path)
    for keyword, value in changes.items():
        setattr(tags, keyword, value)
    tags.save_as(path)


@pytest.mark.parametrize(
    "changes",
    [
        dict(PixelData=bytes(10)),
        dict(PerFrameFunctionalGroupsSequence=[]),
        dict(SharedFunctionalGroupsSequence=[]),
        dict(Rows=3000),
    ],
)
def test_damaged_segmentations_are_refused(case, changes):
    path, image = case
    write_segmentation(path.parent / "seg.dcm", image, {1: sitk.GetArrayFromImage(image) > 0})
    damaged(path.parent / "seg.dcm", **changes)
    with pytest.raises(XvrError, match="could not be read as a DICOM segmentation .*export it as NIfTI or .seg.nrrd$"):
        read_volume(path, path.parent / "seg.dcm")


def test_other_dicom_is_no_labelmap(case):
    path, image = case
    write_segmentation(path.parent / "seg.dcm", image, {1: sitk.GetArrayFromImage(image) > 0})
    damaged(path.parent / "seg.dcm", Modality="CT")
    with pytest.raises(XvrError, match="its modality is CT, not SEG"):
        read_volume(path, path.parent / "seg.dcm")


def test_a_folder_with_a_file_for_each_structure(case):
    "As TotalSegmentator writes it: the numbers count the files, and structures may overlap"
    path, image = case
    array, folder = sitk.GetArrayFromImage(image), path.parent / "segmentations"
    folder.mkdir()
    masks = dict(femur_left=array == 3, hip_left=array == 9, pelvis=array > 0)
    for name, mask in masks.items():
        sitk.WriteImage(grid(mask.astype(np.uint8), image.GetDirection()), str(folder / f"{name}.nii.gz"))
    for n, (name, mask) in enumerate(masks.items(), 1):
        for label in (name, n, name.replace("_", " ").title()):
            assert np.array_equal(inside_of(path, folder, label)[0], mask)
    v = read_volume(path, folder)
    assert len(v.labels) == 2 and all(np.array_equal(v.inside([name]), mask) for name, mask in masks.items())
    with pytest.raises(XvrError, match="no structure 'femur', the nearest are femur_left"):
        read_volume(path, folder, ["femur"])
    with pytest.raises(XvrError, match=r"labels \[4\] are not in"):
        read_volume(path, folder, [4])
    sitk.WriteImage(grid(masks["pelvis"][1:].astype(np.uint8), image.GetDirection()), str(folder / "other.nii.gz"))
    with pytest.raises(XvrError, match="on several grids, such as that of other.nii.gz"):
        read_volume(path, folder)


def test_a_folder_of_one_dicom_segmentation(case):
    path, image = case
    (path.parent / "seg").mkdir()
    mask = sitk.GetArrayFromImage(image) > 0
    write_segmentation(path.parent / "seg/1.dcm", image, {3: mask})
    assert np.array_equal(inside_of(path, path.parent / "seg", "bone 3")[0], mask)


@pytest.mark.parametrize(
    "segment, words", [(("a", "x", 0), "that is none"), (("a", 3, 2), "layers that it does not have")]
)
def test_a_damaged_header_of_segments_is_refused(case, segment, words):
    path, image = case
    with pytest.raises(XvrError, match=words):
        read(path, named(image, segment), ".seg.nrrd")

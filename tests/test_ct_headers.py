"""Headers that bend a CT: each file holds the same field, whose value at every point is known, so that a voxel read at a
wrong place holds a wrong value"""

import gzip
import math

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from xvr.conventions import XvrError
from xvr.series import read_image, read_sitk
from xvr.volume import read_volume

SIZE = (12, 14, 16)
TURNED = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])


def field(points):  # RAS mm, (..., 3)
    return 100 + 3 * points[..., 0] - 2 * points[..., 1] + 4 * points[..., 2]


def affine_of(axes=np.eye(3), edges=(2, 3, 4), origin=(10.0, -20, 30)):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.asarray(axes) * edges, origin
    return affine


def sampled(affine):
    "The field on a grid, indexed x, y, z"
    index = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), -1)
    return field(index @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)


def save(path, affine, *, s=1, q=0, stated=None, qform=None, kind=nib.Nifti1Image, unit="mm", pixdim=None):
    "The field on the grid of `affine`, under the forms that are given"
    image = kind(sampled(affine), np.eye(4))
    image.set_sform(affine if stated is None else stated, s)
    image.set_qform(affine if qform is None else qform, q)
    image.header.set_xyzt_units(unit)
    if pixdim is not None:
        image.header["pixdim"][1:4] = pixdim
    nib.save(image, path)
    return path


def error(path, notes=None):
    "The largest difference between a voxel and the field at its place, two voxels or more inside the filled part"
    values, place = read_image(path, notes)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in values.shape), indexing="ij")[::-1], -1)
    expected = field(index @ place[:3, :3].numpy().T + place[:3, 3].numpy())
    inside = ndimage.binary_erosion(values.numpy() > values.min().item(), iterations=2)
    assert inside.sum() > 100
    return np.abs(values.numpy() - expected)[inside].max()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_file_of_the_same_name_does_not_lend_its_voxels(tmp_path, suffix):
    values = {".nii": 5, ".nii.gz": 7}
    for ending, value in values.items():
        nib.save(nib.Nifti1Image(np.full((4, 5, 6), value, np.int16), np.eye(4)), tmp_path / f"ct{ending}")
    assert read_image(tmp_path / f"ct{suffix}")[0].unique().tolist() == [values[suffix]]


def test_a_labelmap_of_the_same_name_is_its_own(tmp_path):
    hu, affine = np.full((4, 5, 6), -1000, np.int16), np.diag([-2.0, -2, 2, 1])
    hu[1:3, 1:4, 1:5] = 40
    nib.save(nib.Nifti1Image(hu, affine), tmp_path / "ct.nii.gz")
    for name, label in (("mask.nii", 3), ("mask.nii.gz", 4)):
        nib.save(nib.Nifti1Image(np.full((4, 5, 6), label, np.uint8), affine), tmp_path / name)
        assert read_volume(tmp_path / "ct.nii.gz", tmp_path / name).labels.unique().tolist() == [label]


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("axes", [np.eye(3), np.diag([-1, -1, 1]), TURNED, TURNED[:, [2, 0, 1]]])
def test_every_place_is_that_of_the_affine(tmp_path, kind, axes):
    assert error(save(tmp_path / "a.nii.gz", affine_of(axes), kind=kind), notes := []) < 0.01 and not notes


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<u2", "<f8", "|u1", ">f4"])
def test_types_and_byte_orders(tmp_path, dtype):
    values = np.arange(60, dtype=dtype).reshape(3, 4, 5)
    image = nib.Nifti1Image(values, np.eye(4), nib.Nifti1Header(endianness=dtype[0] if dtype[0] in "<>" else "<"))
    image.header.set_data_dtype(values.dtype)
    nib.save(image, tmp_path / "a.nii")
    read = read_sitk(tmp_path / "a.nii")
    assert np.array_equal(sitk.GetArrayFromImage(read).T, values)
    assert read.GetPixelID() == sitk.ReadImage(str(tmp_path / "a.nii")).GetPixelID()


def test_slope_and_intercept(tmp_path):
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    image.header.set_slope_inter(0.5, -1024)
    path = tmp_path / "a.nii"
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([0.5, -1024], "<f4").tobytes()  # scl_slope, scl_inter
    content[352:] = np.arange(60, dtype="<i2").tobytes()
    path.write_bytes(content)
    assert np.array_equal(read_image(path)[0].flatten().numpy(), np.arange(60) * 0.5 - 1024)


@pytest.mark.parametrize("shape", [(4, 5, 6, 1), (4, 5, 6, 1, 1)])
def test_trailing_axes_of_one(tmp_path, shape):
    nib.save(nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(shape), np.eye(4)), tmp_path / "a.nii")
    assert read_image(tmp_path / "a.nii")[0].shape == (6, 5, 4)


@pytest.mark.parametrize(
    "shape, words",
    [((4, 5, 6, 2), "4 x 5 x 6 x 2"), ((4, 5), "4 x 5; one picture.*"), ((4, 5, 1), "4 x 5; one picture.*")],
)
def test_other_shapes_are_refused(tmp_path, shape, words):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(XvrError, match=f"its size is {words}$"):
        read_image(tmp_path / "a.nii")


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_other_values_are_refused(tmp_path, dtype):
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), dtype), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(XvrError, match="one value a voxel: its values are of type"):
        read_image(tmp_path / "a.nii")


def test_a_header_of_more_voxels_than_bytes_is_refused(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((40, 50, 60), np.int16), np.eye(4)), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[42:48] = np.array([30000] * 3, "<i2").tobytes()  # dim[1:4]
    packed = bytearray(gzip.compress(content))
    packed[-4:] = ((352 + 2 * 30000**3) % 2**32).to_bytes(4, "little")
    (tmp_path / "a.nii.gz").write_bytes(packed)
    with pytest.raises(XvrError, match="more than its"):
        read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("tilt", [15, -15, 30])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_sheared_sform_is_straightened(tmp_path, tilt, order):
    shear = np.array([[1, 0, 0], [0, 1, math.sin(math.radians(tilt))], [0, 0, math.cos(math.radians(tilt))]])
    affine = affine_of((TURNED @ shear)[:, order], np.array([2, 2, 4])[list(order)])
    assert error(save(tmp_path / "a.nii", affine), notes := []) < 0.05
    assert len(notes) == 1 and f"sheared by {abs(tilt)}.0 degrees" in notes[0]
    _, place = read_image(tmp_path / "a.nii")
    steps = place[:3, :3] / place[:3, :3].norm(dim=0)
    assert torch.allclose(steps.T @ steps, torch.eye(3).double(), atol=1e-6)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_sheared_file_of_another_format(tmp_path, suffix):
    lean = math.radians(15)
    lps = np.diag([-1, -1, 1.0]) @ np.array([[1, 0, 0], [0, 1, math.sin(lean)], [0, 0, math.cos(lean)]])
    image = sitk.GetImageFromArray(sampled(np.diag([-1.0, -1, 1, 1]) @ affine_of(lps)).T)
    image.SetSpacing([2, 3, 4])
    image.SetDirection(lps.ravel())
    image.SetOrigin([10, -20, 30])
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    assert error(tmp_path / f"a{suffix}", notes := []) < 0.05 and "sheared by 15.0 degrees" in notes[0]


def test_labels_of_a_sheared_labelmap_stay_labels(tmp_path):
    affine = affine_of(np.array([[1, 0, 0], [0, 1, 0.3], [0, 0, 1]]))
    values = np.zeros(SIZE, np.int16)
    values[3:9, 3:9], values[5:7, 5:7] = 40, 90
    nib.save(nib.Nifti1Image(np.where(values, values, -1000).astype(np.int16), affine), tmp_path / "ct.nii")
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "mask.nii")
    v = read_volume(tmp_path / "ct.nii", tmp_path / "mask.nii")
    assert v.labels.unique().tolist() == [0, 40, 90] and v.labels.shape == v.density.shape


def test_axes_off_by_rounding(tmp_path):
    affine = affine_of(TURNED @ (np.eye(3) + 1e-4 * np.eye(3, k=1)))
    assert error(save(tmp_path / "a.nii", affine), notes := []) < 0.05
    assert notes == ["its axes are 0.0057 degrees off perpendicular: taken as perpendicular"]


def test_axes_sheared_in_every_plane_are_refused(tmp_path):
    path = save(tmp_path / "a.nii", affine_of(np.eye(3) + np.triu(np.full((3, 3), 0.2), 1)))
    with pytest.raises(XvrError, match="all sheared, by up to"):
        read_image(path)


@pytest.mark.parametrize("s, q", [(s, q) for s in range(5) for q in range(5) if s or q])
def test_sform_and_qform_of_every_code(tmp_path, s, q):
    true, moved = affine_of(TURNED), affine_of(TURNED, origin=(10.0, -20, 55))
    qform_is_used = q and s != 1
    forms = dict(qform=true, stated=moved) if qform_is_used or not s else dict(stated=true, qform=moved)
    path = save(tmp_path / "a.nii", true, s=s, q=q, **forms)
    assert error(path, notes := []) < 0.01
    if not (s and q):
        assert not notes
    else:
        used = "qform" if qform_is_used else "sform"
        assert f"(code {s})" in notes[0] and f"(code {q})" in notes[0] and f"25 mm apart: the {used} is" in notes[0]


def test_forms_that_agree_need_no_note(tmp_path):
    assert error(save(tmp_path / "a.nii", affine_of(TURNED), s=2, q=1), notes := []) < 0.01 and not notes


@pytest.mark.parametrize("s", [1, 2])
def test_forms_that_mirror_each_other(tmp_path, s):
    affine = affine_of()
    mirrored = np.diag([-1.0, 1, 1, 1]) @ affine
    forms = dict(stated=affine, qform=mirrored) if s == 1 else dict(stated=mirrored, qform=affine)
    assert error(save(tmp_path / "a.nii", affine, s=s, q=1, **forms), notes := []) < 0.01
    assert "mirror each other, so that left and right are a guess" in notes[0]


def test_no_form_at_all(tmp_path):
    nib.save(save_none := nib.Nifti1Image(sampled(affine_of()), None), tmp_path / "a.nii")
    assert save_none.header["sform_code"] == save_none.header["qform_code"] == 0
    _, place = read_image(tmp_path / "a.nii", notes := [])
    assert "left and right are a guess" in notes[0] and place.diagonal().tolist() == [-1, -1, 1, 1]


def test_an_sform_states_its_own_spacing(tmp_path):
    path = save(tmp_path / "a.nii", affine_of(edges=(2, 4, 6)), pixdim=(1, 1, 1))
    assert error(path, notes := []) < 0.01
    assert notes == ["its pixdim states voxels of 1 x 1 x 1 mm, its sform 2 x 4 x 6 mm: the sform is used"]


@pytest.mark.parametrize("unit, scale", [("meter", 1e-3), ("micron", 1e3)])
@pytest.mark.parametrize("s, q", [(1, 0), (0, 1), (1, 1)])
def test_nifti_in_other_units(tmp_path, unit, scale, s, q):
    true = affine_of(TURNED)
    stated = np.diag([scale] * 3 + [1]) @ true
    path = save(tmp_path / "a.nii", true, s=s, q=q, stated=stated, qform=stated, unit=unit)
    assert error(path, notes := []) < 0.01 and len(notes) == 1 and "converted to mm" in notes[0]


@pytest.mark.parametrize("scale, unit", [(1e-3, "metres"), (1e3, "microns")])
def test_an_unlikely_size_is_noted(tmp_path, scale, unit):
    read_image(save(tmp_path / "a.nii", affine_of(edges=[scale * v for v in (20, 20, 20)])), notes := [])
    assert f"may be in {unit}" in notes[0]


UNITS = [("m", 1e3), ("cm", 10), ("mm", 1), ("um", 1e-3), ("\u00b5m", 1e-3)]


@pytest.mark.parametrize("unit, scale", UNITS)
def test_nrrd_space_units(tmp_path, unit, scale):
    lps = np.diag([-1.0, -1, 1, 1]) @ affine_of()
    image = sitk.GetImageFromArray(sampled(affine_of()).T)
    image.SetDirection(np.diag([-1.0, -1, 1]).ravel())
    image.SetSpacing([v / scale for v in (2, 3, 4)])
    image.SetOrigin(lps[:3, 3] / scale)
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    content = (tmp_path / "a.nrrd").read_bytes()
    stated = f'space units: "{unit}" "{unit}" "{unit}"\nkinds:'.encode()
    (tmp_path / "a.nrrd").write_bytes(content.replace(b"kinds:", stated))
    assert error(tmp_path / "a.nrrd", notes := []) < 0.01
    assert len(notes) == (scale != 1)


@pytest.mark.parametrize("unit, scale", UNITS)
def test_nrrd_units_of_axes(tmp_path, unit, scale):
    edges = " ".join(f"{v / scale:g}" for v in (20, 30, 40))
    head = f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 3 4\nspacings: {edges}\n"
    head += f'units: "{unit}" "{unit}" "{unit}"\nencoding: raw\n\n'
    (tmp_path / "a.nrrd").write_bytes(head.encode() + bytes(24))
    assert np.allclose(read_sitk(tmp_path / "a.nrrd").GetSpacing(), (20, 30, 40))


@pytest.mark.parametrize("unit, scale", [("cm", 10), ("mm", 1), ("um", 1e-3)])
def test_metaimage_units(tmp_path, unit, scale):
    image = sitk.GetImageFromArray(np.zeros((4, 5, 6), np.int16))
    image.SetSpacing([v / scale for v in (2, 3, 4)])
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    content = (tmp_path / "a.mha").read_bytes()
    stated = f"DistanceUnits = {unit}\nElementSpacing".encode()
    (tmp_path / "a.mha").write_bytes(content.replace(b"ElementSpacing", stated))
    assert np.allclose(read_sitk(tmp_path / "a.mha").GetSpacing(), (2, 3, 4))


def patched(path, **fields):
    "A NIfTI file of numbers from 0 to 119, with bytes of its header replaced: offset and value by name"
    image = nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), np.diag([2.0, 2, 3, 1]))
    image.set_sform(np.diag([2.0, 2, 3, 1]), fields.pop("s"))
    image.set_qform(np.diag([2.0, 2, 3, 1]), fields.pop("q"))
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    for name, values in fields.items():
        at = dict(pixdim=80, quatern=256, srow=280)[name]
        content[at : at + 4 * len(values)] = np.array(values, "<f4").tobytes()
    path.write_bytes(content)
    return path


def test_a_damaged_qform_beside_an_sform(tmp_path):
    image = read_sitk(patched(tmp_path / "a.nii", s=2, q=1, quatern=[0.9, 0.9, 0.9]), notes := [])
    assert image.GetSpacing() == (2, 2, 3) and "its qform is damaged" in notes[0] and len(notes) == 1


def test_negative_pixdim(tmp_path):
    for s, q in ((1, 0), (0, 1), (1, 1)):
        image = read_sitk(patched(tmp_path / "a.nii", s=s, q=q, pixdim=[-2, 2, 3]), notes := [])
        assert image.GetSpacing() == (2, 2, 3) and image.GetDirection()[0] == -1 and not notes


@pytest.mark.parametrize("q", [0, 1])
def test_voxels_without_a_size_are_refused(tmp_path, q):
    with pytest.raises(XvrError, match="does not state the size of its voxels"):
        read_sitk(patched(tmp_path / "a.nii", s=0, q=q, pixdim=[0, 2, 3]))


def test_a_flat_sform_is_refused(tmp_path):
    with pytest.raises(XvrError, match="Refusing to change spacing"):
        read_sitk(patched(tmp_path / "a.nii", s=1, q=1, srow=[0, 0, 0, 0]))


def test_a_file_that_lost_its_middle_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(-1000, 1000, (40, 40, 40), dtype=np.int16)
    nib.save(nib.Nifti1Image(noise, np.eye(4)), tmp_path / "a.nii.gz")
    content = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(content[: len(content) // 2] + content[-8:])  # its size is stated as before
    with pytest.raises(XvrError, match="expected a complete NIfTI file"):
        read_sitk(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("space, known", [("RAS", 1), ("left-anterior-superior", 1), ("3D-right-handed", 0), (None, 0)])
def test_nrrd_without_left_and_right(tmp_path, space, known):
    place = f"space: {space}\nspace directions: (20,0,0) (0,20,0) (0,0,30)\n" if space else "spacings: 20 20 30\n"
    head = f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 3 4\n{place}encoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(head.encode() + bytes(24))
    read_sitk(tmp_path / "a.nrrd", notes := [])
    assert len(notes) == 1 - known and all("left and right are a guess" in note for note in notes)


@pytest.mark.parametrize("name", ["a.hdr", "a.img"])
def test_a_pair_beside_a_packed_one_is_refused(tmp_path, name):
    pair = lambda value: nib.Nifti1Pair(np.full((4, 5, 6), value, np.int16), np.eye(4))
    nib.save(pair(5), tmp_path / "a.img")
    assert read_image(tmp_path / name)[0].unique().tolist() == [5]
    nib.save(pair(7), tmp_path / "a.img.gz")
    with pytest.raises(XvrError, match="move one pair"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_a_metaimage_file_that_is_cut_short(tmp_path, suffix, packed):
    values = np.random.default_rng(0).integers(-1000, 1000, (8, 30, 40)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / f"a{suffix}"), packed)
    assert np.array_equal(read_image(tmp_path / f"a{suffix}")[0].numpy(), values)
    data = next(p for p in tmp_path.iterdir() if p.suffix in (".mha", ".raw", ".zraw") and p.stat().st_size > 9999)
    data.write_bytes(data.read_bytes()[:-10])
    with pytest.raises(XvrError, match=r"is cut short: a\.\w+ holds \d+ bytes of \d+$"):
        read_image(tmp_path / f"a{suffix}")


SCALES = [(None, None), (1, -1024), (0.1, -1024), (2, 0), (1e-3, 0.3), (1, 0.5)]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">u2", "<i4", "<f4", ">f8", "<u8"])
def test_packed_values_are_those_of_nibabel_to_the_bit(tmp_path, dtype, scale):
    values = np.random.default_rng(0).integers(0, 200, (9, 8, 7)).astype(dtype)
    image = nib.Nifti1Image(values, np.eye(4), nib.Nifti1Header(endianness="<>"[dtype[0] == ">"]), dtype=values.dtype)
    nib.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    if scale[0]:
        content[112:120] = np.array(scale, "<>"[dtype[0] == ">"] + "f4").tobytes()  # scl_slope, scl_inter
    half = len(content) // 2
    for name, parts in (("one", [content]), ("two", [content[:half], content[half:]])):
        (tmp_path / f"{name}.nii.gz").write_bytes(b"".join(gzip.compress(bytes(part)) for part in parts))
        expected = nib.load(tmp_path / f"{name}.nii.gz").get_fdata(dtype=np.float32).T
        assert np.array_equal(read_image(tmp_path / f"{name}.nii.gz")[0].numpy(), expected)


def test_a_pair_of_nifti_files_that_is_cut_short_is_refused(tmp_path):
    "SimpleITK 2.5.7 reads what the .img lacks as zeros, without an error"
    values = np.arange(24 * 20 * 10, dtype=np.int16).reshape(24, 20, 10) + 1
    nib.save(nib.Nifti1Pair(values, np.eye(4)), tmp_path / "a.img")
    assert read_image(tmp_path / "a.hdr")[0].sum() == values.sum()
    whole = (tmp_path / "a.img").read_bytes()
    (tmp_path / "a.img").write_bytes(whole[: len(whole) // 2])
    zeros = sitk.GetArrayViewFromImage(sitk.ReadImage(str(tmp_path / "a.hdr"))) == 0
    assert sitk.Version_VersionString() != "2.5.7" or zeros[5:].all()
    for name in ("a.hdr", "a.img"):
        with pytest.raises(XvrError, match=rf"{name} .*it is cut short: 4800 bytes of 9600"):
            read_image(tmp_path / name)


def test_a_nifti_file_of_a_size_below_one_is_refused(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((8, 7, 6), np.int16), np.eye(4)), tmp_path / "a.nii")
    damaged = bytearray((tmp_path / "a.nii").read_bytes())
    damaged[46:48] = np.int16(-6).tobytes()  # the third of the header's sizes
    (tmp_path / "a.nii").write_bytes(damaged)
    with pytest.raises(XvrError, match=r"its size is 8 x 7 x -6"):
        read_image(tmp_path / "a.nii")

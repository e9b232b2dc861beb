"Real CTs and an MR, stored outside the repository: read as they are, and repaired when they are damaged"

import os
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch

from xvr.preregistration import _correlation, _itk_image, _residual, align
from xvr.series import _offset_shares, patient_from_voxel, read_image, repair_hu
from xvr.volume import bone_points, chest_path, density_from_hu, load_chest, read_volume

DATA = Path(os.environ.get("XVR_DATA", Path(__file__).resolve().parents[2] / "shared/data")) / "ct"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}; set XVR_DATA to the folder of the data")
CTS = ["abdopelvis_tcga-ov", "abdopelvis_totalseg_3mm", "chest_cptac-pda", "chest_fnndsc"]


@pytest.fixture(params=CTS)
def ct(request):
    return DATA / f"{request.param}.nii.gz"


def test_density_is_unchanged_to_the_bit(ct):
    hu, patient = read_image(ct)
    v = read_volume(ct)
    assert torch.equal(v.density, density_from_hu(hu)[0]) and not any("fill" in note for note in v.notes)
    assert torch.allclose(v.world_from_voxel[:3, :3], patient[:3, :3]) and bone_points(v).abs().max() < 400


@pytest.mark.parametrize("filling", [0, 15720, -3024])
def test_filling_is_air_again(ct, filling, tmp_path):
    image = sitk.ReadImage(str(ct))
    hu, _ = read_image(ct)
    rows, columns = (torch.linspace(-1, 1, n) for n in hu.shape[1:])
    outside = (rows[:, None] ** 2 + columns**2 > 1.21).expand_as(hu)  # the round field of view: corners only
    damaged = sitk.GetImageFromArray(hu.masked_fill(outside, filling).short().numpy())
    damaged.CopyInformation(image)
    sitk.WriteImage(damaged, str(tmp_path / "ct.nii"))
    v = read_volume(tmp_path / "ct.nii")
    expected = density_from_hu(hu.masked_fill(outside, -1000))[0]
    # single voxels of the patient that are as high as the filling and touch it
    assert (v.density != expected).sum() <= 5
    assert any(str(filling) in note for note in v.notes)


def test_stored_values_become_hounsfield_units(ct, tmp_path):
    image, (hu, _) = sitk.ReadImage(str(ct)), read_image(ct)
    stored = (hu.clamp(min=-1024) + 1024).short()
    for padding in (0, -2000):  # within the scanner's scale, and below it
        shifted = stored.clone()
        shifted[:, :40, :40] = padding
        raw = sitk.GetImageFromArray(shifted.numpy())
        raw.CopyInformation(image)
        sitk.WriteImage(raw, str(tmp_path / "ct.nii"))
        v = read_volume(tmp_path / "ct.nii")
        expected = (stored - 1024).float()
        expected[:, :40, :40] = -1024
        assert torch.equal(v.density, density_from_hu(expected)[0]) and any("1024 subtracted" in n for n in v.notes)
        assert v.hu_range[0] == -1000


def test_margins_of_the_rule_for_stored_values(ct):
    hu, _ = read_image(ct)
    as_it_is, stored = _offset_shares(hu), _offset_shares(hu.clamp(min=-1024) + 1024)
    assert as_it_is["hu"] > 0.5 and stored["hu"] == 0
    assert stored["air"] > 3 * stored["above"] and stored["air"] > 0.2
    assert stored["tissue"] > 14 * stored["gap"] and stored["tissue"] > 0.25


def test_a_ct_cut_down_to_a_bone_is_noted(ct, tmp_path):
    cut = lambda v: any("ends within the patient" in note for note in v.notes)
    assert not cut(read_volume(ct))
    image = sitk.ReadImage(str(ct))
    x, y, z = image.GetSize()
    sitk.WriteImage(image[x // 3 : 2 * x // 3, y // 3 : 2 * y // 3, z // 3 : 2 * z // 3], str(tmp_path / "part.nrrd"))
    assert cut(read_volume(tmp_path / "part.nrrd"))


@pytest.mark.parametrize(
    "change", ["as it is", "cut off below 0", "cut off at both ends", "offset by 300", "without air"]
)
def test_other_values_are_not_shifted(ct, change):
    hu, _ = read_image(ct)
    tissue = hu[hu > -200].repeat(2)[:1000000].view(100, 100, 100) if change == "without air" else None
    changed = dict(
        zip(
            ["as it is", "cut off below 0", "cut off at both ends", "offset by 300", "without air"],
            [hu, hu.clamp(min=0), hu.clamp(0, 255), hu + 300, tissue],
        )
    )[change]
    repair_hu(changed, notes := [])
    assert not any("subtracted" in note for note in notes)


def test_an_mr_of_any_scale_is_not_shifted():
    values, _ = read_image(DATA / "mr_small_3mm.nii.gz")
    for scale in torch.linspace(0.5, 8, 61).tolist():
        repair_hu(values.clamp(min=0) * scale, notes := [])
        assert not any("subtracted" in note for note in notes), scale


def test_metal_stays():
    hu, _ = read_image(DATA / "abdopelvis_totalseg_3mm.nii.gz")  # with a hip implant
    assert torch.equal(repair_hu(hu)[hu > 2000], hu[hu > 2000]) and (hu > 3071).sum() == 114


def test_mr_by_a_window():
    path = DATA / "mr_small_3mm.nii.gz"
    assert "window" in read_volume(path).notes[0]
    v = read_volume(path, window=(0, 700))
    values, _ = read_image(path)
    assert (
        v.hu_range is None
        and not v.notes
        and v.density.max() == 1
        and torch.allclose(v.density, (values / 700).clamp(0, 1))
    )


def test_oblique(tmp_path):
    image = sitk.ReadImage(str(DATA / "chest_fnndsc.nii.gz"))
    turn = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.5)
    image.SetDirection(turn.GetMatrix())
    sitk.WriteImage(image, str(tmp_path / "ct.nrrd"))
    straight, turned = read_volume(DATA / "chest_fnndsc.nii.gz"), read_volume(tmp_path / "ct.nrrd")
    assert torch.equal(straight.density, turned.density)
    assert torch.allclose(turned.world_from_voxel[:3, :3], patient_from_voxel(image)[:3, :3], atol=1e-5)


def test_another_patient_finds_the_template():
    chest, ct, pelvis = (
        read_volume(path)
        for path in (chest_path(), DATA / "chest_fnndsc.nii.gz", DATA / "abdopelvis_totalseg_3mm.nii.gz")
    )
    shift = lambda v: (v.centre - chest.centre).numpy() * [-1, -1, 1]  # between centres, LPS
    there, back = align(ct, chest, 8.0), align(chest, ct, 8.0)
    images = [_itk_image(v.at(8.0)) for v in (ct, chest)]
    assert _residual(there, back) < 10 < 20 < _residual(align(pelvis, chest, 8.0), align(chest, pelvis, 8.0))
    assert _correlation(*images, there) > 0.1 + _correlation(*images, sitk.TranslationTransform(3, shift(ct)))


def test_packaged_chest():
    assert load_chest().hu_range == (-1000.0, 3071.0)

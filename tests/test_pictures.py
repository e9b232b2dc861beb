"X-rays that are no DICOM files: one radiograph in every format, and a camera in a file beside it"

import io
import json
import shutil
import subprocess

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from xvr import cli
from xvr.cameras import to_calibration
from xvr.conventions import XvrError
from xvr.detector import physical_geometry, world_from_patient
from xvr.inspector import describe
from xvr.pose import Pose
from xvr.renderer import render
from xvr.volume import read_volume
from xvr.xray import Reading, _frame, linearize_beam, read_xray


@pytest.fixture(scope="module")
def shot(case):
    "The pixels of an X-ray, what they show, the truth beside it, and the volume's centre"
    pixels = pydicom.dcmread(case.xrays[0]).pixel_array.astype(np.uint16)
    return (
        pixels,
        read_xray(case.xrays[0]),
        json.loads(case.xrays[0].with_suffix(".json").read_text()),
        read_volume(case.ct).centre,
    )


def itk(pixels, path):
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(path))


def nib(affine, arrange):
    return lambda pixels, path: nibabel.save(
        nibabel.Nifti1Image(arrange(pixels.T.astype(np.int16)), np.diag(affine)), path
    )


def flipped(pixels, path):
    "Columns to the right and rows to the front, which the header states"
    image = sitk.GetImageFromArray(np.ascontiguousarray(pixels[None, ::-1, ::-1]))
    image.SetDirection([-1, 0, 0, 0, -1, 0, 0, 0, 1])
    sitk.WriteImage(image, str(path))


WAYS = {
    "png": (".png", lambda pixels, path: Image.fromarray(pixels).save(path)),
    "tif": (".tif", lambda pixels, path: Image.fromarray(pixels).save(path)),
    "tif, 0 is white": (".tif", lambda pixels, path: Image.fromarray(65535 - pixels).save(path, tiffinfo={262: 0})),
    "tif, upside down": (".tif", lambda pixels, path: Image.fromarray(pixels[::-1]).save(path, tiffinfo={274: 4})),
    "tif, a thumbnail first": (".tif", lambda pixels, path: Image.fromarray(pixels[::8, ::8]).save(
        path, save_all=True, append_images=[Image.fromarray(pixels)])),
    "MetaImage": (".mha", itk),
    "MetaImage, a slice": (".mhd", lambda pixels, path: itk(pixels[None], path)),
    "NRRD": (".nrrd", itk),
    "NRRD to the right and front": (".nhdr", flipped),
    "npy": (".npy", lambda pixels, path: np.save(path, pixels)),
    "npy, big-endian": (".npy", lambda pixels, path: np.save(path, pixels.astype(">u2"))),
    "npy, Fortran order": (".npy", lambda pixels, path: np.save(path, np.asfortranarray(pixels))),
    "npy, a frame": (".npy", lambda pixels, path: np.save(path, pixels[None].astype(np.float32))),
    "NIfTI by ITK": (".nii.gz", itk),
    "NIfTI by ITK, a slice": (".nii", lambda pixels, path: itk(pixels[None], path)),
    "NIfTI to the left and back": (".nii", nib([-1, -1, 1, 1], lambda p: p)),
    "NIfTI to the left and front": (".nii.gz", nib([-2, 2, 1, 1], lambda p: p[:, ::-1])),
    "NIfTI to the right and front": (".nii", nib([1, 1, 1, 1], lambda p: p[::-1, ::-1])),
    "NIfTI of a coronal plane": (".nii", lambda pixels, path: nibabel.save(nibabel.Nifti1Image(pixels.T[:, ::-1, None].astype(np.int16), [[-1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]), path)),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_one_xray_in_every_format(way, shot, tmp_path):
    pixels, xray, truth, centre = shot
    suffix, write = WAYS[way]
    write(pixels, tmp_path / f"x{suffix}")
    (tmp_path / "x.json").write_text(json.dumps(truth))
    read = read_xray(tmp_path / f"x{suffix}", centre=centre)
    assert torch.equal(read.image[0, 0], torch.tensor(pixels.astype(np.float32)))
    assert (
        torch.allclose(read.pose.matrix, torch.tensor(truth["matrix"]), atol=1e-3)
        and read.detector.reverse_x_axis == xray.detector.reverse_x_axis
    )
    assert all(
        np.isclose(getattr(read.detector, k), getattr(xray.detector, k), atol=1e-3)
        for k in ("sdd", "delx", "dely", "x0", "y0", "height", "width")
    )
    line = read_xray(tmp_path / f"x{suffix}", Reading(linearize=True)).image
    assert torch.allclose(line, linearize_beam(torch.tensor(pixels.astype(np.float32)))[None, None])


@pytest.mark.skipif(not shutil.which("dcm2niix"), reason="dcm2niix is not on the PATH: pip install dcm2niix")
def test_what_dcm2niix_makes_of_an_xray(case, shot, tmp_path):
    shutil.copy(case.xrays[0], tmp_path)
    subprocess.run(["dcm2niix", "-f", "x", "-o", tmp_path, tmp_path], check=True, capture_output=True)
    assert (tmp_path / "x.json").exists()  # its own, about other things
    assert torch.equal(
        read_xray(tmp_path / "x.nii", Reading(sdd=1020, delx=5.8)).image[0, 0], torch.tensor(shot[0].astype(np.float32))
    )


def test_the_truth_beside_a_dicom_file_is_not_read(case, shot, tmp_path):
    shutil.copy(case.xrays[0], tmp_path / "x.dcm")
    (tmp_path / "x.json").write_text('{"sdd": 1, "nonsense": 0}')
    read = read_xray(tmp_path / "x.dcm", centre=shot[3])
    assert read.detector == shot[1].detector and torch.equal(read.pose.matrix, shot[1].pose.matrix)


def beside(shot, kind):
    "What may stand beside the X-ray"
    _, xray, truth, centre = shot
    pose = Pose(torch.tensor(truth["matrix"], dtype=torch.float64))
    K, R, t = (m.tolist() for m in to_calibration(xray.detector, world_from_patient(centre).inverse() @ pose))
    return {
        "geometry": dict(geometry=physical_geometry(xray.detector, pose, centre)),
        "calibration": dict(K=K, R=R, t=t, delx=xray.detector.delx, height=64),
    }[kind]


@pytest.mark.parametrize("kind, suffix, way", [("geometry", "json", "png"), ("calibration", "yaml", "NIfTI by ITK")])
def test_registration_starts_from_the_camera_beside(kind, suffix, way, case, shot, tmp_path):
    picture = tmp_path / f"x{WAYS[way][0]}"
    WAYS[way][1](shot[0], picture)
    sidecar = beside(shot, kind)
    (tmp_path / f"x.{suffix}").write_text(json.dumps(sidecar) if suffix == "json" else yaml.safe_dump(sidecar))
    settings = ["--linearize", "--init_only", "-v", case.ct, "-o", tmp_path / "out"]
    result = CliRunner().invoke(cli.xvr, list(map(str, ["register", "dicom", picture, *settings])))
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out/x/result.json").read_text())
    assert np.allclose(found["final"]["matrix"], shot[2]["matrix"], atol=1e-3) and found["similarity"]["final"] > 0.9
    assert np.allclose(found["geometry"]["source"], shot[2]["geometry"]["source"], atol=1e-2)
    info = CliRunner().invoke(cli.xvr, ["info", str(picture)]).output
    assert f"mm (LPS), as x.{suffix} states" in " ".join(info.split())


def test_options_win_over_the_file(shot, tmp_path):
    np.save(tmp_path / "x.npy", shot[0])
    for sidecar in (dict(sdd=900, delx=1, dely=2), beside(shot, "calibration"), beside(shot, "geometry")):
        (tmp_path / "x.json").write_text(json.dumps(sidecar))
        read = read_xray(tmp_path / "x.npy", Reading(sdd=1200, delx=3, dely=4, reverse_x_axis=True))
        assert (read.detector.sdd, read.detector.delx, read.detector.dely, read.detector.reverse_x_axis) == (
            1200,
            3,
            4,
            True,
        )


def test_an_orientation_names_the_same_camera(shot, tmp_path):
    np.save(tmp_path / "x.npy", shot[0])
    (tmp_path / "x.json").write_text(json.dumps(beside(shot, "geometry")))
    one, other = (read_xray(tmp_path / "x.npy", Reading(orientation=o), centre=shot[3]) for o in ("AP", "PA"))
    assert one.detector.reverse_x_axis != other.detector.reverse_x_axis
    assert all(
        torch.allclose(a, b, atol=1e-2) for a, b in zip(one.detector.rays(one.pose), other.detector.rays(other.pose))
    )


def test_frames_and_damage(shot, tmp_path):
    frames = np.stack([shot[0], shot[0] // 2, shot[0] // 3])
    np.save(tmp_path / "x.npy", frames)
    nibabel.save(nibabel.Nifti1Image(frames.T.astype(np.int16), np.diag([-1, -1, 1, 1])), tmp_path / "x.nii")
    for name in ("x.npy", "x.nii"):
        read = read_xray(tmp_path / name, Reading(sdd=1020, delx=5.8, reducefn=2))
        assert torch.equal(read.image[0, 0], torch.tensor(frames[1].astype(np.float32)))
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(XvrError, match=name) as refused:
            read_xray(tmp_path / name, Reading(sdd=1020, delx=5.8))
        assert "\n" not in str(refused.value)


def write_sized(path, unit):
    "A picture of 1.1 mm high and 1.4 mm wide pixels, in a unit that its header names; how many mm that is"
    image = sitk.GetImageFromArray(np.arange(64 * 48, dtype=np.float32).reshape(64, 48))
    mm = dict(mm=1, micron=1e-3, um=1e-3, m=1e3, cm=10, meter=1e3)[unit]
    image.SetSpacing([1.4 / mm, 1.1 / mm])
    sitk.WriteImage(image, str(path))
    if path.suffix == ".nii":
        file = nibabel.load(path, mmap=False)
        file.header.set_xyzt_units(unit)
        nibabel.save(nibabel.Nifti1Image(np.asarray(file.dataobj), file.affine, file.header), path)
    elif unit != "mm":
        line = b"DistanceUnits = %s\nElementType" if path.suffix == ".mha" else b'space units: "%s" "%s"\nkinds'
        line = line.replace(b"%s", unit.encode())
        path.write_bytes(path.read_bytes().replace(line.rsplit(b"\n")[1], line, 1))
    return mm


@pytest.mark.parametrize(
    "name, unit",
    [(f"x.{suffix}", unit) for suffix in ("mha", "nrrd") for unit in ("mm", "um", "m", "cm")]
    + [("x.nii", unit) for unit in ("mm", "micron", "meter")],
)
def test_the_pixel_size_is_in_the_unit_of_the_header(name, unit, tmp_path):
    mm = write_sized(tmp_path / name, unit)
    xray = read_xray(tmp_path / name, Reading(sdd=1020))
    assert (xray.detector.delx, xray.detector.dely) == pytest.approx((1.4, 1.1), rel=1e-6)
    assert any(f"in units of {mm:g} mm" in note for note in xray.notes) == (mm != 1)
    assert any("1.1 x 1.4 mm" in note or "1.4 x 1.1 mm" in note for note in xray.notes)
    assert "1.4 x 1.1 mm (header)" in describe(tmp_path / name)


RAW = b"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 5 4\nencoding: raw\n%b\n\n" + bytes(range(20))


@pytest.mark.parametrize("micro", ["\u00b5".encode(), "\u03bc".encode(), "\u00b5".encode("latin-1"), b"u"])
def test_spellings_of_micro(micro, tmp_path):
    (tmp_path / "x.nrrd").write_bytes(RAW % b'spacings: 1400 1100\nunits: "%bm" "%bm"' % (micro, micro))
    xray = read_xray(tmp_path / "x.nrrd", Reading(sdd=1020))
    assert (xray.detector.delx, xray.detector.dely) == pytest.approx((1.4, 1.1), rel=1e-6)


def test_a_unit_that_is_not_known_is_noted_and_the_pixel_size_asked_for(tmp_path):
    (tmp_path / "x.nrrd").write_bytes(RAW % b'spacings: 0.05 0.04\nunits: "inch" "inch"')
    with pytest.raises(XvrError, match="`delx`"):
        read_xray(tmp_path / "x.nrrd", Reading(sdd=1020))
    xray = read_xray(tmp_path / "x.nrrd", Reading(sdd=1020, delx=1.3))
    assert xray.detector.delx == 1.3 and any("states lengths in inch" in note for note in xray.notes)


def test_info_and_register_agree_what_an_xray_is(tmp_path):
    grey = np.arange(2 * 20 * 30, dtype=np.uint8).reshape(2, 20, 30)
    for suffix in ("mha", "mhd", "nrrd", "nhdr", "nii", "nii.gz"):
        for shape, kind in ((grey[0], "a picture"), (grey[:1], "a picture"), (grey, "a labelmap")):
            itk(shape, tmp_path / f"x.{suffix}")
            assert kind in " ".join(describe(tmp_path / f"x.{suffix}").split()[:4])
    for suffix in ("bmp", "gif", "pgm", "jp2", "png", "tif"):
        Image.fromarray(grey[0]).save(tmp_path / f"x.{suffix}")
        assert "a picture" in describe(tmp_path / f"x.{suffix}")
        assert torch.equal(
            read_xray(tmp_path / f"x.{suffix}", Reading(sdd=1020, delx=1)).image[0, 0], torch.tensor(grey[0]).float()
        )


LEVELS = np.tile(np.arange(0, 250, 10, dtype=np.uint8), (20, 1))


def palette(colours):
    "The levels as indices into a palette"
    image = Image.fromarray(LEVELS).convert("P")
    image.putpalette([channel for level in range(256) for channel in colours(level)])
    return image


@pytest.mark.parametrize(
    "image, suffixes, means",
    [
        (palette(lambda level: [255 - level] * 3), "png gif bmp tif", 255 - LEVELS),  # not the indices
        (palette(lambda level: [level, 0, 0]), "png gif bmp tif", LEVELS / 3),
        (Image.fromarray(LEVELS).convert("RGB"), "png bmp tif", LEVELS),
        (Image.fromarray(LEVELS).convert("RGBA"), "png bmp tif", LEVELS),
        (Image.fromarray(LEVELS).convert("LA"), "png tif", LEVELS),
        (Image.fromarray(LEVELS > 100), "png bmp tif", 255 * (LEVELS > 100)),
    ],
    ids=["grey palette", "red palette", "RGB", "RGBA", "LA", "one bit"],
)
def test_colours_and_palettes(image, suffixes, means, tmp_path):
    for suffix in suffixes.split():
        image.save(tmp_path / f"x.{suffix}")
        xray = read_xray(tmp_path / f"x.{suffix}", Reading(sdd=1020, delx=1))
        assert torch.allclose(xray.image[0, 0], torch.tensor(means.astype(np.float32)), atol=1e-4), suffix
        coloured = not np.array_equal(means, means.astype(int))
        assert any("channels were averaged" in note for note in xray.notes) == coloured


def test_sixteen_bits_in_three_equal_channels_stay_exact(tmp_path):
    levels = 257 * LEVELS.astype(np.uint16) + 3
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([levels] * 3, -1), isVector=True), str(tmp_path / "x.png"))
    xray = read_xray(tmp_path / "x.png", Reading(sdd=1020, delx=1))
    assert torch.equal(xray.image[0, 0], torch.tensor(levels.astype(np.float32)))


def test_a_palette_in_a_dicom_file(case, tmp_path):
    tags = pydicom.dcmread(case.xrays[0])
    grey = np.arange(256, dtype=np.uint16)[::-1] * 257
    for colour in ("Red", "Green", "Blue"):
        tags.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        tags.add_new(f"{colour}PaletteColorLookupTableData", "OW", grey.tobytes())
    (tags.Rows, tags.Columns), tags.PixelData, tags.PhotometricInterpretation = (
        LEVELS.shape,
        LEVELS.tobytes(),
        "PALETTE COLOR",
    )
    tags.BitsAllocated, tags.BitsStored, tags.HighBit = 8, 8, 7
    del tags.PixelIntensityRelationship, tags.PixelIntensityRelationshipSign
    tags.save_as(tmp_path / "x.dcm")
    xray = read_xray(tmp_path / "x.dcm")
    shown = (255 - LEVELS.astype(np.float32)) * 257
    assert torch.allclose(xray.image[0, 0], torch.tensor(shown.max() - shown))  # an angiogram: dense is dark
    assert any("channels were averaged" in note for note in xray.notes)


def test_pages_and_turned_photographs_are_noted(tmp_path):
    small, one, other = (Image.fromarray(levels) for levels in (LEVELS[:5, :7], LEVELS, LEVELS[::-1] // 2))
    one.save(tmp_path / "same.tif", save_all=True, append_images=[other])
    one.save(tmp_path / "several.tif", save_all=True, append_images=[small])
    exif = Image.Exif()
    exif[274] = 6
    one.save(tmp_path / "turned.jpg", exif=exif)
    reading = Reading(sdd=1020, delx=1, reducefn="last")
    same, several, turned = (read_xray(tmp_path / name, reading) for name in ("same.tif", "several.tif", "turned.jpg"))
    assert torch.equal(same.image[0, 0], torch.tensor(np.asarray(other)).float())
    assert any("2 frames: reduced by last; give `reducefn`" in note for note in same.notes)
    assert torch.equal(several.image[0, 0], torch.tensor(LEVELS).float())
    assert any("several sizes: read 1 of 2 pages, of 20 x 25 pixels" in note for note in several.notes)
    assert any("EXIF orientation, 6" in note for note in turned.notes)


FOREIGN = {
    "labelme": dict(version="5", flags={}, shapes=[], imagePath="x.png", imageHeight=64, imageWidth=64),
    "coco": dict(images=[dict(id=1, width=64, height=64)], annotations=[], categories=[]),
    "size": dict(width=64, height=64, file="x.png", label="hip"),
    "box": dict(x0=3, y0=4, x1=8, y1=9, label="hip"),
    "geojson": [dict(type="Feature", geometry=dict(type="Polygon", coordinates=[]), properties={})],
    "nothing": [],
    "source": dict(source="hospital", side="left", view="AP"),
    "dcm2niix": dict(ConversionSoftware="dcm2niix", Modality="XA", DistanceSourceToDetector=1000),
}


@pytest.mark.parametrize("suffix", ["json", "yaml"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_annotations_beside_a_picture_are_noted_and_not_read(kind, suffix, shot, tmp_path):
    np.save(tmp_path / "x.npy", shot[0])
    (tmp_path / f"x.{suffix}").write_text(json.dumps(FOREIGN[kind]))
    xray = read_xray(tmp_path / "x.npy", Reading(sdd=1020, delx=5.8))
    assert xray.detector == read_xray_alone(shot, tmp_path).detector
    assert sum(f"x.{suffix} beside it has" in note and "not read" in note for note in xray.notes) == 1
    assert f"x.{suffix} beside it" in " ".join(describe(tmp_path / "x.npy").split())
    with pytest.raises(XvrError, match=r"sdd and delx in x\.(yaml|json) beside it") as refused:
        read_xray(tmp_path / "x.npy")
    assert f"x.{suffix} beside" not in str(refused.value)  # which would overwrite the annotations
    other = "yaml" if suffix == "json" else "json"
    (tmp_path / f"x.{other}").write_text('{"sdd": 900, "delx": 2}')  # a camera beside them is read
    assert read_xray(tmp_path / "x.npy").detector.sdd == 900


def read_xray_alone(shot, folder):
    np.save(folder / "alone.npy", shot[0])
    return read_xray(folder / "alone.npy", Reading(sdd=1020, delx=5.8))


@pytest.mark.parametrize(
    "sidecar, word",
    [
        (dict(SDD=1000, delx=1), "SDD"),
        (dict(version=2, author="me", place="here", sdd_mm=1000), "sdd_mm"),
        (dict(sdd="1000 mm", delx=1), "1000 mm"),
        (dict(sdd=1000, delx=[0.3, 0.3], extra=1), "extra"),
        (dict(source_to_detector=1000, pixel=0.3, units="mm", place="here"), "source_to_detector"),
        (dict(patientOrientation="L\\F", note="a", date="b", place="c"), "patientOrientation"),
        (dict(primary=30, secondary=5, note="a"), "note"),
        (dict(geometry=dict(source=[0, 0, 0]), note="a", place="c"), "note"),
        (dict(P=np.eye(3, 4).tolist(), note="a", place="c"), "note"),
        ([1000], "no list of keys"),
        ("sdd", "no list of keys"),
    ],
)
def test_what_is_nearly_a_camera_is_an_error(sidecar, word, shot, tmp_path):
    np.save(tmp_path / "x.npy", shot[0])
    (tmp_path / "x.json").write_text(json.dumps(sidecar))
    with pytest.raises(XvrError, match="x.json") as refused:
        read_xray(tmp_path / "x.npy", Reading(sdd=1020, delx=5.8))
    assert word in str(refused.value) and "\n" not in str(refused.value)


def test_a_frame_is_found_and_a_background_is_none(case):
    "Simulated X-rays of 8 bits whose air is black, as they are and behind a round collimator, with a frame and without"
    row, column = np.mgrid[:128, :128] - 63.5
    volume, detector = read_volume(case.ct), case.detector.resize(128)
    for pose, method in zip(case.poses, ("png", "jpeg")):
        image = render(volume, detector, pose)[0, 0].numpy()
        plain = (255 * (image / image.max())).round().astype(np.uint8)
        beams = plain, 255 - plain
        for beam in (*beams, *(np.where(np.hypot(row, column) < 50, beam, 0) for beam in beams)):
            assert not _frame(beam) and not _frame(beam.astype(np.uint16))
        grey = np.clip(40 + 0.8 * plain, 0, 255).astype(np.uint8)
        wide = dict(top=11, bottom=24, left=16, right=13)
        framed = np.pad(grey, ((11, 24), (16, 13)))
        Image.fromarray(framed).save(stream := io.BytesIO(), method)
        assert _frame(np.asarray(Image.open(stream))) == wide


def test_a_frame_does_not_count_and_is_named(shot, tmp_path):
    grey = (40 + 200.0 * shot[0] / shot[0].max()).astype(np.uint8)
    Image.fromarray(np.pad(grey, 9)).save(tmp_path / "x.png")
    camera = dict(sdd=1020, delx=5.8)
    xray = read_xray(tmp_path / "x.png", Reading(**camera))
    assert not xray.weight[..., :9, :].any() and xray.weight[..., 12:-12, 12:-12].all()
    assert any("in pixels top 9, bottom 9, left 9, right 9" in n and "`crop` 18" in n for n in xray.notes)
    cut = read_xray(tmp_path / "x.png", Reading(crop=18, **camera))
    assert not any("frame" in note for note in cut.notes) and torch.equal(cut.image[0, 0], torch.tensor(grey).float())

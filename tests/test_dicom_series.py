"What else lies in a folder of slices: copies, pages, scouts, X-rays, and files without a preamble"

import shutil

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.uid import (
    BasicTextSRStorage,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    XRayAngiographicImageStorage,
    generate_uid,
)

from xvr.conventions import XvrError
from xvr.inspector import describe
from xvr.series import choose_series, find_series, read_image

COUNT, ROWS, COLUMNS = 12, 10, 14
VALUES = np.random.default_rng(0).integers(-1000, 2000, (COUNT, ROWS, COLUMNS))


def tags_of(pixels, **tags):
    "An image of the series 1.2.3"
    made, meta = Dataset(), FileMetaDataset()
    made.file_meta = meta
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    own = dict(
        SOPClassUID=CTImageStorage, SOPInstanceUID=generate_uid(), SeriesInstanceUID="1.2.3", SeriesNumber=3,
        Modality="CT", Rows=pixels.shape[0], Columns=pixels.shape[1], SamplesPerPixel=1, BitsAllocated=16,
        PhotometricInterpretation="MONOCHROME2", BitsStored=16, HighBit=15, PixelRepresentation=0, RescaleSlope=1,
        RescaleIntercept=-1024, PixelData=(pixels + 1024).astype("<u2").tobytes(),
    ) | tags  # fmt: skip
    for keyword, value in own.items():
        setattr(made, keyword, value)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = made.SOPClassUID, made.SOPInstanceUID
    return made


def slice_of(k):
    place = dict(ImagePositionPatient=[5, 6, 3 * k], ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[2, 1.5])
    return tags_of(VALUES[k], InstanceNumber=k + 1, **place)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "ct").mkdir()
    for k in range(COUNT):
        slice_of(k).save_as(tmp_path / f"ct/IM{k:02d}", enforce_file_format=True)
    return tmp_path / "ct"


def notes_of(folder):
    "The notes of reading the folder, which must hold the twelve slices and nothing else"
    values, place = read_image(folder, notes := [])
    assert np.array_equal(values.numpy(), VALUES)
    assert np.allclose(place, [[-1.5, 0, 0, -5], [0, -2, 0, -6], [0, 0, 3, 0], [0, 0, 0, 1]])
    return notes


def test_alone(folder):
    assert not notes_of(folder)


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("name", ["IM{:02d}", "IM{:02d}.dcm", "{:02d}"])
def test_without_preamble(folder, implicit, name):
    for k in range(COUNT):
        bare, path = Dataset(), folder / f"IM{k:02d}"
        bare.update({tag.tag: tag for tag in slice_of(k)})
        path.unlink()
        new = folder / name.format(k)
        bare.save_as(new, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    assert not notes_of(folder)


@pytest.mark.parametrize("content", [b"", b"\x08", b"\x08\0\x05\0", b"\x08\0 not DICOM at all", b"PK\3\4" + bytes(200)])
def test_other_files_are_no_slices(folder, content):
    (folder / "other").write_bytes(content)
    assert not notes_of(folder)


def test_a_file_that_only_begins_as_dicom(folder):
    (folder / "other").write_bytes(b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100" + b"\xff" * 20)
    assert not notes_of(folder)


@pytest.mark.parametrize("copies", [[5], [0, 11], range(12)])
def test_copies(folder, copies):
    for k in copies:
        shutil.copy(folder / f"IM{k:02d}", folder / f"IM{k:02d} (1)")
    [note] = notes_of(folder)
    assert f"copies of slices left out of the series: {len(copies)} (" in note and note in " ".join(
        describe(folder).replace("note", "").split()
    )


def test_a_slice_of_the_same_uid_and_other_pixels_is_no_copy(folder):
    twin = slice_of(5)
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    twin.save_as(folder / "IM05", enforce_file_format=True)
    twin.PixelData = bytes(len(twin.PixelData))
    twin.save_as(folder / "IM05 (1)", enforce_file_format=True)
    assert "lie where another does" in find_series(folder)[3].problem


@pytest.mark.parametrize("twins", [[5], [0, 11], range(12)])
def test_twins_under_other_uids(folder, twins):
    for k in twins:
        slice_of(k).save_as(folder / f"again{k:02d}", enforce_file_format=True)  # with a UID of its own
    [note] = notes_of(folder)
    assert f"place and the pixels of another left out: {len(twins)} (" in note


@pytest.mark.parametrize("change", ["pixels", "rescale"])
def test_other_values_at_a_place_are_no_twin(folder, change):
    other = slice_of(5)
    other.PixelData, other.RescaleIntercept = (
        (bytes(len(other.PixelData)), -1024) if change == "pixels" else (other.PixelData, 0)
    )
    other.save_as(folder / "other", enforce_file_format=True)
    assert "lie where another does" in find_series(folder)[3].problem


@pytest.mark.parametrize("lean", [0.0, 0.3])
@pytest.mark.parametrize("rise", [1, 40])
def test_uneven_steps(tmp_path, lean, rise):
    "A field that rises along z is itself again on even steps: thin slices below, thick ones above"
    (tmp_path / "ct").mkdir()
    places = np.r_[0:12:2.0, 12:40:4.0]
    rows = np.arange(ROWS)[:, None] * 2
    for n, z in enumerate(places):
        pixels = np.rint(rise * z + 5 * (rows + lean * z) + np.zeros((ROWS, COLUMNS))).astype(int)
        made = tags_of(pixels, ImagePositionPatient=[5, 6 + lean * z, z], PixelSpacing=[2, 1.5])
        made.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        made.save_as(tmp_path / f"ct/{n}", enforce_file_format=True)
    values, place = read_image(tmp_path / "ct", notes := [])
    assert "uneven steps, of 2 to 4 mm: interpolated to steps of 2 mm" in notes[0] and len(notes) == 1 + (lean > 0)
    assert values.shape[0] == 19 and np.isclose(place[2, 2], 2)
    k, j = np.meshgrid(np.arange(19), np.arange(values.shape[1]), indexing="ij")
    y = -(place[1, 1] * j + place[1, 3]).numpy() - 6
    expected = rise * 2 * k + 5 * y
    inside = (y > lean * 2 * k + 2) & (y < lean * 2 * k + 2 * ROWS - 4)
    assert inside.sum() > 80 and np.abs(values[:, :, 7].numpy() - expected)[inside].max() <= 1.5


@pytest.mark.parametrize("lost", [[5], [5, 6]])
def test_a_gap_among_uneven_steps_is_refused(tmp_path, lost):
    places = np.delete(np.r_[0:12:2.0, 12:40:3.0], lost)
    places[-4:] += 5
    for n, z in enumerate(places):
        made = slice_of(0)
        made.ImagePositionPatient = [5, 6, z]
        made.save_as(tmp_path / str(n), enforce_file_format=True)
    with pytest.raises(XvrError, match="slices have uneven steps, of 2 to 8 mm"):
        read_image(tmp_path)


def enhanced(folder, own=lambda k: {}, **shared):
    "The twelve slices as frames of one file, last first; groups of the frames by keyword of the group and of the tag"
    group = lambda groups: {name: [made_of(**tags)] for name, tags in groups.items()}

    def made_of(**tags):
        made = Dataset()
        for keyword, value in tags.items():
            setattr(made, keyword, value)
        return made

    made = slice_of(0)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        delattr(made, keyword)
    del made.RescaleIntercept
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    place = lambda k: dict(PlanePositionSequence=dict(ImagePositionPatient=[5, 6, 3 * k]))
    made.SharedFunctionalGroupsSequence = [made_of(**group(shared))]
    made.PerFrameFunctionalGroupsSequence = [made_of(**group(place(k) | own(k))) for k in range(COUNT)[::-1]]
    slope = lambda k: own(k).get("PixelValueTransformationSequence", dict(RescaleSlope=1))["RescaleSlope"]
    stored = [(VALUES[k] + 1024) // slope(k) for k in range(COUNT)[::-1]]
    made.NumberOfFrames, made.PixelData = COUNT, np.stack(stored).astype("<u2").tobytes()
    folder.mkdir(exist_ok=True)
    made.save_as(folder / "all", enforce_file_format=True)
    return [VALUES[k] if slope(k) == 1 else stored[COUNT - 1 - k] * slope(k) - 1024 for k in range(COUNT)]


MEASURES = dict(PixelMeasuresSequence=dict(PixelSpacing=[2, 1.5]))
LIES = dict(PlaneOrientationSequence=dict(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]))
HU = dict(PixelValueTransformationSequence=dict(RescaleSlope=1, RescaleIntercept=-1024))


@pytest.mark.parametrize("where", ["shared", "own", "slopes"])
def test_enhanced_ct(tmp_path, where):
    "What a group states counts, whether it is shared or each frame's own; each frame has its slope"
    slopes = lambda k: dict(PixelValueTransformationSequence=dict(RescaleSlope=1 + k % 3, RescaleIntercept=-1024))
    own, shared = {
        "shared": (lambda k: {}, MEASURES | LIES | HU),
        "own": (lambda k: MEASURES | LIES | HU, {}),
        "slopes": (slopes, MEASURES | LIES),
    }[where]
    expected = enhanced(tmp_path / "ct", own, **shared)
    values, place = read_image(tmp_path / "ct", notes := [])
    assert np.array_equal(values.numpy(), expected) and not notes
    assert np.allclose(place, [[-1.5, 0, 0, -5], [0, -2, 0, -6], [0, 0, 3, 0], [0, 0, 0, 1]])


def test_an_enhanced_ct_of_two_phases_is_refused(tmp_path):
    enhanced(
        tmp_path / "ct",
        lambda k: dict(PlanePositionSequence=dict(ImagePositionPatient=[5, 6, k // 2])),
        **LIES | HU | MEASURES,
    )
    with pytest.raises(XvrError, match="6 of its slices lie where another does"):
        read_image(tmp_path / "ct")


@pytest.mark.parametrize("kind", [["ORIGINAL", "PRIMARY", "LOCALIZER"], ["DERIVED", "SECONDARY", "LOCALIZER", "CSA"]])
def test_localizers_are_no_slices(folder, kind):
    scout = slice_of(3)
    scout.ImageType = kind
    scout.save_as(folder / "scout", enforce_file_format=True)
    assert not notes_of(folder)


@pytest.mark.parametrize("count", [1, 4])
def test_mosaics_are_refused(tmp_path, count):
    for n in range(count):
        made = slice_of(n)
        made.ImageType, made.Modality = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"], "MR"
        made.save_as(tmp_path / str(n), enforce_file_format=True)
    with pytest.raises(XvrError, match="holds several frames, a mosaic of slices, or colours"):
        read_image(tmp_path)


def page(**tags):
    colours = np.zeros((ROWS, COLUMNS))
    more = dict(SOPClassUID=SecondaryCaptureImageStorage, ImageType=["DERIVED", "SECONDARY"]) | tags
    return tags_of(colours, **more)


@pytest.mark.parametrize("kind", ["grey", "colour", "colour with a place", "large"])
def test_pages(folder, kind):
    colour = dict(
        SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsAllocated=8, BitsStored=8
    )
    colour |= dict(HighBit=7, PixelData=bytes(3 * ROWS * COLUMNS))
    place = dict(ImagePositionPatient=[5, 6, 9], ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[2, 1.5])
    tags = dict(zip(["grey", "colour", "colour with a place"], [{}, colour, colour | place])).get(kind, {})
    made = tags_of(np.zeros((64, 64))) if kind == "large" else page(**tags)
    made.save_as(folder / "A page", enforce_file_format=True)
    assert notes_of(folder) == ["pages without a position, or in colour, left out of the series: 1 (A page)"]


@pytest.mark.parametrize("count", [1, 2])
def test_scouts_that_are_not_flagged(folder, count):
    for n in range(count):
        scout = tags_of(np.zeros((30, 40)), PixelSpacing=[1, 1], ImagePositionPatient=[0, 0, 40])
        scout.ImageOrientationPatient = ([1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1])[n]
        scout.save_as(folder / f"A{n}", enforce_file_format=True)
    [note] = notes_of(folder)
    assert f"(scouts) left out of the series: {count} (A0" in note


def test_a_slice_that_lost_its_position_is_not_left_out(folder):
    made = slice_of(4)
    del made.ImagePositionPatient
    made.save_as(folder / "IM04", enforce_file_format=True)
    with pytest.raises(XvrError, match="IM04 does not state where it is"):
        read_image(folder)


def test_a_slice_that_lost_position_and_axes_leaves_a_gap(folder):
    made = slice_of(4)
    del made.ImagePositionPatient, made.ImageOrientationPatient
    made.save_as(folder / "IM04", enforce_file_format=True)
    with pytest.raises(XvrError, match="slices are missing: 1 between 9.0 and 15.0 mm"):
        read_image(folder)


def save_xrays(folder, count=2):
    folder.mkdir()
    for n in range(count):
        xray = tags_of(np.zeros((30, 40)), SeriesInstanceUID="1.2.77", SeriesNumber=1, Modality="DX")
        xray.SOPClassUID = xray.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
        xray.save_as(folder / f"x{n}.dcm", enforce_file_format=True)


def test_a_disc_with_xrays(folder):
    save_xrays(folder.parent / "dx")
    assert notes_of(folder.parent) == ["series without a position in the patient are left out: DX"]


def kinds_of_a_disc():
    "A CT, X-rays and a report of one study"
    study = dict(PatientID="1", StudyInstanceUID="1.2", StudyDate="20200101", StudyTime="1200", StudyID="1")
    for k in range(COUNT):
        made = slice_of(k)
        for keyword, value in study.items():
            setattr(made, keyword, value)
        yield made
    grey = np.zeros((30, 40))
    for n, (modality, sop) in enumerate(
        (
            ("XA", XRayAngiographicImageStorage),
            ("XA", XRayAngiographicImageStorage),
            ("CR", ComputedRadiographyImageStorage),
        )
    ):
        made = tags_of(
            grey, SeriesInstanceUID=f"1.2.7{modality == 'CR':d}", Modality=modality, SOPClassUID=sop, **study
        )
        made.InstanceNumber = n
        yield made
    made = tags_of(grey, SeriesInstanceUID="1.2.80", Modality="SR", SOPClassUID=BasicTextSRStorage, **study)
    made.InstanceNumber, made.ContentDate, made.ContentTime = 1, "20200101", "1200"
    made.CompletionFlag, made.VerificationFlag = "COMPLETE", "UNVERIFIED"
    made.ConceptNameCodeSequence = [Dataset()]
    made.ConceptNameCodeSequence[0].CodeMeaning = "Report"
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(made, keyword)
    yield made


@pytest.mark.parametrize("inside", [".", "DICOMDIR"])
def test_a_disc_of_all_kinds(tmp_path, inside):
    disc = FileSet()
    for made in kinds_of_a_disc():
        disc.add(made)
    disc.write(tmp_path / "cd")
    (tmp_path / "cd/AUTORUN.INF").write_text("[autorun]")
    assert notes_of(tmp_path / "cd" / inside) == ["series without a position in the patient are left out: XA"]


def test_a_disc_with_two_volumes_and_xrays(folder):
    save_xrays(folder.parent / "dx")
    (folder.parent / "b").mkdir()
    for k in range(COUNT):
        made = slice_of(k)
        made.SeriesInstanceUID, made.SeriesNumber = "1.2.5", 5
        made.save_as(folder.parent / f"b/{k}", enforce_file_format=True)
    with pytest.raises(XvrError, match="holds 3 series"):
        choose_series(folder.parent)


def test_a_disc_with_an_incomplete_ct_is_not_guessed(folder):
    (folder.parent / "b").mkdir()
    for k in range(COUNT):
        made = slice_of(k)
        made.SeriesInstanceUID, made.SeriesNumber = "1.2.5", 5
        made.save_as(folder.parent / f"b/{k}", enforce_file_format=True)
    (folder / "IM04").unlink()
    with pytest.raises(XvrError, match="holds 2 series"):
        choose_series(folder.parent)


def test_a_disc_of_xrays_alone(tmp_path):
    save_xrays(tmp_path / "dx")
    with pytest.raises(XvrError, match="is no volume"):
        read_image(tmp_path / "dx")

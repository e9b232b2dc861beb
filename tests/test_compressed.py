"Compressed DICOM: each way to compress gives the pixels that were compressed"

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder

from xvr.xray import read_pixels

gdcm = pytest.importorskip("gdcm")
LOSSLESS = {
    "JPEGLosslessProcess14_1": "1.2.840.10008.1.2.4.70",
    "JPEGLSLossless": "1.2.840.10008.1.2.4.80",
    "JPEG2000Lossless": "1.2.840.10008.1.2.4.90",
    "RLELossless": "1.2.840.10008.1.2.5",
}


def compress(path, out, syntax):
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(out))
    assert writer.Write()


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_is_lossless(case, tmp_path, syntax):
    path = tmp_path / f"{syntax}.dcm"
    compress(case.xrays[0], path, syntax)
    tags = pydicom.dcmread(path)
    assert tags.file_meta.TransferSyntaxUID == LOSSLESS[syntax]
    assert path.stat().st_size < case.xrays[0].stat().st_size
    stored = read_pixels(case.xrays[0])[0]
    np.testing.assert_array_equal(read_pixels(path)[0], stored)
    for plugin in get_decoder(LOSSLESS[syntax]).available_plugins:  # those that are installed agree
        np.testing.assert_array_equal(pydicom.pixels.pixel_array(tags, decoding_plugin=plugin), stored[0], plugin)


TWELVE = "JPGExtended.dcm"  # pydicom's own example of a lossy JPEG of 12 bits


@pytest.mark.parametrize("name", [TWELVE, "JPEGLSNearLossless_16.dcm", "JPEG2000.dcm"])
def test_lossy_is_read(name):
    "pydicom's own examples, as ITK reads them"
    path = Path(get_testdata_file(name, download=False))
    pixels, tags = read_pixels(path)
    assert len(pixels) == 1 and tags.BitsStored > 8 and np.ptp(pixels) > 0
    np.testing.assert_array_equal(pixels, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)))


def test_twelve_bits_need_no_other_plugin(tmp_path):
    "pydicom 3.0.2 calls GDCM for this transfer syntax at 8 bits only, and has no other decoder unless one is installed"
    tags = pydicom.dcmread(get_testdata_file(TWELVE, download=False))
    with pytest.raises(RuntimeError, match="12-bit"):
        pydicom.pixels.pixel_array(tags, decoding_plugin="gdcm")
    (jpeg,) = generate_frames(tags.PixelData)
    tags.NumberOfFrames, tags.PixelData = 3, encapsulate([jpeg] * 3)
    tags.save_as(tmp_path / "three.dcm")
    (one,), _ = read_pixels(Path(get_testdata_file(TWELVE, download=False)))
    three, _ = read_pixels(tmp_path / "three.dcm")
    np.testing.assert_array_equal(three, [one] * 3)
    np.testing.assert_array_equal(read_pixels(tmp_path / "three.dcm", 1)[0], [one])

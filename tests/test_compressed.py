"Compressed DICOM: each way to compress gives the pixels that were compressed"

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
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


@pytest.mark.parametrize("name", ["JPGExtended.dcm", "JPEGLSNearLossless_16.dcm", "JPEG2000.dcm"])
def test_lossy_is_read(name):
    "pydicom's own examples; GDCM alone reads a lossy JPEG of 12 bits"
    pixels, tags = read_pixels(Path(get_testdata_file(name, download=False)))
    assert len(pixels) == 1 and tags.BitsStored > 8 and np.ptp(pixels) > 0

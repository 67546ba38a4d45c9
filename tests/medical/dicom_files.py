"""DICOM files that tests write: pictures and waveforms of nobody, with names, dates and private tags in them."""

import io

import numpy as np
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

SECRETS = ("DOE^JANE", "PATIENT-4711", "19420317", "Mercy Hospital", "hidden remark")


def picture(pixels, **tags):
    """A file of these pixels (uint8, uint16 or int16), as bytes."""
    dataset = _anybody()
    pixels = np.asarray(pixels)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    return written(dataset, **tags)


def waveform(values, rate, leads, unit="uV", sensitivity=1.0):
    """A file of one group of channels, (T, C) int16, as bytes."""
    dataset = _anybody()
    group = Dataset()
    group.NumberOfWaveformSamples, group.NumberOfWaveformChannels = values.shape
    group.SamplingFrequency = rate
    group.WaveformBitsAllocated, group.WaveformSampleInterpretation = 16, "SS"
    group.WaveformData = values.astype("<i2").tobytes()
    group.ChannelDefinitionSequence = [_channel(lead, unit, sensitivity) for lead in leads]
    dataset.WaveformSequence = [group]
    return written(dataset)


def written(dataset, **tags):
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _anybody():
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", generate_uid()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.SourceApplicationEntityTitle = SECRETS[3]
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.InstitutionName = SECRETS[:4]
    dataset.private_block(0x0011, "SOMEBODY", create=True).add_new(0x01, "LO", SECRETS[4])
    return dataset


def _channel(lead, unit, sensitivity):
    units, source, channel = Dataset(), Dataset(), Dataset()
    units.CodeValue = unit
    source.CodeMeaning = lead
    channel.ChannelSensitivity, channel.ChannelBaseline = sensitivity, 0
    channel.ChannelSensitivityCorrectionFactor = 1.0
    channel.ChannelSensitivityUnitsSequence, channel.ChannelSourceSequence = [units], [source]
    channel.ChannelLabel = SECRETS[0]
    return channel

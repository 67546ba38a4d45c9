"""Medical methods: MoRE on X-rays, ECGs and reports. Research software, not a medical device."""

from collimate_medical.anchored import AnchoredLosses, anchored_losses
from collimate_medical.convirt import ConVIRT, convirt_loss
from collimate_medical.dicom import read_dicom
from collimate_medical.dicom_image import DicomImage
from collimate_medical.dicom_waveforms import read_dicom_ecg
from collimate_medical.dropkey import DropKeyAttention
from collimate_medical.ecg import ECG
from collimate_medical.ecg_augmentation import ECGAugmentation
from collimate_medical.explanation import explain
from collimate_medical.finding_evaluation import FindingsResult, evaluate_findings
from collimate_medical.gloria import GLoRIA, gloria_losses
from collimate_medical.medclip import medclip_loss
from collimate_medical.merl import MERL, merl_losses
from collimate_medical.more import MoRE, NormedProjection
from collimate_medical.pairing import PairedSource, Study, check_patients, pair_studies
from collimate_medical.probing import evaluate_severity, evaluate_shares
from collimate_medical.processing import ECGProcessor, XRayProcessor
from collimate_medical.prompts import finding_texts
from collimate_medical.reading import encode_ecg, read_ecg
from collimate_medical.sentences import OneSentence, SomeSentences
from collimate_medical.transformers import ECGTransformer, ImageTransformer
from collimate_medical.wfdb_records import read_wfdb
from collimate_medical.zero_shot import finding_scores

__all__ = [
    "ECG",
    "MERL",
    "AnchoredLosses",
    "ConVIRT",
    "DicomImage",
    "DropKeyAttention",
    "ECGAugmentation",
    "ECGProcessor",
    "ECGTransformer",
    "FindingsResult",
    "GLoRIA",
    "ImageTransformer",
    "MoRE",
    "NormedProjection",
    "OneSentence",
    "PairedSource",
    "SomeSentences",
    "Study",
    "XRayProcessor",
    "anchored_losses",
    "check_patients",
    "convirt_loss",
    "encode_ecg",
    "evaluate_findings",
    "evaluate_severity",
    "evaluate_shares",
    "explain",
    "finding_scores",
    "finding_texts",
    "gloria_losses",
    "medclip_loss",
    "merl_losses",
    "pair_studies",
    "read_dicom",
    "read_dicom_ecg",
    "read_ecg",
    "read_wfdb",
]

"""Objects in sweeps: a detector, and how it is judged."""

from collimate_3d.detection.center_head import CenterHead, center_targets, decoded
from collimate_3d.detection.center_point import CenterPoint, average_precisions
from collimate_3d.detection.evaluation import LOOSE, DetectionResult, evaluate_detection, write_detections
from collimate_3d.detection.nms import rotated_nms
from collimate_3d.detection.object_text import BoxEncoder, ObjectProcessor, ObjectText

__all__ = [
    "LOOSE",
    "BoxEncoder",
    "CenterHead",
    "CenterPoint",
    "DetectionResult",
    "ObjectProcessor",
    "ObjectText",
    "average_precisions",
    "center_targets",
    "decoded",
    "evaluate_detection",
    "rotated_nms",
    "write_detections",
]

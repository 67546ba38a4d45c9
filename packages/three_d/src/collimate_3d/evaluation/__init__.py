"""How 3D models are evaluated: grounding, captions, objects by their names, relations."""

from collimate_3d.evaluation.answering import answers_of, evaluate_answers
from collimate_3d.evaluation.caption_metrics import CaptionScores, caption_scores, scores_at_overlap
from collimate_3d.evaluation.captioning import evaluate_captions
from collimate_3d.evaluation.grounding import GroundingResult, evaluate_grounding
from collimate_3d.evaluation.objects import evaluate_objects
from collimate_3d.evaluation.relationships import RelationshipResult, evaluate_relationships

__all__ = [
    "CaptionScores",
    "GroundingResult",
    "RelationshipResult",
    "answers_of",
    "caption_scores",
    "evaluate_answers",
    "evaluate_captions",
    "evaluate_grounding",
    "evaluate_objects",
    "evaluate_relationships",
    "scores_at_overlap",
]

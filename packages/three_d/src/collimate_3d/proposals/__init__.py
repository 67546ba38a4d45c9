"""Objects of rooms, found in their points: for scenes without annotated masks."""

from collimate_3d.proposals.detector import SceneDetector
from collimate_3d.proposals.evaluation import evaluate_scene_detection
from collimate_3d.proposals.processing import RoomProcessor
from collimate_3d.proposals.source import ProposedScenes
from collimate_3d.proposals.voting import Proposals, VoteHead

__all__ = ["Proposals", "ProposedScenes", "RoomProcessor", "SceneDetector", "VoteHead", "evaluate_scene_detection"]

"""SG-VLP-style pre-training of scenes and language, and what is built on it."""

from collimate_3d.scene_graph_vlp.answering import SceneAnswers
from collimate_3d.scene_graph_vlp.captioning import SceneCaptions
from collimate_3d.scene_graph_vlp.method import SceneGraphVLP

__all__ = ["SceneAnswers", "SceneCaptions", "SceneGraphVLP"]

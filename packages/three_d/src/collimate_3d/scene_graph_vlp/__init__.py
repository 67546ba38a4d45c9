"""SG-VLP-style pre-training of scenes and language."""

from collimate_3d.scene_graph_vlp.method import SceneGraphVLP

__all__ = ["SceneGraphVLP"]

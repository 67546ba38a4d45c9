"""The command-line app of collimate-3d: `collimate three-d <verb>`."""

from collimate.app import App, Verb

APP = App(
    name="three-d",
    summary="3D scenes and language: grounding by scene graphs",
    package="collimate_3d_app",
    demo="scene_graph_demo",
    verbs={
        "ground": Verb("collimate_3d_app.commands:ground", "find the objects that sentences mean"),
        "classify-objects": Verb("collimate_3d_app.commands:classify_objects", "name objects without training"),
        "relationships": Verb("collimate_3d_app.commands:relationships", "probe a frozen model for objects' relations"),
        "detect": Verb("collimate_3d_app.lidar:detect", "find cars, pedestrians and cyclists in LiDAR sweeps"),
        "lidar-demo": Verb(
            "collimate_3d.detection.demo:lidar_demo", "pre-train on sweeps, fine-tune a detector, compare with scratch"
        ),
        "vocabulary": Verb("collimate_3d_app.commands:vocabulary", "count the words of scenes' texts, for a tokenizer"),
    },
)

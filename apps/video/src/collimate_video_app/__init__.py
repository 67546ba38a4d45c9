"""The command-line app of collimate-video: `collimate video <verb>`."""

from collimate.app import App, Verb

APP = App(
    name="video",
    summary="video and text: ALPRO",
    package="collimate_video_app",
    demo="alpro_demo",
    verbs={
        "schedule": Verb(
            "collimate.training.schedule_command:schedule", "show how a schedule changes the batches of a run"
        ),
        "transcode": Verb("collimate_video_app.commands:transcode", "write videos anew, small and fast to seek in"),
    },
)

"""The command-line app of collimate-video: `collimate video <verb>`."""

from collimate.app import App, Verb

APP = App(
    name="video",
    summary="video, sound and text: ALPRO, VATT, CoAVT",
    package="collimate_video_app",
    demo="alpro_demo",
    verbs={
        "entities": Verb(
            "collimate_video.alpro.vocabulary:entities", "count the nouns of captions, for ALPRO to tell apart"
        ),
        "import-msrvtt": Verb("collimate_video.importing:import_msrvtt", "the table of MSR-VTT, with the split 1k-A"),
        "import-didemo": Verb("collimate_video.importing:import_didemo", "the table of DiDeMo, a paragraph a video"),
        "import-msvd": Verb("collimate_video.importing:import_msvd", "the table of MSVD"),
        "import-video-qa": Verb(
            "collimate_video.importing:import_video_qa", "the tables of MSRVTT-QA and MSVD-QA, a row a question"
        ),
        "mean-of-frames": Verb(
            "collimate_video_app.commands:mean_of_frames", "make a video model of an image-text model: the yardstick"
        ),
        "schedule": Verb(
            "collimate.training.schedule_command:schedule", "show how a schedule changes the batches of a run"
        ),
        "transcode": Verb("collimate_video_app.commands:transcode", "write videos anew, small and fast to seek in"),
    },
)

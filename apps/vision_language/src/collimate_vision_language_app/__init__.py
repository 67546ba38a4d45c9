"""The command-line app of collimate-vision-language: `collimate vision-language <verb>`."""

from collimate.app import App, Verb

APP = App(
    name="vision-language",
    summary="images and text: CLIP, SigLIP",
    package="collimate_vision_language_app",
    demo="clip_demo",
    verbs={
        "consistency": Verb(
            "collimate_vision_language_app.commands:consistency",
            "show which texts ALIP's gates distrust, and how rightly",
        )
    },
)

"""The command-line app of collimate-vision-language: `collimate vision-language <verb>`."""

from collimate.app import App

APP = App(
    name="vision-language",
    summary="images and text: CLIP, SigLIP",
    package="collimate_vision_language_app",
    demo="clip_demo",
)

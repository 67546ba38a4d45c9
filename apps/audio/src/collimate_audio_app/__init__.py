"""The command-line app of collimate-audio: `collimate audio <verb>`."""

from collimate.app import App, Verb

APP = App(
    name="audio",
    summary="sound: BEATs and its tokenizers",
    package="collimate_audio_app",
    demo="beats_demo",
    verbs={
        "tokenize": Verb(
            "collimate_audio_app.commands:tokenize", "write a tokenizer's labels of the patches of any data"
        ),
        "iterate": Verb("collimate_audio.iterate:iterate", "pre-train and make tokenizers in turns, and compare them"),
    },
)

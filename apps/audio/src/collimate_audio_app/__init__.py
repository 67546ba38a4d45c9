"""The command-line app of collimate-audio: `collimate audio <verb>`."""

from collimate.app import App, Verb

APP = App(
    name="audio",
    summary="sound: BEATs and its tokenizers, CLAP, speech and text",
    package="collimate_audio_app",
    demo="beats_demo",
    verbs={
        "tokenize": Verb(
            "collimate_audio_app.commands:tokenize", "write a tokenizer's labels of the patches of any data"
        ),
        "classify": Verb("collimate_audio_app.commands:classify", "tell the classes of clips by a fine-tuned model"),
        "cross-validate": Verb(
            "collimate_audio.cross_validation:cross_validate", "train and judge a recipe fold by fold"
        ),
        "import-esc50": Verb("collimate_audio.importing:import_esc50", "the table of ESC-50, with its folds"),
        "import-speech-commands": Verb(
            "collimate_audio.importing:import_speech_commands", "the table of Speech Commands, of 35 or 12 classes"
        ),
        "import-audioset": Verb("collimate_audio.importing:import_audioset", "the table of a part of AudioSet"),
        "iterate": Verb("collimate_audio.iterate:iterate", "pre-train and make tokenizers in turns, and compare them"),
    },
)

"""The command-line app of collimate-vision-language: `collimate vision-language <verb>`."""

from collimate.app import App, Verb

APP = App(
    name="vision-language",
    summary="images and text: CLIP, SigLIP, FILIP, ALIP, DreamLIP, FLAIR, TCL, CLOC",
    package="collimate_vision_language_app",
    demo="clip_demo",
    verbs={
        "localize": Verb("collimate.evaluation.commands:localize", "point at phrases, and segment by class names"),
        "regions": Verb("collimate.evaluation.commands:regions", "name, match and find what boxes hold"),
        "compositional": Verb("collimate.evaluation.commands:compositional", "choose captions among hard negatives"),
        "consistency": Verb(
            "collimate_vision_language_app.commands:consistency",
            "show which texts ALIP's gates distrust, and how rightly",
        ),
        "import-vqa": Verb(
            "collimate_vision_language.tcl.importing:import_vqa", "the table of VQA v2, a row a question"
        ),
        "import-nlvr": Verb(
            "collimate_vision_language.tcl.importing:import_nlvr", "NLVR2 as shards, two pictures a statement"
        ),
    },
)

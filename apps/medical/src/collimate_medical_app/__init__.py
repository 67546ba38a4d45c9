"""The command-line app of collimate-medical: `collimate medical <verb>`. Research software, not a medical device."""

from collimate.app import App, Verb

APP = App(
    name="medical",
    summary="X-rays, ECGs and reports: MoRE, ConVIRT, GLoRIA, MERL (research software, not a medical device)",
    package="collimate_medical_app",
    demo="more_demo",
    verbs={
        "zero-shot": Verb(
            "collimate_medical.finding_evaluation:zero_shot", "tell findings of X-rays or ECGs by texts, untrained"
        ),
    },
)

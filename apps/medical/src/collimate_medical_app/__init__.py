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
        "explain": Verb(
            "collimate_medical.explain_report:explain", "draw what a model looks at in X-rays, ECGs and reports"
        ),
        "probe-shares": Verb(
            "collimate_medical.probing:probe_shares", "read findings with 1, 10 and 100 % of the labelled patients"
        ),
        "probe-severity": Verb("collimate_medical.probing:probe_severity", "read grades, such as an edema's"),
        "import-mimic-cxr": Verb("collimate_medical.importing:import_mimic_cxr", "the table of MIMIC-CXR(-JPG)"),
        "import-mimic-ecg": Verb("collimate_medical.importing:import_mimic_ecg", "the table of MIMIC-IV-ECG"),
        "import-mimic-edema": Verb(
            "collimate_medical.importing:import_mimic_edema", "the table of edema's severity in MIMIC-CXR"
        ),
        "import-chexpert": Verb("collimate_medical.importing:import_chexpert", "the table of CheXpert"),
        "import-chest-xray14": Verb(
            "collimate_medical.importing:import_chest_xray14", "the table of the NIH's ChestX-ray14"
        ),
        "import-ptb-xl": Verb("collimate_medical.importing:import_ptb_xl", "the table of PTB-XL, by its folds"),
    },
)

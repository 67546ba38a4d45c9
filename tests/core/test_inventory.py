"""What `collimate list` takes for a method."""

from collimate.inventory import encoders, methods


def test_a_name_means_its_own_package():
    """CLOC's prompters derive from a class that is called as a method of the video package is."""
    names = {name.split(".")[-1] for name, _ in methods()}
    assert {"CLIP", "TCL", "Prompter", "Classifier", "AudioClassifier"} <= names
    assert not {"AttentionPrompter", "RoIAlignPrompter"} & names


def test_towers_of_all_packages_are_encoders():
    names = {name.split(".")[-1] for name, _ in encoders()}
    assert {"TimmImageEncoder", "BEATs", "TimeSformer", "LoRA"} <= names

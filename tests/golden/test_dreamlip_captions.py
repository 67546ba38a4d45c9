"""The released splitting rule against DreamLIP's own code."""

import json

from collimate.data import Caption
from collimate_vision_language.sub_captions import SubCaptions, split_released

GOLDEN = "dreamlip_captions"


def test_released_split(golden_set):
    assert (golden_set.config["rule"], golden_set.config["comparison"]) == ("released", "exact")
    cases = json.loads((golden_set.folder / "cases.json").read_text())
    sampler = SubCaptions(split="released")
    for case in cases:
        assert split_released(case["long_caption"]) == case["sub_captions"]
        assert sampler.sentences([Caption(case["long_caption"], "long")]) == case["sub_captions"]
    assert cases

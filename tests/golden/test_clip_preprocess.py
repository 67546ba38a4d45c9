"""CLIP's evaluation preprocessing against openai/CLIP and open_clip."""

from PIL import Image

from collimate.processing import ImageProcessor

GOLDEN = "clip_preprocess"


def test_pixels(golden_set, case):
    config, setting = golden_set.config, golden_set.cases[case]
    processor = ImageProcessor(
        config["image_size"],
        tuple(config["mean"]),
        tuple(config["std"]),
        config["interpolation"],
        {"shorter_side": "shortest"}[config["resize"]],
    )
    image = Image.fromarray(golden_set.inputs[setting["image"]].numpy(), mode=setting["mode"])
    pixels = processor.finish(processor.batch([image]))[0]
    golden_set.compare(dict.fromkeys(setting["expected"], pixels))

"""A method and sources of a few numbers: colours that are named by their words."""

import io
import json

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, normalize

from collimate.data import CorruptSample, Source
from collimate.encoding import Encoding
from collimate.processing import ImageProcessor, Processor
from collimate.training import Method

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "white": (255,) * 3}


class MeanColour(Processor):
    def __call__(self, raw):
        return torch.tensor(raw.convert("RGB").resize((1, 1)).getpixel((0, 0))) / 255


class Words(Processor):
    """The mean of the colours that a text names, of a length that says how many words it has."""

    def __call__(self, raw):
        named = [COLOURS[word] for word in raw.replace(".", " ").split() if word in COLOURS]
        return torch.tensor(named or [(1, 1, 1)]).float().mean(0) / 255


class ColourMethod(Method):
    """Both modalities are colours; `bent` turns the pictures', so that answers are not all right."""

    modalities = ("image", "text")

    def __init__(self, bent: float = 0.0) -> None:
        super().__init__()
        self.processors = {"image": MeanColour(), "text": Words()}
        self.matrix = nn.Parameter(torch.eye(3) + bent)

    def forward(self, modality, inputs, mask=None):
        pooled = inputs - 0.4
        return Encoding(pooled @ self.matrix if modality == "image" else pooled)


class TokenMethod(ColourMethod):
    """Ranks by the best of two tokens instead of by a cosine."""

    def forward(self, modality, inputs, mask=None):
        pooled = super().forward(modality, inputs, mask).pooled
        return Encoding(torch.zeros_like(pooled), torch.stack([pooled, pooled.flip(1)], 1))

    def similarity(self, query, key):
        return torch.einsum("qad,kbd->qkab", query.tokens, key.tokens)[:, :, 0].amax(2)


class RerankMethod(ColourMethod):
    """Ranks by a cosine, and ranks again by the distance of colours, which its tokens hold."""

    def forward(self, modality, inputs, mask=None):
        encoding = super().forward(modality, inputs, mask)
        # The second token of a text that is not red is padding: it must not be read.
        tokens = torch.stack([inputs, torch.full_like(inputs, 7.0)], 1)
        real = torch.stack([torch.ones(len(inputs), dtype=torch.bool), inputs[:, 0] > 0.5], 1)
        return encoding.replace(tokens=tokens, mask=real if modality == "text" else None)

    def rerank(self, image, text):
        return -(image.tokens[:, 0] - text.tokens[:, 0]).norm(dim=1) + 0.01 * text.token_mask.sum(1)


class WordIds(Processor):
    """A text to one id a word: a colour's place in `COLOURS`, or that of any other word; padded with -1."""

    length = 6

    def __call__(self, raw):
        words = raw.replace(".", " ").split()[: self.length]
        ids = [list(COLOURS).index(word) if word in COLOURS else len(COLOURS) for word in words]
        return torch.tensor(ids + [-1] * (self.length - len(ids)))

    def mask(self, batch):
        return batch >= 0

    def pieces(self, ids):
        return [[*COLOURS, "", ""][number] for number in ids.tolist()]  # other words are as good as padding


class LateMethod(Method):
    """Late interaction of the mean colours of a picture's cells with the colours that a text names."""

    modalities = ("image", "text")

    def __init__(self, cells: int = 2) -> None:
        super().__init__()
        self.cells = cells
        self.processors = {"image": ImageProcessor(16, (0.0,) * 3, (1.0,) * 3, "nearest"), "text": WordIds()}
        self.colours = nn.Parameter(torch.tensor([*COLOURS.values(), (110, 100, 90)]) / 255 - 0.4)

    def forward(self, modality, inputs, mask=None):
        if modality == "image":
            tokens = adaptive_avg_pool2d(inputs, self.cells).flatten(2).mT - 0.4
            return Encoding(tokens.mean(1), tokens, grid=(self.cells, self.cells))
        tokens = self.colours[inputs]
        return Encoding((tokens * mask[..., None]).sum(1), tokens, mask)

    def similarity(self, query, key):
        words, others = normalize(query.tokens, dim=-1), normalize(key.tokens, dim=-1)
        best = torch.einsum("qad,kbd->qkab", words, others)
        best = best.masked_fill(~key.token_mask[None, :, None], -1).amax(3)
        real = query.token_mask[:, None].float()
        return (best * real).sum(2) / real.sum(2).clamp_min(1)


class ColourPictures(Source):
    """Pictures of plain colours with a label and one to three captions each."""

    def __init__(self, size=23, corrupt=()):
        self.size, self.corrupt = size, set(corrupt)
        self.name, self.class_names = "colours", list(COLOURS)

    def __len__(self):
        return self.size

    def read(self, index):
        if index in self.corrupt:
            raise CorruptSample(f"colours: {index}", "truncated file")
        label = index % len(COLOURS)
        name, colour = list(COLOURS.items())[label]
        shade = tuple(max(0, value - 3 * index) for value in colour)
        file = io.BytesIO()
        Image.new("RGB", (4, 4), shade).save(file, "PNG")
        captions = [f"{name} number {n}" for n in range(1 + index % 3)]
        return {
            "__key__": f"picture {index}",
            "__source__": self.name,
            "png": file.getvalue(),
            "cls": label,
            "captions.json": json.dumps(captions).encode(),
        }


class ColourScenes(Source):
    """Pictures of `SIDE` pixels with a coloured square in two of four corners, its region, and hard negatives."""

    SIDE = 32

    def __init__(self, size=12, masks=False, wide=False):
        self.size, self.masks, self.wide, self.name = size, masks, wide, "scenes"

    def __len__(self):
        return self.size

    def places(self, index):
        """colour -> the corner (row, column) of its square."""
        names, corners = list(COLOURS)[:4], [(0, 0), (0, 1), (1, 0), (1, 1)]
        first, second = index % 4, (index % 4 + 1 + index // 4 % 3) % 4
        return {names[first]: corners[index % 4], names[second]: corners[(index + 1 + index % 3) % 4]}

    def read(self, index):
        side, half, margin = self.SIDE, self.SIDE // 2, 2
        pixels = np.full((side, side * 2 if self.wide else side, 3), (110, 100, 90), np.uint8)
        instances, regions = np.zeros(pixels.shape[:2], np.uint8), []
        left = half if self.wide else 0  # where the middle crop of a wide picture begins
        for number, (name, (row, column)) in enumerate(self.places(index).items(), 1):
            x0, y0 = left + column * half + margin, row * half + margin
            x1, y1 = x0 + half - 2 * margin, y0 + half - 2 * margin
            pixels[y0:y1, x0:x1], instances[y0:y1, x0:x1] = COLOURS[name], number
            regions.append({"box": [x0, y0, x1, y1], "phrase": f"the {name}", "name": name})
        a, b = self.places(index)
        other = next(name for name in COLOURS if name not in (a, b))
        pair = {"caption": f"a {a} thing", "negative": f"a {other} thing"}
        swapped = {"caption": "white" if index % 2 else a, "negative": b if index % 2 else "white"}
        sample = {
            "__key__": f"scene {index}",
            "__source__": self.name,
            "png": pixels,
            "txt": f"{a} and {b}",
            "regions.json": regions,
            "compositional.json": [{"kind": "replace", **pair}, {"kind": "swap", **swapped}],
        }
        return {**sample, "instances.png": instances} if self.masks else sample

"""COSMO's contrast of projected pictures and texts is the symmetric one at the scale exp(t)."""

import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from collimate.encoders import LinearProjection
from collimate.losses import clip_loss

GOLDEN = "cosmo_contrastive"


def test_cosmo(golden_set):
    weights = load_file(golden_set.folder / "weights.safetensors")
    projected = []
    for name, prefix in (("vision_embeds", "img"), ("text_embeds", "text")):
        matrix, inputs = weights[f"{prefix}_to_latents.to_latents.weight"], golden_set.inputs[name]
        projection = LinearProjection(inputs.shape[1], len(matrix))
        projection.linear.load_state_dict({"weight": matrix})
        projected.append(projection(inputs))
    scale = weights["temperature"].exp()
    cosines = normalize(projected[0], dim=1) @ normalize(projected[1], dim=1).T
    own = cosines.diagonal()
    ranks = torch.stack([(cosines > own[:, None]).sum(1), (cosines > own).sum(0)]).double()
    found = {f"top{k}": 100 * (ranks < k).double().mean() for k in golden_set.config["top_k"]}
    golden_set.compare_all("", {"contrastive_loss": clip_loss(*projected, scale), **found})

"""The similarity-weighted contrast and its weights against SiMHand's."""

from collimate.losses import similarity_weighted_loss
from collimate.losses.distance_weights import matrix_weights_by_distance, pair_weights_by_distance

GOLDEN = "simhand"


def test_simhand(golden_set, case):
    settings, inputs = golden_set.cases[case], golden_set.inputs
    joints = inputs["joints1"], inputs["joints2"]
    how = settings["weighting"], settings["distance"]
    pair = pair_weights_by_distance(*joints, *how, inputs["lambda_pos"])
    matrix = matrix_weights_by_distance(*joints, *how, inputs["lambda_neg"])
    first = inputs["z1"].clone().requires_grad_()

    def loss(**weights):
        return similarity_weighted_loss(first, inputs["z2"], inputs["temperature"], normalize=False, **weights)

    both = loss(pair_weights=pair, matrix_weights=matrix)
    both.backward()
    everything = slice(0, 2 * len(first))
    golden_set.compare(
        {
            f"w_pos__{case}": pair,
            f"w_neg__{case}": matrix(everything, everything),
            f"loss_pos_neg__{case}": both,
            f"loss_pos__{case}": loss(pair_weights=pair),
            f"loss_neg__{case}": loss(matrix_weights=matrix),
            f"grad_z1__{case}": first.grad,
        }
    )

"""TCL: vision-language pre-training with triple contrastive learning.

Yang et al. 2022, arXiv 2202.10401; uta-smile/TCL, whose weights load (`TCL.from_official`).

Two towers, f, and copies of them, f̂, that follow by θ̂ <- m θ̂ + (1 - m) θ. A picture has two views, one for each; a text
has one, and two draws of dropout. With the terms of `alignment`, the pre-training loss is

    1/3 (L_CMA + L_IMC + L_LMI) + L_ITM + L_MLM
    L_ITM = CE(head(fusion(picture, text)), whether they belong together)       of true pairs, and of hard negatives
    L_MLM = (1 - α) CE(fusion(picture, text with masked tokens), token) + α CE(..., what f̂ says of it)

and fine-tuning for retrieval leaves out L_MLM and knows which texts are of one picture (`image_ids`): all of them are
positives, and none is a negative. The queue and the copies are those of MoCo (`FeatureQueue`, `momentum_copy`).

Ranks, as published: each contrasts its own batch with itself and with the common queue, so that N ranks of n samples
are not one of N n; gradients are exact for the mean of the ranks' losses. The queue gets the samples of all ranks.

From such weights begin `TCLAnswers`, questions about pictures, and `TCLPairs`, statements about two of them.

What of this is ours:
- The paper adds the three contrastive terms; the released code, with whose weights and learning rates we compare, takes
  their mean (`contrast_weight`).
- Copies move, and τ is clamped, after a step and not before the next: the same sequence.
- Patches are pooled to `local_grid` x `local_grid` windows, as in the released fine-tuning; its pre-training has
  floor(sqrt(side)) windows, which is 4 too at 256 pixels.
- Padding is masked, where the released code adds 10000; logits of the local term are never repeated for each local.
- The logits of the vocabulary are computed for masked tokens only. Without a masked token L_MLM is 0; released, NaN.
- Where hard negatives run out of weight, any other sample (of another picture) is drawn, in fine-tuning too.
"""

from collimate_vision_language.tcl.alignment import AlignmentLosses, alignment_losses
from collimate_vision_language.tcl.answering import AnswerScores, TCLAnswers
from collimate_vision_language.tcl.method import TCL
from collimate_vision_language.tcl.pairs import TCLPairs

__all__ = ["TCL", "AlignmentLosses", "AnswerScores", "TCLAnswers", "TCLPairs", "alignment_losses"]

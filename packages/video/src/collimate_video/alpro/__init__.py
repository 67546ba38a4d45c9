"""ALPRO: videos and texts, aligned before they are fused.

Li et al. 2022, Align and Prompt: video-and-language pre-training with entity prompts, arXiv 2112.09583; code of
salesforce/ALPRO, modeling/alpro_models.py. For the unit vectors v_i of videos and t_j of texts, s(v, t) = v.t / τ, and
the B pairs of a batch,

    VTC = 1/2 [mean_i -log softmax_j s(v_i, t_j)[i] + mean_i -log softmax_j s(v_j, t_i)[i]]
    VTM = cross-entropy of "belong together", read off the fused [CLS], for B pairs, B texts with a wrong video and B
          videos with a wrong text, drawn from the softmax of s
    MLM = cross-entropy of hidden tokens, told from the fused text

The video's tokens are averaged over its frames before anything reads them; fusion is self-attention over the tokens of
both, text first.

The fourth loss, prompting entity modelling (PEM, section 3.3), is in `entities`. Its teacher, the `Prompter`, is
trained on VTC alone, in a stage of its own.

Departures: contrast is over the samples of all ranks with their true places and gradients, where the released code
takes the place on one machine; a batch in which no token is hidden costs 0, where it gives NaN; τ is clamped after a
step instead of before the next.
"""

from collimate_video.alpro.answering import ALPROAnswers
from collimate_video.alpro.entities import EntityPrompter
from collimate_video.alpro.method import ALPRO
from collimate_video.alpro.prompter import Prompter

__all__ = ["ALPRO", "ALPROAnswers", "EntityPrompter", "Prompter"]

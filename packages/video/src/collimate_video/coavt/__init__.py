"""CoAVT: clips that are seen and heard, and the texts that tell of them, bridged by a few learned queries.

Yue et al. 2024, CoAVT, arXiv 2401.12264. No code was released, and of the paper only its abstract and public reviews
could be read: this is our reading, on the two published designs that it names, CAV-MAE (Gong et al. 2023, arXiv
2210.07839) for the joint layers and BLIP-2 (Li et al. 2023, arXiv 2301.12597; salesforce/LAVIS) for queries and losses.

Towers turn one frame and the sound of a clip into tokens; joint layers read those of the frame, of the sound, and of
both: E_V, E_A and E_AV. Queries q_1 ... q_N look at each of them, X, and give Q_X = (q_X,1 ... q_X,N); the same layers
read texts, whose first token is t. With u, v for unit vectors in the space of both and s the inverse temperature,

    s_X(i, j) = s max_n <u(q_X,n of clip i), v(t_j)>
    contrastive   1/2 [mean_i -log softmax_j s_X(i, j)[i] + mean_j -log softmax_i s_X(i, j)[j]]
    matching      cross-entropy of "belong together", the mean of what each query says that has read the text, for B
                  pairs, B texts with a wrong clip and B clips with a wrong text, drawn from the softmax of s_X
    language      cross-entropy of each token of the text, told from the queries and the tokens before it

and the loss is the sum of the three over AV, A and V.

Decisions, where nothing public settles them: all terms weigh 1; which losses A and V have beside the contrastive one
is `bimodal_losses`, by default all; towers may be any, so that the embedding of a modality is added before the joint
layers and not before the towers; contrast has no label smoothing, the language loss BLIP-2's; equal texts are no
negatives of each other; the token that begins a text to be told is the tokenizer's mask token, which no loss here uses
else. In training one frame of a clip is drawn; in evaluation scores are the mean over all of them, as CAV-MAE's
predictions are. Two clips, or a clip and a sound, are compared by their nearest queries, where CAV-MAE takes the
cosine of mean tokens, which no loss here brings together. A clip without a sound track counts as silent in training;
to search with what is only seen or only heard, encode `video` or `audio`, not `audiovisual`.
"""

from collimate_video.coavt.method import CoAVT
from collimate_video.coavt.spectrogram import SpectrogramPatches

__all__ = ["CoAVT", "SpectrogramPatches"]

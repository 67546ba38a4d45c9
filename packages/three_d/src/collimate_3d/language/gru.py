"""Word vectors and a recurrent network: the text encoder of 3D-VLP, ScanRefer and their kin.

Shape legend: B texts, L words of a text, D width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from collimate.encoders import Encoder
from collimate.encoders.base import strides
from collimate.encoding import Encoding
from collimate_3d.language.words import SPECIAL, WordTokenizer


class GRUTextEncoder(Encoder):
    """A vector a word, and a GRU (Cho et al. 2014, arXiv 1406.1078) that reads them from left to right.

    Tokens are the GRU's states; `pooled` is the state at the last real token.

    Args:
        vocab_size: ids lie below it.
        word_width: of the word vectors; GloVe's have 300.
        width: D; 3D-VLP has 256.
        layers: of the GRU.
        bidirectional: whether half of the states read from right to left; `pooled` is then the last state of either.
    """

    def __init__(
        self,
        vocab_size: int,
        word_width: int = 300,
        width: int = 256,
        layers: int = 1,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        if bidirectional and width % 2:
            raise ValueError(f"Two directions share the width evenly; {width} is odd.")
        self.width, self.vocab_size = width, vocab_size
        self.word_embeddings = nn.Embedding(vocab_size, word_width)
        nn.init.normal_(self.word_embeddings.weight, std=0.4)  # the spread of GloVe's numbers, about
        state = width // 2 if bidirectional else width
        self.gru = nn.GRU(word_width, state, layers, batch_first=True, bidirectional=bidirectional)

    def forward(self, inputs: Int64[Tensor, "B L"], mask: Bool[Tensor, "B L"] | None = None) -> Encoding:
        """Encode texts.

        Args:
            inputs: ids, padding on the right.
            mask: True where a token is real; everywhere if None. A text without any counts as its first token.
        """
        mask = torch.ones_like(inputs, dtype=torch.bool) if mask is None else mask
        words = self.word_embeddings(inputs)
        if not self.gru.bidirectional:  # what stands on the right of a text changes no state within it
            states = self.gru(words)[0]
        else:
            lengths = mask.sum(1).clamp_min(1).cpu()
            packed = nn.utils.rnn.pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
            states, _ = nn.utils.rnn.pad_packed_sequence(
                self.gru(packed)[0], batch_first=True, total_length=inputs.shape[1]
            )
        return Encoding(self._last(states, mask), states, mask)

    def example(self) -> Tensor:
        return strides(2, 5, below=self.vocab_size)

    def _last(self, states: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        last = (mask.sum(1) - 1).clamp_min(0)
        forward = states[torch.arange(len(states), device=states.device), last]
        if not self.gru.bidirectional:
            return forward
        half = self.width // 2
        return torch.cat([forward[:, :half], states[:, 0, half:]], 1)


@torch.no_grad()
def fill_word_vectors(encoder: GRUTextEncoder, tokenizer: WordTokenizer, path: str | Path) -> int:
    """Begin with published word vectors, such as `glove.6B.300d.txt`: a word and its numbers a line.

    Words that the file lacks keep what they have.

    Returns:
        how many words were found.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the vectors are of another width; or no word was found.
    """
    width = encoder.word_embeddings.embedding_dim
    places = {word: number for number, word in enumerate(tokenizer.words, SPECIAL)}
    found = 0
    with open(path, encoding="utf-8") as file:
        for line in file:
            word, *numbers = line.rstrip().split(" ")
            if word not in places:
                continue
            if len(numbers) != width:
                raise ValueError(f"{path}: {word!r} has {len(numbers)} numbers; the encoder's words have {width}.")
            encoder.word_embeddings.weight[places[word]] = torch.tensor([float(number) for number in numbers])
            found += 1
    if not found:
        raise ValueError(f"{path} has none of the {len(places)} words of the vocabulary.")
    return found

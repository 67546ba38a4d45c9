"""Words: a tokenizer of whole words, a recurrent text encoder."""

from collimate_3d.language.gru import GRUTextEncoder, fill_word_vectors
from collimate_3d.language.words import WordTokenizer, count_words

__all__ = ["GRUTextEncoder", "WordTokenizer", "count_words", "fill_word_vectors"]

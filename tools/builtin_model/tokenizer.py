"""A byte-level BPE tokenizer for the built-in model.

Every digit is a token of its own, since a model of this size cannot learn to add numbers whose digits come glued
together in ever new ways. Any other text can be encoded too, byte by byte if need be.
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

END, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY_LIMIT = 1024  # merging ends long before, once every word of the problems is one token
PIECES = r"\d| ?\p{L}+| ?[^\s\d\p{L}]+|\s"  # one digit; a word or a run of signs with the space before it; one space


def train_tokenizer(texts: Iterable[str], longest: int) -> PreTrainedTokenizerFast:
    """Learn the merges from texts; ``longest`` is the most tokens that the model takes."""
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = Sequence(
        [Split(Regex(PIECES), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)],
    )
    bpe.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_LIMIT,
        special_tokens=[END, PAD],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=longest,
    )


def padded_size(tokenizer: PreTrainedTokenizerFast, multiple: int = 64) -> int:
    """The vocabulary size rounded up, which is what the embedding gets."""
    return -(-len(tokenizer) // multiple) * multiple

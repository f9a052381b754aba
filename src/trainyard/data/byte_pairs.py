"""Byte-pair tokenizer that is trained on the training texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trainyard.checks import boolean, integer
from trainyard.errors import ConfigError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BYTES = 256


class BytePairs:
    """Byte-pair tokenizer (Sennrich et al., 2016) on bytes, as in GPT-2, trained on texts.

    Args:
        vocab_size: the maximum number of tokens: `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]` and `[MASK]` (tokens 0 to 4), the
            256 bytes, and merged tokens.
        lowercase: convert texts to lower case.

    Raises:
        ConfigError: transformers is not installed, or a value is invalid.
    """

    def __init__(self, vocab_size: int = 2000, lowercase: bool = True) -> None:
        self.vocab_size = integer("vocab_size", vocab_size, at_least=len(SPECIAL) + BYTES)
        self.lowercase = boolean("lowercase", lowercase)
        try:
            import tokenizers  # noqa: F401
            import transformers  # noqa: F401
        except ImportError as error:
            hint = "Install it with: pip install 'trainyard[hf]'"
            raise ConfigError(
                "_target_",
                "trainyard.data.BytePairs",
                "another tokenizer, because transformers is not installed",
                hint=hint,
            ) from error

    def fit(self, texts: Iterable[str]) -> Any:
        """Return a `transformers.PreTrainedTokenizerFast` that is trained on `texts`.

        The same texts give the same tokenizer. A sample starts with `[CLS]`, and each of its texts ends with `[SEP]`.
        """
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
        from transformers import PreTrainedTokenizerFast

        pad, unknown, start, end, mask = SPECIAL
        pairs = Tokenizer(models.BPE(unk_token=unknown))
        if self.lowercase:
            pairs.normalizer = normalizers.Lowercase()
        pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        pairs.decoder = decoders.ByteLevel()
        # Not of word pieces: those of the library are numbered anew in each process.
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        pairs.train_from_iterator(texts, trainer)
        pairs.post_processor = processors.TemplateProcessing(
            single=f"{start} $A {end}",
            pair=f"{start} $A {end} $B:1 {end}:1",
            special_tokens=[(token, SPECIAL.index(token)) for token in (start, end)],
        )
        named = {"pad_token": pad, "unk_token": unknown, "cls_token": start, "sep_token": end, "mask_token": mask}
        return PreTrainedTokenizerFast(tokenizer_object=pairs, **named)

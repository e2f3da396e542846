"""The published architectures of the field by name, for a recipe's `config` and for `distill models`.

Names are those of the models' cards. MiniRBT's own six are files in distill_configs, which load_config finds by their
names; what the authors say about sizes stands in published.py.
"""

from transformers import AlbertConfig, BertConfig

GOOGLE_CHINESE, GOOGLE_CASED, GOOGLE_UNCASED, CLUE = 21_128, 28_996, 30_522, 8_021
"""Tokens of the vocabularies."""
LAYERS = (2, 4, 6, 8, 10, 12)
WIDTHS = (128, 256, 512, 768)

# name -> layers, hidden size, FFN size, heads, vocabulary
_SHAPES = {
    # https://github.com/dbiir/UER-py/wiki/Modelzoo: FFN 4H, heads H/64
    **{f"chinese_roberta_L-{layers}_H-{width}": (layers, width, 4 * width, width // 64, GOOGLE_CHINESE)
       for layers in LAYERS for width in WIDTHS},
    # https://github.com/CLUEbenchmark/CLUEPretrainedModels; FFN 1248 is albert_tiny's, with which 7.5M comes out
    "RoBERTa-tiny-clue": (4, 312, 1248, 12, CLUE),
    "RoBERTa-tiny-pair": (4, 312, 1248, 12, CLUE),
    "RoBERTa-tiny3L312-clue": (3, 312, 1248, 12, CLUE),
    "RoBERTa-tiny3L768-clue": (3, 768, 3072, 12, CLUE),
    "RoBERTa-large-clue": (24, 1024, 4096, 16, CLUE),
    "RoBERTa-large-pair": (24, 1024, 4096, 16, CLUE),
    "BERT-base": (12, 768, 3072, 12, GOOGLE_CHINESE),
    "BERT-base-clue": (12, 768, 3072, 12, CLUE),
    "RoBERTa-wwm-large": (24, 1024, 4096, 16, GOOGLE_CHINESE),
    # https://huggingface.co/haisongzhang/roberta-tiny-cased
    "RoBERTa-tiny-cased": (4, 512, 2048, 8, GOOGLE_CASED),
    "BERT-small": (4, 512, 2048, 8, GOOGLE_UNCASED),
}  # fmt: skip
NAMES = tuple(_SHAPES)
MINIRBT = ("RoBERTa", "RBT6", "RBT3", "RBT4-h312", "MiniRBT-h256", "MiniRBT-h288")
"""Files in distill_configs."""


def miniature(layers: int, width: int) -> str:
    """The name of one of UER's 24 miniatures."""
    return f"chinese_roberta_L-{layers}_H-{width}"


def named_config(name: str) -> BertConfig:
    """The config of an architecture; KeyError if it is none of NAMES."""
    layers, width, inner, heads, vocabulary = _SHAPES[name]
    return BertConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=inner,
    )  # fmt: skip


def albert_tiny() -> AlbertConfig:
    """ALBERT-tiny of https://github.com/brightmart/albert_zh: one shared layer run four times; only to compare with."""
    return AlbertConfig(
        vocab_size=GOOGLE_CHINESE, embedding_size=128, hidden_size=312, num_hidden_layers=4, num_attention_heads=12,
        intermediate_size=1248, max_position_embeddings=512,
    )  # fmt: skip

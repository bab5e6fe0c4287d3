"""Train multimodal tokenizers and turn web corpora into training-ready token shards."""

__version__ = "0.1.0"

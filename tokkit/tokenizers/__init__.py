"""Tokenizers: text (:mod:`tokkit.tokenizers.text`) and pictures (:mod:`tokkit.tokenizers.image`), to codes and back."""

"""Tokenizers: text (:mod:`tokkit.tokenizers.text`), pictures (:mod:`tokkit.tokenizers.image`) and sound
(:mod:`tokkit.tokenizers.audio`), to codes and back."""

"""Measures of tokenizers: reconstruction quality and use of the codebook."""

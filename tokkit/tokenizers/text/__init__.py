"""Text tokenizers: SentencePiece ``.model`` files and Hugging Face ``tokenizer.json`` files behind one interface.

What they promise beyond their libraries:

* no text yields the id of a control symbol, an added token or a marker, whatever it contains (``</s>`` in a page is text);
* a tokenizer whose ``lossless`` is True gives back every string exactly, lone surrogates, NUL and U+2581 included;
* encoding uses one thread, so that worker processes do not fight for cores.
"""

from tokkit.tokenizers.text.base import TextTokenizer
from tokkit.tokenizers.text.huggingface import HuggingFaceTokenizer
from tokkit.tokenizers.text.load import load_text_tokenizer, text_tokenizer_file
from tokkit.tokenizers.text.spm import SentencePieceTokenizer

__all__ = ["HuggingFaceTokenizer", "SentencePieceTokenizer", "TextTokenizer", "load_text_tokenizer", "text_tokenizer_file"]

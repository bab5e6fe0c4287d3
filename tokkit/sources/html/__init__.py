"""Web pages: from the bytes of a page to text and pictures in reading order.

* :mod:`~tokkit.sources.html.charset`: bytes to text, by what the page declares and what its bytes are.
* :mod:`~tokkit.sources.html.dom`: the parsed page (resiliparse, extra ``[warc]``) as a small tree of elements and strings.
* :mod:`~tokkit.sources.html.boilerplate`: what of it is not content.
* :mod:`~tokkit.sources.html.pictures`: which picture an element shows.
* :mod:`~tokkit.sources.html.flow`: whitespace, paragraphs, lists and tables as plain text.
* :mod:`~tokkit.sources.html.walk`: one pass over what is left.
"""

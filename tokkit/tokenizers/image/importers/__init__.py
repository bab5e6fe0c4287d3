"""Image tokenizers that others released, read from their own files so that they give the codes that they always gave.

``container`` opens a file without running what is in it, ``layout`` tells whose names it uses and renames them, ``derive``
reads the configuration off names and shapes, ``crosscheck`` holds it against the configuration file beside it, ``load`` does
all four.
"""

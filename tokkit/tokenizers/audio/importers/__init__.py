"""EnCodec models that others released, read from their own files so that they give the codes that they always gave.

``layout`` tells whose names a file uses and renames them, ``fuse`` puts weight norm's two parts together, ``derive`` reads the
network off names and shapes, ``describe`` reads what a configuration says and holds one against the other, ``load`` does all
four. Files are opened by :mod:`tokkit.tokenizers.image.importers.container`, which runs nothing that is in them.
"""

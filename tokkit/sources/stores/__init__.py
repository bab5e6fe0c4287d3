"""Picture stores: where pictures are that documents name and do not hold, and that do not lie beside the corpus.

* :mod:`~tokkit.sources.stores.kinds`: what people name, and what kind of store it is.
* :mod:`~tokkit.sources.stores.names`: keys of URLs and names.
* :mod:`~tokkit.sources.stores.listing`: what is in a store.
* :mod:`~tokkit.sources.stores.index`: where each picture is, on disk, mapped.
* :mod:`~tokkit.sources.stores.reading`: a picture's bytes.
* :mod:`~tokkit.sources.stores.lookup`: asking them all, in order.

Nothing is downloaded. Names and URLs come from untrusted rows: a name that leads out of a store is never looked up.
"""

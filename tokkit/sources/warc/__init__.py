"""Web archives: WARC and ARC files, and the WET files of Common Crawl; what they hold as documents.

* :mod:`~tokkit.sources.warc.records`: one record's header, in either format.
* :mod:`~tokkit.sources.warc.views`: bytes of an archive by offset, whether it is compressed or not.
* :mod:`~tokkit.sources.warc.members`: archives whose records are gzip members of their own: reading, cutting, finding on.
* :mod:`~tokkit.sources.warc.walk`: from record to record, saying exactly where one is damaged.
* :mod:`~tokkit.sources.warc.http`: HTTP messages: header, chunks, content encodings, within bounds.
* :mod:`~tokkit.sources.warc.kinds`: which records are documents, by their headers alone.
* :mod:`~tokkit.sources.warc.pictures`: the pictures of an archive by URL, revisits and redirections followed.
* :mod:`~tokkit.sources.warc.pages`: a record as a document.
* :mod:`~tokkit.sources.warc.census`: counting records apart from all of this.
* :mod:`~tokkit.sources.warc.source`: the source: units, reading, census.
"""

"""Parts of the sample corpus, all made from a seed; :mod:`tokkit.pipelines.sample_corpus` writes it."""

"""Document lengths -> packing plan -> rows of exactly seq_len tokens; no document is read to make a plan."""

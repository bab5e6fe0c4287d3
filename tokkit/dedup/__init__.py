"""Finding what a corpus says twice, in bounded memory: by content, by text, by bytes, by looks."""

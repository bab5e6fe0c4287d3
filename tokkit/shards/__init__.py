"""The on-disk formats of token shards: writing, reading and checking them."""

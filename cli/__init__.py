"""The `tokkit` command: one thin file a command."""

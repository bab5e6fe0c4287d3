"""Untrusted media bytes to pixels and samples, within bounds."""

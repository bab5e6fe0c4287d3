"""Torch datasets over what tokkit writes."""

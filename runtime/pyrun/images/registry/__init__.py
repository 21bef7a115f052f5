"""Registries: where they are, who may ask, and what they answer (OCI distribution spec)."""

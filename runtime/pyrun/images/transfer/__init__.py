"""Images between this store and registries."""

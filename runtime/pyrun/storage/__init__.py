"""Storage: the driver contract, the hooks by which drivers are found, the choice of one, the layer store."""

"""Images as files: docker-archive, OCI archives and layouts, tars of a root file system."""

"""Builds the images that quickstart, the tests and the benchmarks run, out of Debian packages.

Standard library only and no part of the engine: what pulls an image must not be what made it.
`bootstrap` turns packages into trees, `tree` turns the difference of two trees into a layer, `layout`
writes an OCI image-layout directory, `recipes` says what each image is, `push` sends it to a registry.
"""

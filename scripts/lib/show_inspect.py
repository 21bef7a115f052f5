"""Reads `pyrun inspect IMAGE CONTAINER` and prints what quickstart shows of it."""

from __future__ import annotations

import json
import sys

image, container = json.load(sys.stdin)
for digest in image["RepoDigests"]:
    print(f"digest:    {digest}")
for layer in image["RootFS"]["Layers"]:
    print(f"layer:     {layer}")
print(f"driver:    {container['Driver']}")
print(f"container: {container['Id'][:12]}, pid {container['State']['Pid']}, {container['State']['Status']}")

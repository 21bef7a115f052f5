"""The storage drivers that come with pyrun: plugins like anybody's, a file each, found by entry points."""

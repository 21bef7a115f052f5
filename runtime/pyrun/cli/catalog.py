"""Every command: where it lives, its one-line help, and the panel of ``pyrun --help`` it stands in.

The table spares ``pyrun --help`` and completion the import of any command. A test holds its help lines to
the commands' own.
"""

from __future__ import annotations

COMMON = "Common Commands"
MANAGEMENT = "Management Commands"
OTHER = "Commands"
PANELS = (COMMON, MANAGEMENT, OTHER)


class Entry:
    """A command: ``target`` is "module:function" within this package."""

    __slots__ = ("help", "panel", "target")

    def __init__(self, target: str, help: str, panel: str = OTHER) -> None:
        self.target = target
        self.help = help
        self.panel = panel


class GroupEntry:
    """A command that only has subcommands."""

    __slots__ = ("entries", "help", "panel")

    def __init__(self, help: str, entries: dict[str, Entry | GroupEntry], panel: str = MANAGEMENT) -> None:
        self.help = help
        self.entries = entries
        self.panel = panel


RUN = "Create a container from an image and run it"
PULL = "Download an image from a registry"
PUSH = "Upload an image to a registry"
IMAGES = "List images"
RMI = "Remove images"
SAVE = "Write images to an archive"
IMPORT = "Create an image from a root file system's tar archive"
LOAD = "Load images from an archive"
TAG = "Give an image another name"
SEARCH = "Search registries for images"
TAGS = "Show the tags that an image has in its registry"
UNTAG = "Take names off an image, all of them where none is given; the image stays"
HISTORY = "Show how an image was built"
COMMIT = "Make an image of a container's files and settings"
DIFF = (
    "Show which files a container, or the last layer of an image, has added (A), changed (C) or deleted (D)"
)
EXPORT = "Write the files of a container to a tar archive"
LAYERS = "Show what each layer of an image adds, hides and wastes"
WHICH = "Show which layer a file comes from"
PS = "List containers"
RM = "Remove containers"

CATALOG: dict[str, Entry | GroupEntry] = {
    "run": Entry("run:run", RUN, COMMON),
    "ps": Entry("ps:ps", PS, COMMON),
    "pull": Entry("pull:pull", PULL, COMMON),
    "push": Entry("push:push", PUSH, COMMON),
    "images": Entry("images:images", IMAGES, COMMON),
    "login": Entry("login:login", "Log in to a registry", COMMON),
    "logout": Entry("logout:logout", "Log out from a registry", COMMON),
    "search": Entry("search:search", SEARCH, COMMON),
    "version": Entry("version:version", "Show the versions of pyrun and what it runs on", COMMON),
    "info": Entry("info:info", "Show the store, the host and what pyrun can do on it", COMMON),
    "container": GroupEntry(
        "Manage containers",
        {
            "commit": Entry("commit:commit", COMMIT),
            "diff": Entry("diff:diff", DIFF),
            "export": Entry("export:export", EXPORT),
            "inspect": Entry("inspect:inspect_container", "Show all that is known of containers"),
            "ls": Entry("ps:ps", PS),
            "rm": Entry("rm:rm", RM),
            "run": Entry("run:run", RUN),
        },
    ),
    "image": GroupEntry(
        "Manage images",
        {
            "diff": Entry("diff:diff", DIFF),
            "history": Entry("history:history", HISTORY),
            "import": Entry("import_image:import_image", IMPORT),
            "inspect": Entry("inspect:inspect_image", "Show all that is known of images"),
            "layers": Entry("layers:layers", LAYERS),
            "load": Entry("load:load", LOAD),
            "ls": Entry("images:images", IMAGES),
            "prune": Entry("image_prune:prune", "Remove unused images, and the layers that only they need"),
            "pull": Entry("pull:pull", PULL),
            "push": Entry("push:push", PUSH),
            "rm": Entry("rmi:rmi", RMI),
            "save": Entry("save:save", SAVE),
            "search": Entry("search:search", SEARCH),
            "tag": Entry("tag:tag", TAG),
            "tags": Entry("tags:tags", TAGS),
            "untag": Entry("untag:untag", UNTAG),
        },
    ),
    "storage": GroupEntry(
        "Manage the store and its drivers",
        {
            "doctor": Entry(
                "storage:doctor", "Try every storage driver and say which work here, and why not"
            ),
            "bench": Entry("bench:bench", "Measure storage drivers, and compare their figures"),
            "compare": Entry(
                "compare:compare", "Run one command on two storage drivers and show what differs"
            ),
            "migrate": Entry("migrate:migrate", "Move the store to another storage driver"),
            "test": Entry(
                "storage_test:suite", "Run the conformance suite against an installed storage driver"
            ),
        },
    ),
    "system": GroupEntry(
        "Look after the store",
        {
            "check": Entry("system:check", "Look for damage and leftovers in the store"),
            "df": Entry("system:df", "Show how much disk space the store takes"),
            "prune": Entry(
                "system:prune", "Remove stopped containers, unused images and layers, and leftovers"
            ),
        },
    ),
    "completion": Entry("completion:completion", "Print the completion script for a shell"),
    "commit": Entry("commit:commit", COMMIT),
    "diff": Entry("diff:diff", DIFF),
    "export": Entry("export:export", EXPORT),
    "history": Entry("history:history", HISTORY),
    "import": Entry("import_image:import_image", IMPORT),
    "inspect": Entry("inspect:inspect", "Show all that is known of images and containers"),
    "layers": Entry("layers:layers", LAYERS),
    "load": Entry("load:load", LOAD),
    "plugins": Entry("plugins:plugins", "List plugins with their versions and hooks"),
    "rm": Entry("rm:rm", RM),
    "rmi": Entry("rmi:rmi", RMI),
    "save": Entry("save:save", SAVE),
    "tag": Entry("tag:tag", TAG),
    "tags": Entry("tags:tags", TAGS),
    "untag": Entry("untag:untag", UNTAG),
    "which": Entry("which:which", WHICH),
}

# Called by the completion scripts; in no listing.
HIDDEN: dict[str, Entry] = {
    "__complete": Entry("complete:complete", "Print what could come next on a command line")
}

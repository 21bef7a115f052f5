"""Making a container on disk: everything that is written before its first process exists. On the path of `run`.

All of it lies in a staging directory, which belongs to nobody once this process is dead, until the rename in
`Containers.commit` turns it into a container.
"""

from __future__ import annotations

import os
import time

from ..errors import Conflict, ContainerError, PyrunError, Unsupported, UsageError
from ..storage import failpoints
from ..storage.events import StorageEvent
from . import claims, volumes
from . import spec as specs
from .store import Containers, new_id, remove_container_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ..storage.contract import Layer
    from ..storage.locks import Stage
    from ..storage.store import Store
    from .options import ContainerOptions
    from .volumes import Volume

_HOSTS = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


class Made:
    """A container that exists on disk, locked by this process and not started yet."""

    __slots__ = ("config", "directory", "id", "spec", "stage", "store", "userns")

    def __init__(
        self, store: Store, stage: Stage, config: dict[str, Any], spec: dict[str, Any], userns: bool
    ) -> None:
        self.store = store
        self.stage = stage
        self.config = config
        self.id: str = config["id"]
        self.spec = spec
        self.userns = userns
        self.directory = ""


def _network(options: ContainerOptions) -> str:
    network = options.network or "none"
    if network not in ("none", "host"):
        raise Unsupported(
            f"--network {network} is not supported", hint="Supported: none (the default), host."
        )
    return network


def wants_userns(options: ContainerOptions, default: str) -> bool:
    """Whether the container gets a user namespace of its own: --userns, else the configuration's default."""
    mode = options.userns or default or "auto"
    if mode not in ("auto", "host"):
        raise UsageError(f"--userns {mode} is not supported", hint="Supported: auto (the default), host.")
    return mode == "auto"


def check_hostname(name: str) -> str:
    """``name`` if hostname(7) allows it."""

    def is_label(text: str) -> bool:
        return text.isascii() and text.replace("-", "").isalnum() and text.strip("-") == text

    if len(name) <= 64 and all(map(is_label, name.split("."))):
        return name
    raise UsageError(
        f"invalid host name {name!r}", hint="Letters, digits and '-' between dots, at most 64 in all."
    )


def check(
    store: Store, options: ContainerOptions, userns_default: str, size: int | None = None
) -> dict[str, str]:
    """Refuse what makes no sense whatever the image is, before anything is pulled; the caller's environment
    variables, which `create` takes. Raises `UsageError` or `Unsupported`."""
    from . import names

    _network(options)
    if wants_userns(options, userns_default) and not store.env.userns and not store.driver.verdict.caps.idmap:
        raise Unsupported(
            f"the storage driver {store.driver.name} can't show its layers through a user namespace here "
            f"({store.driver.verdict.why})",
            hint='Run with --userns=host, or set userns = "host" under [run] in the configuration.',
        )
    if size is not None and not store.driver.verdict.caps.quota:
        store.look_again()
    if size is not None and not store.driver.verdict.caps.quota:
        raise Unsupported(
            f"the storage driver {store.driver.name} can't limit the size of a container here "
            f"({store.driver.verdict.why})",
            hint="Leave out --storage-opt size=, or use a driver with quotas (btrfs, where quotas are enabled).",
        )
    if options.name is not None:
        names.check(options.name)
    if options.hostname:
        check_hostname(options.hostname)
    taken = {volume.destination for volume in volumes.collect({}, options)}
    for text in options.tmpfs:
        destination = specs.tmpfs_mount(text)["destination"]
        if destination in taken:
            raise UsageError(f"two options mount at {destination}", hint="Drop one of them.")
        taken.add(destination)
    return specs.given_environment(options)


def create(
    store: Store,
    containers: Containers,
    image: dict[str, Any],
    layers: Sequence[Layer],
    arguments: Sequence[str],
    options: ContainerOptions,
    *,
    env: dict[str, str],
    userns_default: str,
    size: int | None = None,
) -> Made:
    """Make the container on disk. ``image`` has reference, id and config; ``env`` is what `check` returned;
    ``size`` limits what it may write, in bytes.

    Raises before anything is written where the options and the image make no sense
    together; afterwards whatever fails leaves nothing behind.
    """
    id = new_id()
    config = image["config"]
    network = _network(options)
    userns = wants_userns(options, userns_default)
    if options.hostname:
        hostname = check_hostname(options.hostname)
    else:
        hostname = os.uname().nodename if network == "host" else id[:12]
    argv = specs.command(config, arguments, options)
    entrypoint = specs.entrypoint(config, options)
    variables = specs.environment(config, env, hostname, tty=options.tty)
    cwd = options.workdir or config.get("WorkingDir") or "/"
    if not cwd.startswith("/") or "\0" in cwd:
        raise UsageError(
            f"the working directory {cwd!r} is not an absolute path", hint="For example -w /data."
        )
    cwd = os.path.normpath(cwd)
    user = config.get("User") or "" if options.user is None else options.user
    found = volumes.collect(config, options)
    tmpfs = [specs.tmpfs_mount(text) for text in options.tmpfs]

    stage = store.staging.new(store.driver.name)
    failpoints.reach("prepare.staged")
    try:
        name = _claim_name(containers, options.name, id, stage, store.remove)
    except BaseException:
        store.remove(stage.path, store.driver.name)
        stage.close()
        raise
    try:
        began = time.monotonic()
        os.mkdir(f"{stage.path}/rw", 0o700)
        store.driver.prepare(layers, f"{stage.path}/rw", size)
        failpoints.reach("prepare.made")
        store.emit(StorageEvent("prepared", store.driver.name, id, time.monotonic() - began))
        _seed_volumes(store, layers, found, stage.path)
        _write_etc(stage.path, hostname, network)
        directory = f"{containers.directory}/{id}"
        idmap = userns and not store.env.userns
        spec = specs.build(
            argv=argv,
            env=variables,
            cwd=cwd,
            hostname=hostname,
            network=network,
            tty=options.tty,
            readonly=options.read_only,
            mounts=_mounts(found, tmpfs, directory, idmap=idmap),
            userns=userns,
            rootless=store.env.userns,
        )
        record = {
            "id": id,
            "name": os.path.basename(name.path),
            "created": time.time(),
            "image": image["given"],
            "image_id": image["id"],
            "driver": store.driver.name,
            "layers": [layer.id for layer in layers],
            "command": argv,
            "options": {
                "tty": options.tty,
                "interactive": options.interactive,
                "rm": options.rm,
                "network": network,
                "userns": "auto" if userns else "host",
                "user": user,
                "workdir": cwd,
                "env": variables,
                "hostname": hostname,
                "read_only": options.read_only,
                "size": size,
                "mounts": [
                    {"source": v.source, "destination": v.destination, "readonly": v.readonly} for v in found
                ],
                "tmpfs": options.tmpfs,
                "exposed_ports": sorted(config.get("ExposedPorts") or {}),
                "entrypoint": entrypoint,
            },
        }
        made = Made(store, stage, record, spec, userns)
        made.directory = containers.commit(stage, record, durable=not options.rm)
        failpoints.reach("prepare.placed")
        name.keep()
        return made
    except BaseException as error:
        try:
            remove_container_tree(stage.path, store.driver.name, store.remove)
        except (OSError, PyrunError):
            pass  # the next command sweeps it; what failed first is what the user must read
        stage.close()
        if isinstance(error, OSError):
            raise ContainerError(f"can't make the container in {store.root}: {error.strerror}") from error
        raise
    finally:
        name.close()


def _claim_name(
    containers: Containers, wanted: str | None, id: str, stage: Stage, remove: Callable[[str, str], None]
) -> claims.Name:
    """Claim the wanted name, or a random one. What is claimed stands in the stage first, so that whoever
    clears up after a dead process can give it back."""
    from ..storage import records
    from . import names

    def claim(name: str) -> claims.Name | None:
        records.write(f"{stage.path}/claim.json", {"name": name, "id": id}, durable=False)
        return claims.claim(containers.root, name, id)

    if wanted is not None:
        claimed = claim(names.check(wanted))
        if claimed is None:
            # A --rm container of that name may have been left by a pyrun that was killed as it made it.
            containers.recover(containers.abandoned(), remove)
            claimed = claim(wanted)
        if claimed is None:
            raise Conflict(
                f"the container name {wanted!r} is in use",
                hint=f"Remove that container (pyrun rm {wanted}), or choose another name.",
            )
        return claimed
    for attempt in range(64):
        name = names.generate()
        claimed = claim(name if attempt < 16 else f"{name}{attempt}")
        if claimed is not None:
            return claimed
    raise ContainerError("can't find a free random name", hint="Give one with --name.")


def _seed_volumes(store: Store, layers: Sequence[Layer], found: list[Volume], directory: str) -> None:
    anonymous = [volume for volume in found if not volume.source]
    if not anonymous:
        return
    os.mkdir(f"{directory}/volumes", 0o700)
    mount = store.driver.mount(layers, None)
    try:
        view = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
        try:
            for number, volume in enumerate(anonymous):
                os.mkdir(f"{directory}/volumes/{number}")
                os.chmod(f"{directory}/volumes/{number}", 0o755)  # whatever the caller's umask
                volumes.seed(view, volume.destination, f"{directory}/volumes/{number}")
        finally:
            os.close(view)
    finally:
        os.close(mount)


def _write_etc(directory: str, hostname: str, network: str) -> None:
    """hosts, hostname and resolv.conf of the container, which the engine writes and not the image."""
    os.mkdir(f"{directory}/etc", 0o700)
    hosts = _HOSTS
    if network == "host":
        hosts = _host_file("/etc/hosts") or hosts
    content = {"hosts": hosts, "hostname": f"{hostname}\n", "resolv.conf": _host_file("/etc/resolv.conf")}
    for name, text in content.items():
        with open(f"{directory}/etc/{name}", "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        os.chmod(f"{directory}/etc/{name}", 0o644)


def _host_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(1 << 20)
    except OSError:
        return ""


def _mounts(
    found: list[Volume], tmpfs: list[dict[str, Any]], directory: str, *, idmap: bool
) -> list[dict[str, Any]]:
    """The mounts beside the system's own: parents before children, the caller's in place of the engine's."""
    mounts = {
        f"/etc/{name}": specs.bind_mount(f"{directory}/etc/{name}", f"/etc/{name}", idmap=idmap)
        for name in ("hosts", "hostname", "resolv.conf")
    }
    number = 0
    for volume in found:
        source = volume.source
        if not source:
            source = f"{directory}/volumes/{number}"
            number += 1
        mounts[volume.destination] = specs.bind_mount(
            source, volume.destination, readonly=volume.readonly, idmap=idmap, nodev=not volume.source
        )
    for entry in tmpfs:
        mounts[entry["destination"]] = entry
    return sorted(mounts.values(), key=lambda entry: entry["destination"].count("/"))

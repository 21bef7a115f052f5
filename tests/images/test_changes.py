"""``--change``: what each instruction makes of an image's settings, held against the Dockerfile reference."""

from __future__ import annotations

from typing import Any

import pytest

from pyrun.errors import UsageError
from pyrun.images.making.changes import changed

BASE: dict[str, Any] = {
    "Env": ["PATH=/bin", "HOME=/root"],
    "Cmd": ["old"],
    "WorkingDir": "/srv",
    "Labels": {"a": "1"},
}


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ('CMD ["redis-server", "--port", "1"]', "Cmd", ["redis-server", "--port", "1"]),
        ("CMD echo $HOME", "Cmd", ["/bin/sh", "-c", "echo $HOME"]),
        ("cmd []", "Cmd", []),
        ("CMD=/bin/bash", "Cmd", ["/bin/sh", "-c", "/bin/bash"]),
        ("CMD ['sh']", "Cmd", ["/bin/sh", "-c", "['sh']"]),
        ('ENTRYPOINT ["/init"]', "Entrypoint", ["/init"]),
        ("ENV A=1 B='x y' C=\"$HOME/d\"", "Env", ["PATH=/bin", "HOME=/root", "A=1", "B=x y", "C=/root/d"]),
        ("ENV PATH=/usr/bin:$PATH", "Env", ["PATH=/usr/bin:/bin", "HOME=/root"]),
        ("ENV GREETING good  morning", "Env", ["PATH=/bin", "HOME=/root", "GREETING=good  morning"]),
        ("ENV A=one\\ two", "Env", ["PATH=/bin", "HOME=/root", "A=one two"]),
        ("ENV A='$HOME' B=\\$HOME", "Env", ["PATH=/bin", "HOME=/root", "A=$HOME", "B=$HOME"]),
        ("ENV A=${X:-d} B=${HOME:+set} C=${X}", "Env", ["PATH=/bin", "HOME=/root", "A=d", "B=set", "C="]),
        ("ENV=A=1", "Env", ["PATH=/bin", "HOME=/root", "A=1"]),
        ('LABEL b="x y" a=2', "Labels", {"a": "2", "b": "x y"}),
        ("LABEL b some words", "Labels", {"a": "1", "b": "some words"}),
        ("EXPOSE 80 53/udp", "ExposedPorts", {"80/tcp": {}, "53/udp": {}}),
        ("EXPOSE 8000-8002/TCP", "ExposedPorts", {"8000/tcp": {}, "8001/tcp": {}, "8002/tcp": {}}),
        ('VOLUME ["/data", "/var/x y"]', "Volumes", {"/data": {}, "/var/x y": {}}),
        ("VOLUME /a /b", "Volumes", {"/a": {}, "/b": {}}),
        ("USER 1000:1000", "User", "1000:1000"),
        ("WORKDIR app/../lib", "WorkingDir", "/srv/lib"),
        ("WORKDIR /x//y/", "WorkingDir", "/x/y"),
        ("WORKDIR $HOME", "WorkingDir", "/root"),
        ("STOPSIGNAL SIGQUIT", "StopSignal", "SIGQUIT"),
        ("STOPSIGNAL 9", "StopSignal", "9"),
        ("STOPSIGNAL RTMIN+3", "StopSignal", "RTMIN+3"),
        ("ONBUILD RUN make", "OnBuild", ["RUN make"]),
        ("HEALTHCHECK NONE", "Healthcheck", {"Test": ["NONE"]}),
        (
            "HEALTHCHECK --interval=1m30s --retries=2 CMD curl -f http://localhost",
            "Healthcheck",
            {"Interval": 90_000_000_000, "Retries": 2, "Test": ["CMD-SHELL", "curl -f http://localhost"]},
        ),
    ],
)
def test_an_instruction_changes_its_setting(change: str, key: str, value: Any) -> None:
    assert changed(BASE, [change])[key] == value


@pytest.mark.parametrize(
    "change",
    [
        "",
        "RUN make",
        "FROM scratch",
        "CMD",
        "ENV",
        "ENV A",
        "ENV A=1 B",
        "ENV =1",
        "ENV A='x",
        "ENV A=${",
        "ENV A=${}",
        "ENV A=${X!y}",
        "ENV A=${X:?needed}",
        "LABEL x",
        "EXPOSE 0",
        "EXPOSE 70000",
        "EXPOSE 80/icmp",
        "EXPOSE 9-8",
        "EXPOSE http",
        "STOPSIGNAL SIGNONE",
        "STOPSIGNAL 65",
        "ONBUILD ONBUILD RUN x",
        "ONBUILD FROM x",
        "HEALTHCHECK",
        "HEALTHCHECK CMD",
        "HEALTHCHECK --interval=1 CMD x",
        "HEALTHCHECK --nope=1 CMD x",
        'VOLUME [""]',
        "123",
        "USER $NOBODY",
    ],
)
def test_what_is_no_such_instruction_is_refused_in_words(change: str) -> None:
    with pytest.raises(UsageError, match="--change") as caught:
        changed(BASE, [change])
    assert caught.value.hint


def test_an_entrypoint_drops_the_command_of_before_unless_one_comes_with_it() -> None:
    assert "Cmd" not in changed(BASE, ['ENTRYPOINT ["/init"]'])
    assert changed(BASE, ['CMD ["x"]', 'ENTRYPOINT ["/init"]'])["Cmd"] == ["x"]
    assert changed(BASE, ['ENTRYPOINT ["/init"]', 'CMD ["x"]'])["Cmd"] == ["x"]


def test_changes_apply_in_order_and_a_change_may_have_several_lines() -> None:
    done = changed(BASE, ["ENV A=1\n# a comment\nENV B=$A\\\n C=3", "WORKDIR a", "WORKDIR b"])
    assert done["Env"] == ["PATH=/bin", "HOME=/root", "A=1", "B=1", "C=3"]
    assert done["WorkingDir"] == "/srv/a/b"


def test_the_settings_given_stay_as_they_are() -> None:
    before = {**BASE, "Env": list(BASE["Env"])}
    changed(before, ["ENV X=1", "LABEL y=2", "CMD z"])
    assert before == BASE

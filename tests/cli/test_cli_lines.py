"""The lines of images, ps, history, doctor and info, made from plain records."""

import json
import time

import pytest

from pyrun.cli import history, info, storage
from pyrun.cli.body import images, ps
from pyrun.cli.names import matches
from pyrun.cli.output import document, rows
from pyrun.containers.record import Container
from pyrun.images.record import HistoryEntry, Image, ImageLayer
from pyrun.images.reference import Reference
from pyrun.storage.contract import DriverReport

NOW = 1704164645.0  # 2024-01-02T03:04:05Z
HEX = "0123456789abcdef" * 4


def image(reference="docker.io/library/redis:7", **changes):
    fields = {
        "reference": reference,
        "digest": "sha256:" + HEX[::-1],
        "manifest": "sha256:" + HEX,
        "id": "sha256:" + HEX,
        "platform": "linux/amd64",
        "created": "2024-01-01T03:04:05Z",
        "config": {},
        "layers": [ImageLayer("sha256:" + HEX, "sha256:" + HEX, 40, 109_000_000, "")],
    }
    return Image(**{**fields, **changes})


def container(**changes):
    fields = {
        "id": HEX,
        "name": "happy_turing",
        "image": "redis",
        "image_id": "sha256:" + HEX,
        "layers": [],
        "driver": "overlay",
        "command": ["docker-entrypoint.sh", "redis-server"],
        "created": NOW - 7200,
        "started": NOW - 300,
        "finished": 0.0,
        "status": "running",
        "exit_code": 0,
        "error": "",
        "options": {"network": "host"},
        "pid": 1,
    }
    return Container(**{**fields, **changes})


def show(capsys, records, module, columns=None, layout=""):
    rows(records, module.HEADERS, columns or module.COLUMNS, layout)
    return capsys.readouterr().out


def test_images_are_listed_as_docker_lists_them(capsys):
    records = [images.record(image(), NOW, truncate=True)]
    assert show(capsys, records, images) == (
        "REPOSITORY   TAG       IMAGE ID       CREATED        SIZE\n"
        "redis        7         0123456789ab   24 hours ago   109MB\n"
    )


@pytest.mark.parametrize(
    ("module", "header"),
    [
        (images, "REPOSITORY   TAG       IMAGE ID   CREATED   SIZE\n"),
        (ps, "CONTAINER ID   IMAGE     COMMAND   CREATED   STATUS    PORTS     NAMES\n"),
        (history, "IMAGE     CREATED   CREATED BY   SIZE      COMMENT\n"),
        (storage, "DRIVER    STATE     WHY       FIX\n"),
    ],
)
def test_the_header_is_there_even_when_nothing_is_listed(capsys, module, header):
    columns = getattr(module, "COLUMNS", None) or ("ID", "CreatedSince", "CreatedBy", "Size", "Comment")
    assert show(capsys, [], module, columns) == header


def test_digests_stand_between_tag_and_id(capsys):
    text = show(capsys, [images.record(image(), NOW, truncate=True)], images, images.WITH_DIGEST)
    assert text.splitlines()[0].split("  ")[0] == "REPOSITORY"
    assert [cell for cell in text.splitlines()[1].split() if cell][2] == "sha256:" + HEX[::-1]


def test_an_untruncated_id_keeps_its_algorithm():
    assert images.record(image(), NOW, truncate=False)["ID"] == "sha256:" + HEX


def test_an_image_kept_by_digest_has_no_tag():
    record = images.record(image(f"ghcr.io/owner/app@sha256:{HEX}", created=""), NOW, truncate=True)
    assert (record["Repository"], record["Tag"], record["CreatedSince"]) == (
        "ghcr.io/owner/app",
        "<none>",
        "N/A",
    )


@pytest.mark.parametrize(
    ("wanted", "listed"),
    [
        ("redis", True),
        ("redis:7", True),
        ("docker.io/library/redis", True),
        ("redis:8", False),
        ("redi", False),
        ("redis@sha256:" + HEX[::-1], True),
        ("redis@sha256:" + HEX, False),
    ],
)
def test_a_name_limits_the_list_of_images(wanted, listed):
    assert matches(image(), Reference.parse(wanted)) is listed


def test_containers_are_listed_as_docker_lists_them(capsys):
    records = [ps.record(container(), NOW, truncate=True)]
    assert show(capsys, records, ps) == (
        "CONTAINER ID   IMAGE     COMMAND                  CREATED       STATUS         PORTS     NAMES\n"
        '0123456789ab   redis     "docker-entrypoint.s…"   2 hours ago   Up 5 minutes             happy'
        "_turing\n"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "created", "started": 0.0}, "Created"),
        ({"started": NOW - 0.5}, "Up Less than a second"),
        ({"started": NOW - 90}, "Up About a minute"),
        ({"status": "exited", "exit_code": 0, "finished": NOW - 3}, "Exited (0) 3 seconds ago"),
        ({"status": "exited", "exit_code": 137, "finished": NOW - 86400 * 3}, "Exited (137) 3 days ago"),
    ],
)
def test_a_status_is_in_dockers_words(changes, words):
    assert ps.status(container(**changes), NOW) == words


def test_exposed_ports_are_shown_unpublished():
    record = ps.record(container(options={"exposed_ports": ["6379/tcp", "53/udp"]}), NOW, truncate=True)
    assert record["Ports"] == "6379/tcp, 53/udp"


def test_a_whole_command_is_shown_without_truncation():
    assert ps.record(container(), NOW, truncate=False)["Command"] == '"docker-entrypoint.sh redis-server"'


def test_json_is_an_object_a_line_with_template_names(capsys):
    records = [ps.record(container(name=name), NOW, truncate=True) for name in ("one", "two")]
    lines = show(capsys, records, ps, layout="json").splitlines()
    assert [json.loads(line)["Names"] for line in lines] == ["one", "two"]
    assert json.loads(lines[0]).keys() == ps.HEADERS.keys()
    assert json.loads(lines[0])["RunningFor"] == "2 hours ago"


def test_every_record_has_every_field_with_a_header():
    assert images.record(image(), NOW, truncate=True).keys() == images.HEADERS.keys()
    assert ps.record(container(), NOW, truncate=True).keys() == ps.HEADERS.keys()
    entry = HistoryEntry("", "", "", 0, "")
    assert history.record(entry, NOW, truncate=True, human=True).keys() == history.HEADERS.keys()
    assert storage.record(DriverReport("a", "no", "b")).keys() == storage.HEADERS.keys()


def test_a_table_template_gets_headers(capsys):
    records = [ps.record(container(), NOW, truncate=True)]
    text = show(capsys, records, ps, layout="table {{.ID}}\\t{{.Names}}")
    assert text == "CONTAINER ID   NAMES\n0123456789ab   happy_turing\n"


def test_a_plain_template_prints_a_line_a_record(capsys):
    records = [ps.record(container(name=name), NOW, truncate=True) for name in ("one", "two")]
    assert show(capsys, records, ps, layout="{{.Names}}: {{.State}}") == "one: running\ntwo: running\n"


def test_a_hostile_name_can_not_break_out_of_a_table(capsys):
    records = [ps.record(container(name="a\x1b[2J\n\tb", image="\x9b1m"), NOW, truncate=True)]
    for layout in ("", "table {{.Image}}\t{{.Names}}"):
        text = show(capsys, records, ps, layout=layout)
        assert len(text.splitlines()) == 2
        assert "a\\x1b[2J\\n\\tb" in text
        assert text.replace("\n", "").isprintable()


def test_history_cuts_created_by_and_marks_missing_ids(capsys):
    entries = [
        HistoryEntry("sha256:" + HEX, "2024-01-01T03:04:05Z", "CMD " + "x" * 60, 0, ""),
        HistoryEntry("", "", "ADD rootfs.tar / # buildkit", 109_000_000, "from a tar"),
    ]
    records = [history.record(entry, NOW, truncate=True, human=True) for entry in entries]
    assert [record["ID"] for record in records] == ["0123456789ab", "<missing>"]
    assert records[0]["CreatedBy"] == "CMD " + "x" * 40 + "…"
    assert [record["Size"] for record in records] == ["0B", "109MB"]
    assert records[1]["CreatedSince"] == "N/A"


@pytest.fixture
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("utc")
def test_exact_history_has_raw_bytes_and_rfc_3339():
    entry = HistoryEntry("", "2024-01-01T03:04:05Z", "x" * 60, 1234, "")
    record = history.record(entry, NOW, truncate=False, human=False)
    assert (record["Size"], record["CreatedBy"]) == ("1234", "x" * 60)
    assert record["CreatedAt"] == "2024-01-01T03:04:05Z"


def test_a_document_prints_by_template_or_as_json(capsys):
    value = {"Config": {"Env": ["A=b"]}}
    assert document(value, "") is False
    assert document(value, "{{index .Config.Env 0}}") is True
    assert document(value, "json") is True
    assert capsys.readouterr().out == 'A=b\n{"Config":{"Env":["A=b"]}}\n'


def test_info_is_printed_as_indented_lines():
    found = {
        "Driver": "overlay",
        "Rootless": False,
        "Kernel": {"Release": "6.1", "Extra": None},
        "Plugins": ["overlay", "acme"],
        "Drivers": [{"Name": "overlay", "State": "selected"}, {"Name": "a\x1bb", "State": "broken"}],
    }
    assert info.lines(found) == [
        "Driver: overlay",
        "Rootless: false",
        "Kernel:",
        " Release: 6.1",
        " Extra:",
        "Plugins: overlay acme",
        "Drivers:",
        " - Name: overlay",
        "   State: selected",
        " - Name: a\\x1bb",
        "   State: broken",
    ]

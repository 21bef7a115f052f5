"""A pull as it is drawn: on a pipe, and on a real terminal."""

import io
import os
import pty
import re
import struct
import termios
import threading
from fcntl import ioctl

import pytest

from pyrun.cli.progress import PullDisplay, bar
from pyrun.images.record import Progress

PULL = [
    Progress("latest", "Pulling from library/redis"),
    Progress("aaaaaaaaaaaa", "Pulling fs layer"),
    Progress("bbbbbbbbbbbb", "Already exists"),
    *[Progress("aaaaaaaaaaaa", "Downloading", done, 1000) for done in range(0, 1001, 10)],
    Progress("aaaaaaaaaaaa", "Download complete"),
    Progress("aaaaaaaaaaaa", "Extracting", 500, 1000),
    Progress("aaaaaaaaaaaa", "Pull complete"),
    Progress("", "Status: a plain line"),
]


class Terminal:
    """A pseudo-terminal whose screen, after what was written, can be read line by line."""

    def __init__(self, columns=100, rows=30):
        self.master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.stream = os.fdopen(slave, "w")
        self.bytes = b""

    def screen(self):
        """Plays back the few sequences the display uses; any other escape is left in the text."""
        self.stream.flush()
        self.stream.close()
        while True:
            try:
                chunk = os.read(self.master, 65536)
            except OSError:
                break
            if not chunk:
                break
            self.bytes += chunk
        os.close(self.master)
        lines, row = [""], 0
        for piece in re.findall(r"\x1b\[\d+[AB]|\x1b\[2K|\r|\n|[^\r\n\x1b]+|\x1b", self.bytes.decode()):
            if piece.endswith("A") and piece[0] == "\x1b":
                row -= int(piece[2:-1])
            elif piece.endswith("B") and piece[0] == "\x1b":
                row += int(piece[2:-1])
            elif piece == "\x1b[2K":
                lines[row] = ""
            elif piece == "\n":
                row += 1
                lines.extend([""] * (row + 1 - len(lines)))
            elif piece != "\r":
                lines[row] += piece
        return lines


def test_a_pipe_gets_a_line_for_each_change_of_state():
    out = io.StringIO()
    display = PullDisplay(out)
    for step in PULL:
        display(step)
    assert out.getvalue().splitlines() == [
        "latest: Pulling from library/redis",
        "aaaaaaaaaaaa: Pulling fs layer",
        "bbbbbbbbbbbb: Already exists",
        "aaaaaaaaaaaa: Downloading",
        "aaaaaaaaaaaa: Download complete",
        "aaaaaaaaaaaa: Extracting",
        "aaaaaaaaaaaa: Pull complete",
        "Status: a plain line",
    ]


def test_a_terminal_keeps_a_line_a_layer():
    terminal = Terminal()
    display = PullDisplay(terminal.stream)
    for step in PULL:
        display(step)
    assert terminal.screen() == [
        "latest: Pulling from library/redis",
        "aaaaaaaaaaaa: Pull complete",
        "bbbbbbbbbbbb: Already exists",
        "Status: a plain line",
        "",
    ]


def test_a_layer_being_downloaded_shows_a_bar():
    terminal = Terminal()
    display = PullDisplay(terminal.stream)
    display(Progress("aaaaaaaaaaaa", "Downloading", 15_440_000, 29_120_000))
    line = terminal.screen()[0]
    assert re.fullmatch(r"aaaaaaaaaaaa: Downloading \[=+> +\]  15\.44MB/29\.12MB", line)


def test_no_line_is_wider_than_the_terminal():
    terminal = Terminal(columns=40)
    display = PullDisplay(terminal.stream)
    display(Progress("aaaaaaaaaaaa", "Downloading", 15_440_000, 29_120_000))
    assert len(terminal.screen()[0]) < 40


def test_a_layer_scrolled_out_of_sight_is_left_alone():
    terminal = Terminal(rows=5)
    display = PullDisplay(terminal.stream)
    for layer in range(10):
        display(Progress(f"layer{layer}", "Waiting"))
    for layer in range(10):
        display(Progress(f"layer{layer}", "Pull complete"))
    lines = terminal.screen()
    assert lines[0] == "layer0: Waiting"
    assert lines[9] == "layer9: Pull complete"


def test_control_bytes_of_a_registry_never_reach_the_terminal():
    terminal = Terminal()
    PullDisplay(terminal.stream)(Progress("\x1b[2J", "\x1b]0;x\x07\nmore"))
    terminal.screen()
    assert b"\x1b" not in terminal.bytes
    assert b"\\x1b[2J: \\x1b]0;x\\x07\\nmore" in terminal.bytes


def test_layers_may_report_from_several_threads():
    out = io.StringIO()
    display = PullDisplay(out)

    def report(name):
        for number in range(200):
            display(Progress(name, f"state {number}"))

    threads = [threading.Thread(target=report, args=(f"layer{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = out.getvalue().splitlines()
    assert len(lines) == 800
    assert all(re.fullmatch(r"layer\d: state \d+", line) for line in lines)


@pytest.mark.parametrize(
    ("current", "total", "room", "text"),
    [
        (0, 0, 80, ""),
        (1500, 0, 80, "  1.5kB"),
        (0, 100, 30, " [>                 ]  0B/100B"),
        (50, 100, 30, " [========>        ]  50B/100B"),
        (100, 100, 30, " [================]  100B/100B"),
        (200, 100, 30, " [================]  100B/100B"),
        (1, 2, 0, " [=====>    ]  1B/2B"),
    ],
)
def test_a_bar_fills_its_room(current, total, room, text):
    assert bar(current, total, room) == text


def test_a_bar_is_at_most_fifty_wide():
    assert bar(100, 100, 500).count("=") == 50
    assert bar(50, 100, 500).count("=") == 25

"""`run -it`: a real terminal, through a real pseudo-terminal."""

from __future__ import annotations

import subprocess
import termios

from support.pyrun import Pyrun, terminal

PROMPT = rb"# (\x1b\[6n)?"


def test_the_program_has_a_controlling_terminal_of_the_callers_size(pyrun: Pyrun) -> None:
    with terminal(pyrun, "run", "-it", "--rm", "busybox", "sh", size=(33, 99)) as window:
        window.read_until(PROMPT)
        window.send(b"tty; stty size; echo $TERM; test -c /dev/console && echo con''sole\n")
        seen = window.read_until(rb"console\r\n")
        assert b"/dev/pts/0" in seen
        assert b"33 99" in seen
        assert b"xterm" in seen
        window.send(b"exit 5\n")
        assert window.wait() == 5


def test_a_change_of_the_windows_size_reaches_the_program(pyrun: Pyrun) -> None:
    script = "trap 'echo resized: $(stty size); exit 3' WINCH; echo armed; while :; do sleep 0.05; done"
    with terminal(pyrun, "run", "-it", "--rm", "busybox", "sh", "-c", script) as window:
        window.read_until(rb"armed\r\n")
        window.resize(40, 120)
        window.read_until(rb"resized: 40 120")
        assert window.wait() == 3


def test_ctrl_c_interrupts_the_foreground_job_only(pyrun: Pyrun) -> None:
    with terminal(pyrun, "run", "-it", "--rm", "busybox", "sh") as window:
        window.read_until(PROMPT)
        window.send(b"echo g''o; sleep 100\n")
        window.read_until(rb"go\r\n")
        window.send_until(b"\x03", PROMPT)
        window.send(b"echo code=$?; exit\n")
        window.read_until(rb"code=130")
        assert window.wait() == 130 or window.status == 0


def test_job_control_works(pyrun: Pyrun) -> None:
    with terminal(pyrun, "run", "-it", "--rm", "busybox", "sh") as window:
        window.read_until(PROMPT)
        window.send(b"echo g''o; sleep 100\n")
        window.read_until(rb"go\r\n")
        window.send_until(b"\x1a", rb"Stopped")
        window.send(b"kill -9 %1; wait; jobs; echo do''ne\n")
        window.read_until(rb"done\r\n")
        window.send(b"exit 0\nexit 0\n")  # the first may only bring "You have stopped jobs"
        assert window.wait() == 0


def test_the_callers_terminal_is_raw_meanwhile_and_restored_at_the_end(pyrun: Pyrun) -> None:
    # A shell around pyrun keeps the terminal open after it has ended.
    inner = " ".join(f"'{word}'" for word in pyrun.argv("run", "-it", "--rm", "busybox", "sh"))
    from support.pyrun import Terminal

    window = Terminal(["/bin/sh", "-c", f"{inner}; echo ended; read line"], pyrun.env)
    try:
        before = window.attributes()
        window.read_until(PROMPT)
        assert not window.attributes()[3] & termios.ICANON
        window.send(b"exit\n")
        window.read_until(rb"ended")
        assert window.attributes() == before
        window.send(b"\n")
        assert window.wait() == 0
    finally:
        window.close()


def test_the_terminal_is_restored_when_the_container_is_killed(pyrun: Pyrun) -> None:
    inner = " ".join(
        f"'{w}'" for w in pyrun.argv("run", "-it", "--rm", "--name", "tty1", "busybox", "sleep", "100")
    )
    from support.pyrun import Terminal

    window = Terminal(["/bin/sh", "-c", f"{inner}; echo ended=$?; read line"], pyrun.env)
    try:
        before = window.attributes()
        pyrun.pid_of("tty1")
        pyrun.ok("rm", "-f", "tty1")
        window.read_until(rb"ended=137")
        assert window.attributes() == before
        window.send(b"\n")
        window.wait()
    finally:
        window.close()


def test_the_terminal_belongs_to_the_containers_user(pyrun: Pyrun) -> None:
    with terminal(
        pyrun, "run", "-it", "--rm", "-u", "1000", "busybox", "stat", "-c", "%u", "/dev/pts/0"
    ) as window:
        window.read_until(rb"1000\r\n")
        assert window.wait() == 0


def test_t_alone_gives_a_terminal_without_input(pyrun: Pyrun) -> None:
    done = pyrun("run", "--rm", "-t", "busybox", "tty", text=False)
    assert (done.returncode, done.stdout) == (0, b"/dev/pts/0\r\n")


def test_it_without_a_terminal_is_refused(pyrun: Pyrun) -> None:
    done = pyrun("run", "--rm", "-it", "busybox", "sh", stdin=subprocess.DEVNULL)
    assert done.returncode != 0
    assert "the input device is not a TTY" in done.stderr


def test_large_output_on_a_terminal_arrives_whole(pyrun: Pyrun) -> None:
    with terminal(pyrun, "run", "-it", "--rm", "busybox", "seq", "50000") as window:
        seen = window.read_until(rb"50000\r\n", 30)
        assert seen.split() == [str(n).encode() for n in range(1, 50001)]
        assert window.wait() == 0

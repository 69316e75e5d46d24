"""Code in fresh interpreters: with flags of their own, on a terminal, in several processes that talk."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 100.0
"""Seconds after which a process is given up."""


def environment(**variables: str) -> dict[str, str]:
    """This process's environment with some variables of the new one's own."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **variables}


def run_python(code: str, **variables: str) -> str:
    """What a program prints; it must end well and write nothing to the error stream."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def on_a_terminal(code: str) -> str:
    """What a program writes to an error stream that is a terminal."""
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment(), stderr=slave) as process:
        os.close(slave)
        written = b""
        while True:
            try:
                part = os.read(master, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            written += part
        assert process.wait(LIMIT) == 0, written
    os.close(master)
    return written.decode()


def start(module: str, *arguments: object, **variables: str) -> subprocess.Popen[str]:
    """A module as a program of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ends(process: subprocess.Popen[str]) -> str:
    """What a program printed, which must have ended well."""
    with process:
        try:
            out, err = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    assert process.returncode == 0, err
    return out


def free_port() -> int:
    """A port of the loopback device that nobody uses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

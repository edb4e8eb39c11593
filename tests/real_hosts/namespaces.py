"""Hosts with addresses of their own on one machine: network namespaces, joined by veth pairs over a bridge."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from queue import Empty, Queue
from typing import Any, Self

ROOT = Path(__file__).parents[2]


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def why_not() -> str | None:
    """Why hosts cannot be made here; None if they can."""
    if not shutil.which("ip"):
        return "there is no `ip` (iproute2)"
    name = f"pt{os.getpid()}probe"
    try:
        run("ip", "netns", "add", name)
        run("ip", "netns", "del", name)
    except OSError as error:
        return str(error)
    return None


class Network:
    """Some hosts, each with one interface `eth0`, that reach each other and nobody else.

    Attributes:
        names: of the hosts, as network namespaces.
        addresses: of the hosts.
    """

    def __init__(self, count: int, prefix: str = "10.77.0") -> None:
        self._name = f"pt{os.getpid()}n{next(_NUMBERS)}"
        self._switch = f"{self._name}sw"
        self.names = [f"{self._name}h{host}" for host in range(count)]
        self.addresses = [f"{prefix}.{host + 1}" for host in range(count)]
        self._programs: list[Program] = []

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self) -> None:
        run("ip", "netns", "add", self._switch)
        for bridge in ("br0", "br1"):
            run("ip", "-n", self._switch, "link", "add", bridge, "type", "bridge")
            run("ip", "-n", self._switch, "link", "set", bridge, "up")
        for host, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
            ends = ("eth0", "netns", name, "type", "veth", "peer", "name", f"port{host}", "netns", self._switch)
            run("ip", "link", "add", *ends)
            run("ip", "-n", self._switch, "link", "set", f"port{host}", "master", "br0", "up")
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")

    def __exit__(self, *_: object) -> None:
        for program in self._programs:
            program.end()
        for name in [*self.names, self._switch]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False, timeout=30)
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)

    def cut(self, host: int) -> None:
        """Nothing reaches this host any more, or leaves it; nobody is told."""
        run("ip", "-n", self._switch, "link", "set", f"port{host}", "down")

    def mend(self, host: int) -> None:
        run("ip", "-n", self._switch, "link", "set", f"port{host}", "up")

    def split(self, *hosts: int) -> None:
        """These reach each other, and so do the others; nobody is told."""
        for host in hosts:
            run("ip", "-n", self._switch, "link", "set", f"port{host}", "master", "br1")

    def heal(self, *hosts: int) -> None:
        for host in hosts:
            run("ip", "-n", self._switch, "link", "set", f"port{host}", "master", "br0")

    def slow(self, host: int, kilobits: int) -> None:
        """No more than so many kilobits a second leave this host: what every kernel can do (netem is not in all)."""
        limits = ("rate", f"{kilobits}kbit", "burst", "4kb", "latency", "10s")
        run("tc", "-n", self.names[host], "qdisc", "add", "dev", "eth0", "root", "tbf", *limits)

    def resolve(self, host: int, entries: dict[str, str]) -> None:
        """What this host's /etc/hosts says: name -> address."""
        folder = Path(f"/etc/netns/{self.names[host]}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in entries.items()))

    def listening(self, host: int) -> set[str]:
        """The addresses that programs on this host listen on, without ports."""
        lines = run("ip", "netns", "exec", self.names[host], "ss", "-Htln").splitlines()
        return {line.split()[3].rpartition(":")[0] for line in lines}

    def start(self, host: int, **arguments: Any) -> Program:
        """A rank on this host; see `rank.py` for the arguments."""
        program = Program(["ip", "netns", "exec", self.names[host]], arguments)
        self._programs.append(program)
        return program


class Program:
    """A rank under way, told what to do line by line."""

    def __init__(self, prefix: list[str], arguments: dict[str, Any]) -> None:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.real_hosts.rank", json.dumps(arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=kept,
        )  # fmt: skip
        self._lines: Queue[str | None] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def tell(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()

    def said(self, within: float = 60.0) -> dict[str, Any]:
        """The next thing it says."""
        try:
            line = self._lines.get(timeout=within)
        except Empty:
            raise TimeoutError(f"rank said nothing within {within:g} s") from None
        if line is None:
            raise EOFError(f"rank ended with {self._process.wait(10)}")
        return json.loads(line)

    def do(self, what: str, within: float = 60.0) -> dict[str, Any]:
        self.tell(what)
        return self.said(within)

    def end(self) -> None:
        self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _numbers():
    number = 0
    while True:
        yield number
        number += 1


_NUMBERS = _numbers()

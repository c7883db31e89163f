"""Virtual hosts: network namespaces on one bridge.

Needs root and ``ip`` (Debian's iproute2). A host shares the files of this machine and has a separate network.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack


def wait(condition: Callable[[], bool], timeout_s: float, name: str) -> None:
    """Wait for a condition; exit with its name after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"waited {timeout_s:g} s for {name}")
        time.sleep(0.2)


def namespace(host: str) -> str:
    """Return the name of a host's network namespace, for ``/run/netns``."""
    return f"host-{os.getpid()}-{host}"


def connect(ending: ExitStack, hosts: Sequence[str]) -> dict[str, str]:
    """Create a network namespace per host, and a bridge between them and this machine.

    Args:
        ending: Removes them when it closes.
        hosts: Names of the hosts.

    Returns:
        IP addresses by host. ``""`` is the address of this machine on the bridge.
    """

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def without(*words: str) -> None:
        subprocess.run(["ip", *words], check=False, capture_output=True)

    network = f"10.{os.getpid() // 200 % 200 + 20}.{os.getpid() % 200}"
    bridge = f"hb{os.getpid()}"
    ip("link", "add", bridge, "type", "bridge")
    ending.callback(without, "link", "del", bridge)
    ip("addr", "add", f"{network}.1/24", "dev", bridge)
    ip("link", "set", bridge, "up")
    for number, name in enumerate(hosts, start=2):
        inside, outside = f"hi{os.getpid()}{number}", f"ho{os.getpid()}{number}"
        ip("netns", "add", namespace(name))
        ending.callback(without, "netns", "del", namespace(name))
        ip("link", "add", outside, "type", "veth", "peer", "name", inside)
        ip("link", "set", outside, "master", bridge, "up")
        ip("link", "set", inside, "netns", namespace(name), "name", "eth0")
        ip("-n", namespace(name), "addr", "add", f"{network}.{number}/24", "dev", "eth0")
        ip("-n", namespace(name), "link", "set", "eth0", "up")
        ip("-n", namespace(name), "link", "set", "lo", "up")
    return {name: f"{network}.{number}" for number, name in enumerate(["", *hosts], start=1)}

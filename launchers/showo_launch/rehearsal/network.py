"""The wires of a rehearsal: one bridge, one link per host, each with a speed and a delay."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from showo_launch.rehearsal.namespaces import Namespaces

INTERFACE = "eth0"
_SUBNET = ipaddress.ip_network("10.77.0.0/16")  # nobody else is on this network
_BURST_BYTES = 65536  # the largest packet that passes a link at once; smaller bursts throttle it
_QUEUE = "100ms"  # what waits longer at a full link is dropped, as a switch does
# Not the machine's own choice: BBR takes what passes in a burst for the link's speed, and leaves a shaped
# link idle for up to half of a transfer. This one any kernel allows in a namespace.
_SETTINGS = "echo reno >/proc/sys/net/ipv4/tcp_congestion_control"


@dataclass(frozen=True)
class Link:
    """Speed and delay of a host's link, each way, in the units of ``tc``.

    Attributes:
        rate: as ``1gbit`` or ``200mbit``; None: as fast as the machine.
        delay: added to each packet, as ``200us`` or ``5ms``; None: none. Needs the kernel's netem.
    """

    rate: str | None = None
    delay: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Link":
        """Read ``rate=1gbit,delay=5ms``.

        Raises:
            ValueError: it says something else.
        """
        pairs = dict(part.partition("=")[::2] for part in text.split(","))
        if not pairs.keys() <= {"rate", "delay"} or not all(pairs.values()):
            raise ValueError(
                f"link {text!r}: rate=… and delay=… are allowed, as rate=1gbit,delay=5ms"
            )
        return cls(pairs.get("rate"), pairs.get("delay"))

    def shaping(self, interface: str) -> list[list[str]]:
        """The ``tc`` commands that give an interface this speed and delay on the way out."""
        start = ["tc", "qdisc", "add", "dev", interface]
        commands, place = [], ["root"]
        if self.delay:
            commands.append([*start, "root", "handle", "1:", "netem", "delay", self.delay])
            place = ["parent", "1:1"]
        if self.rate:
            bucket = ["tbf", "rate", self.rate, "burst", str(_BURST_BYTES), "latency", _QUEUE]
            commands.append([*start, *place, *bucket])
        return commands


def address_of(number: int) -> str:
    """The address of the host with this number, counted from 0."""
    return str(_SUBNET[number + 1])


def hosts_file(names: Sequence[str]) -> str:
    """``/etc/hosts`` of every host."""
    lines = [f"{address_of(number)} {name}" for number, name in enumerate(names)]
    return "\n".join(["127.0.0.1 localhost", *lines]) + "\n"


class Switch:
    """The bridge that joins the hosts, on a network apart from this machine's.

    Args:
        place: the namespaces it stands in.
    """

    def __init__(self, place: Namespaces) -> None:
        self.place = place
        place.call_on_network("ip", "link", "add", "switch", "type", "bridge")
        place.call_on_network("ip", "link", "set", "switch", "up")

    def plug(self, host: Namespaces, number: int, link: Link) -> None:
        """Give a host its interface and address, and shape its link.

        Raises:
            ValueError: ``tc`` does not take the link's speed or delay.
        """
        port, address = _port(number), f"{address_of(number)}/{_SUBNET.prefixlen}"
        # Booted again, a host still has its card.
        card = f"02:00:{ipaddress.ip_address(address_of(number)).packed.hex(':')}"
        peer = ["peer", "name", INTERFACE, "address", card, "netns", str(host.pid)]
        self.place.call_on_network("ip", "link", "add", port, "type", "veth", *peer)
        self.place.call_on_network("ip", "link", "set", port, "master", "switch", "up")
        host.call_on_network("ip", "link", "set", "lo", "up")
        host.call_on_network("ip", "address", "add", address, "dev", INTERFACE)
        host.call_on_network("ip", "link", "set", INTERFACE, "up")
        host.call_on_network("sh", "-c", _SETTINGS)
        try:
            for ours, theirs in zip(link.shaping(port), link.shaping(INTERFACE), strict=True):
                self.place.call_on_network(*ours)
                host.call_on_network(*theirs)
        except OSError as error:
            raise ValueError(f"link rate={link.rate}, delay={link.delay}: {error}") from None

    def unplug(self, number: int) -> None:
        """Take a host's interface away, for good."""
        self.place.call_on_network("ip", "link", "delete", _port(number))

    def cut(self, number: int) -> None:
        """Pull a host's cable."""
        self.place.call_on_network("ip", "link", "set", _port(number), "down")

    def mend(self, number: int) -> None:
        """Put a host's cable back."""
        self.place.call_on_network("ip", "link", "set", _port(number), "up")


def _port(number: int) -> str:
    return f"port{number + 1}"

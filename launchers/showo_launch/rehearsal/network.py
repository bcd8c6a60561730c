"""The network of a rehearsal: one bridge and one link per host, each with a bandwidth and a delay."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from showo_launch.rehearsal.namespaces import Namespaces

INTERFACE = "eth0"
_SUBNET = ipaddress.ip_network("10.77.0.0/16")  # isolated: it may be in use outside
_BURST_BYTES = 65536  # largest packet that passes at once; smaller bursts throttle the link
_QUEUE = "100ms"  # packets that wait longer at a full link are dropped, as by a switch
# Instead of the machine's own choice: BBR mistakes the rate of a burst for the link's bandwidth and leaves a
# shaped link idle for up to half of a transfer. Every kernel allows Reno in a namespace.
_SETTINGS = "echo reno >/proc/sys/net/ipv4/tcp_congestion_control"


@dataclass(frozen=True)
class Link:
    """Bandwidth and delay of a host's link, in each direction, in the units of ``tc``.

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
            ValueError: the text has another form.
        """
        pairs = dict(part.partition("=")[::2] for part in text.split(","))
        if not pairs.keys() <= {"rate", "delay"} or not all(pairs.values()):
            raise ValueError(
                f"link {text!r}: rate=… and delay=… are allowed, as rate=1gbit,delay=5ms"
            )
        return cls(pairs.get("rate"), pairs.get("delay"))

    def shaping(self, interface: str) -> list[list[str]]:
        """The ``tc`` commands that give an interface this bandwidth and delay for outgoing packets."""
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
    """The IP address of the host with this number, counted from 0."""
    return str(_SUBNET[number + 1])


def hosts_file(names: Sequence[str]) -> str:
    """``/etc/hosts`` of every host."""
    lines = [f"{address_of(number)} {name}" for number, name in enumerate(names)]
    return "\n".join(["127.0.0.1 localhost", *lines]) + "\n"


class Switch:
    """The bridge that connects the hosts, isolated from this machine's network.

    Args:
        place: the namespaces that contain it.
    """

    def __init__(self, place: Namespaces) -> None:
        self.place = place
        place.call_on_network("ip", "link", "add", "switch", "type", "bridge")
        place.call_on_network("ip", "link", "set", "switch", "up")

    def plug(self, host: Namespaces, number: int, link: Link) -> None:
        """Give a host its interface and address, and shape its link.

        Raises:
            ValueError: ``tc`` refuses the link's bandwidth or delay.
        """
        port, address = _port(number), f"{address_of(number)}/{_SUBNET.prefixlen}"
        # A fixed hardware address: other hosts still have it cached when this one is booted again.
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
        """Remove a host's interface."""
        self.place.call_on_network("ip", "link", "delete", _port(number))

    def cut(self, number: int) -> None:
        """Disconnect a host."""
        self.place.call_on_network("ip", "link", "set", _port(number), "down")

    def reconnect(self, number: int) -> None:
        """Undo :meth:`cut`."""
        self.place.call_on_network("ip", "link", "set", _port(number), "up")


def _port(number: int) -> str:
    return f"port{number + 1}"

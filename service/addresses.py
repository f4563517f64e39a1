"""Which addresses this service may call: those of the public internet, and networks that its operator names."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

UNICAST = IPv6Network("2000::/3")
"""All of IPv6 that is handed out; the rest is private, reserved or for other ends."""

TO_IPV4 = IPv6Network("64:ff9b::/96")
"""What a gateway (NAT64) hands on to the IPv4 address in its last four bytes."""

SPECIAL = (
    IPv4Network("192.0.0.0/24"),  # of protocols, and of a cloud (Oracle) for the services of its machines
    IPv4Network("168.63.129.16/32"),  # public, and in a cloud (Azure) where every machine finds services for itself
    IPv6Network("2001::/23"),  # of protocols: Teredo, which leads to the IPv4 address written in it, and others
    IPv6Network("2002::/16"),  # 6to4, which does so too
)
"""What is not public whatever the version of Python thinks of it."""


def networks(text: str) -> tuple[Network, ...]:
    """The networks in such as `10.0.0.0/8, fd00::/8`. Raises ValueError for what is none."""
    return tuple(ip_network(each.strip()) for each in text.split(",") if each.strip())


def is_callable(address: Address, allowed: Sequence[Network]) -> bool:
    """Whether an address is public, or in one of the networks that are allowed."""
    meant = _meant(address)
    return any(meant in network for network in allowed) or _is_public(meant)


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, or else itself."""
    if isinstance(address, IPv6Address):
        if address in TO_IPV4:
            return IPv4Address(address.packed[-4:])
        return address.ipv4_mapped or address
    return address


def _is_public(address: Address) -> bool:
    is_unicast = not address.is_multicast if isinstance(address, IPv4Address) else address in UNICAST
    return address.is_global and is_unicast and not any(address in network for network in SPECIAL)

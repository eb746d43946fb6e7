"""Whether anybody answers at the address of a cluster."""

from socket import create_connection

ANSWER = 10.0
"""Seconds in which a cluster must answer."""


def reach(address: str) -> None:
    """Nothing, if somebody answers at the address of a cluster: Ray itself would ask for ever.

    Raises
    ------
    ConnectionError
        When nobody does.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        try:
            create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
        except OSError as error:
            raise ConnectionError(
                f"nobody answers at {address!r} (--address): {error}; expected auto, local or HOST:PORT"
            ) from error

"""The least that a server in Python can do: take a request, send an answer made beforehand.

usage: bare_socket.py ADDRESS REQUEST_BYTES ANSWER_BYTES. Nothing is parsed and nothing is computed,
so what it takes is sockets, wake-ups and the client.
"""

from __future__ import annotations

import socket
import sys
import threading


def serve(connection: socket.socket, size: int, answer: bytes) -> None:
    """Answer one client until it goes."""
    room = memoryview(bytearray(size))
    while True:
        at = 0
        while at < size:
            got = connection.recv_into(room[at:])
            if not got:
                return
            at += got
        connection.sendall(answer)


def main(address: str, size: int, body: int) -> None:
    """Listen until killed."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % body + b" " * body
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        while True:
            client = listening.accept()[0]
            threading.Thread(target=serve, args=(client, size, answer), daemon=True).start()


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

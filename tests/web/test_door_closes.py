"""Whoever is connected when a service closes its door gets an answer: a real process, and clients that come one by one
while it is so busy that they stand in a queue."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time

CLIENTS = 40
#: Answers a request after 20 ms in which it does nothing else, as a service does that has too much to do.
SERVICE = """
import socket, time
from tutti.web.server import run_server

async def app(scope, receive, send):
    time.sleep(0.02)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})

listener = socket.create_server(("127.0.0.1", 0), backlog=256)
print(listener.getsockname()[1], flush=True)
run_server(app, listener, None, None, 30.0)
"""


def test_nobody_who_was_let_in_is_hung_up_on() -> None:
    process = subprocess.Popen([sys.executable, "-c", SERVICE], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    #: Of everybody who was connected: what came back.
    answers: list[bytes] = []
    refused = threading.Event()

    def come_again_and_again() -> None:
        while not refused.is_set():
            try:
                connection = socket.create_connection(("127.0.0.1", port), timeout=30)
            except ConnectionRefusedError:
                refused.set()
                return
            with connection:
                said = b""
                try:
                    connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                    while part := connection.recv(4096):
                        said += part
                except ConnectionError as error:
                    said = repr(error).encode()
                answers.append(said)

    threads = [threading.Thread(target=come_again_and_again) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert process.wait(60) == 0
    assert refused.is_set()
    assert len(answers) > CLIENTS
    assert [said for said in answers if not said.endswith(b"\r\n\r\nok")] == []

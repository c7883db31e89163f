"""A service, or any application, that listens on a port of this machine in a thread of this process."""

import contextlib
import socket
import threading
import time

import uvicorn

from tune_hpc.service.http import ServiceHttp


@contextlib.contextmanager
def listening(app, **settings):
    """Have it listen as `tune-hpc serve` does; yields the port and the server."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=ServiceHttp, lifespan="off", log_level="error", server_header=False, access_log=False, **settings
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield listener.getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join()
        listener.close()

"""A server that forks the jobs of the tests' workflows, so that a job does not import torch and transformers again.

`python job_server.py SOCKET` serves; `python job_server.py SOCKET SCRIPT` asks the server to run a script in the
caller's directory, with its environment and streams, and exits as the script does.
"""

import array
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress

STREAMS = socket.CMSG_LEN(3 * array.array("i").itemsize)


def ask(path: str, arguments: list[str]) -> int:
    """Run a script in a process forked from the server; return its exit status."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        request = json.dumps([os.getcwd(), arguments, dict(os.environ)]).encode()
        streams = array.array("i", [0, 1, 2])
        connection.sendmsg([b"%16d" % len(request)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        connection.sendall(request)
        return int(connection.recv(16) or 1)


def serve(path: str) -> None:
    """Fork a process for each request, until the process that started the server ends."""
    import datasets  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(64)
    parent, waiting = os.getppid(), {}
    while os.getppid() == parent:
        ready, _, _ = select.select([server], [], [], 0.02)
        if ready:
            connection, _ = server.accept()
            size, ancillary, _, _ = connection.recvmsg(16, STREAMS)
            streams = array.array("i", ancillary[0][2])
            request = b""
            while len(request) < int(size):
                request += connection.recv(1 << 20)
            pid = os.fork()
            if pid == 0:
                os._exit(run(*json.loads(request), streams))
            for stream in streams:
                os.close(stream)
            waiting[pid] = connection
        while waiting and (done := os.waitpid(-1, os.WNOHANG))[0]:
            connection = waiting.pop(done[0])
            with suppress(OSError):  # whoever asked has been killed
                connection.sendall(b"%d" % abs(os.waitstatus_to_exitcode(done[1])))
            connection.close()


def run(folder: str, arguments: list[str], environment: dict[str, str], streams: array.array) -> int:
    """Run a script as the forked process; return its exit status."""
    import runpy
    import traceback

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[0] = arguments, os.path.dirname(arguments[0])
    sys.path[1:1] = environment.get("PYTHONPATH", "").split(os.pathsep)
    status = 0
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    sys.exit(ask(sys.argv[1], sys.argv[2:]) if len(sys.argv) > 2 else serve(sys.argv[1]))

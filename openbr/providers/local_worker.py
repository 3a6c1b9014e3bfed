"""The child process that runs a language model: llama.cpp behind OpenAI's HTTP API on loopback.

In: one line of JSON on stdin. Out: one line of JSON on stdout, {"port"} or {"error"}, then HTTP on
that port, with a key of its own. The rules that live only here: this process ends when its stdin
does, so it never outlives the gateway; nothing secret is in its arguments or its environment; it
imports nothing of openbr, and the gateway never imports it: `python -I local_worker.py`.

Shape of the line in: {"model": path, "alias": name, "context": tokens, "threads": n, "key": text,
"parent": pid, "packages": folder, "sampling": {name: default, ...}}.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from typing import Any, NoReturn

_MAX_LINE = 64 * 1024
_PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h
_SIGKILL = 9
_LOG_S = 0.3  # llama.cpp logs from a thread of its own, and why it failed is only in its log


def main() -> NoReturn:
    _die_with_parent()
    report = os.dup(1)
    os.dup2(2, 1)  # what the library prints is no answer
    order = _read_order()
    if os.getppid() != order["parent"]:
        os._exit(0)  # the gateway ended before it could be watched
    threading.Thread(target=_wait_for_end, daemon=True).start()
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        # A crash must not write the conversation to a core file.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        server = _serve(order)
        port = int(server.listening_address.rpartition(":")[2])
    except Exception as exc:  # the outermost edge of this process
        time.sleep(_LOG_S)
        _say(report, {"error": str(exc) or type(exc).__name__})
        os._exit(1)
    _say(report, {"port": port})
    threading.Event().wait()  # the server answers on threads of its own
    os._exit(0)


def _serve(order: dict[str, Any]) -> Any:
    """Load the model and start to listen; returns when it can answer.

    Measured on smollm2-135m: `fit_params` doubles the time to load and finds nothing to fit on a
    CPU; a prompt cache of up to 8 GiB is llama.cpp's default and would be most of our memory.
    """
    if order["packages"] not in sys.path:
        sys.path.append(order["packages"])
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = order["model"]
    params.model_alias = {order["alias"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [order["key"]]
    params.n_ctx = order["context"]
    params.n_parallel = 1
    params.cpuparams.n_threads = order["threads"]
    params.cpuparams_batch.n_threads = order["threads"]
    params.ui = False
    params.endpoint_slots = False
    params.endpoint_props = False
    params.endpoint_metrics = False
    params.cors_origins = ""
    for name, value in order["sampling"].items():
        setattr(params.sampling, name, value)
    params.use_jinja = True
    params.verbosity = 1  # errors
    params.cache_ram_mib = 0
    params.fit_params = False
    return xllamacpp.Server(params)


def _read_order() -> dict[str, Any]:
    """The first line, by the byte: what follows on stdin is left for `_wait_for_end`."""
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < _MAX_LINE:
        piece = os.read(0, 1)
        if not piece:
            os._exit(0)
        line += piece
    order: dict[str, Any] = json.loads(line)
    return order


def _say(descriptor: int, answer: dict[str, object]) -> None:
    os.write(descriptor, json.dumps(answer).encode() + b"\n")
    os.close(descriptor)


def _wait_for_end() -> None:
    """The gateway holds the other end of stdin: however it ends, this reads the end of file."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(0)


def _die_with_parent() -> None:
    """On Linux the kernel does it too, also while the library holds every thread."""
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    main()

"""Sends one request with a large file to Triton; a program of its own that imports nothing of the gateway.

`worker.py ADDRESS METHOD FILE SHA256 SECONDS` reads the request before the file's content from standard input
and prints the status with which the call ended: [name of the code, details]. Copies of a large file hold the
interpreter's lock for tens of milliseconds each, in which a gateway would answer no call.
"""

import ctypes
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import grpc

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that this process gets when its parent dies."""
NICE = 10
"""Calls of the gateway and of Triton come first."""


def main(address: str, method: str, file: str, sha256: str, seconds: str) -> tuple[str, str]:
    """The status of the call; DATA_LOSS when the file does not have the digest."""
    head, content = sys.stdin.buffer.read(), Path(file).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        return "DATA_LOSS", "the file does not have its digest"
    options = [("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0)]
    with grpc.insecure_channel(address, options) as channel:
        try:
            channel.unary_unary(method)(head + content, timeout=float(seconds))
        except grpc.RpcError as error:
            return error.code().name, error.details() or ""
    return "OK", ""


if __name__ == "__main__":
    # The gateway may be killed before it kills this process.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(NICE)
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))

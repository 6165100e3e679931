"""Programs that models wrote, run to see whether they work: in a process of their own, with limits.

This is no fortress. Time, memory and the size of files are limited by the system, the network is another
namespace's where Linux allows that, and Python itself refuses to open files for writing, sockets and
processes. A program that is out to break Python's own walls may still get through: who cares should run the
whole eval in a container or on a machine that can be lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass

# The child, from its standard input: {path, setup, program, mark, limits}. Only the mark, written when the
# program has run to its end, says that it did: `exit(0)` half-way does not. `setup` is ours, and runs before
# the limits, since libraries open and map what programs may not.
_CHILD = r"""
import ctypes, json, os, resource, sys
task = json.load(sys.stdin)
said = os.dup(1)
null = os.open(os.devnull, os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
try:
    ctypes.CDLL(None).unshare(0x10000000 | 0x40000000)  # CLONE_NEWUSER, CLONE_NEWNET
except (AttributeError, OSError):
    pass
sys.path[:] = task["path"]
names = {"__name__": "program"}
exec(task["setup"], names)
limits = task["limits"]
wanted = {"CPU": limits["cpu_seconds"], "AS": limits["bytes"], "FSIZE": 0, "CORE": 0, "NPROC": 0}
for name, value in wanted.items():
    try:
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
    except (AttributeError, ValueError, OSError):
        pass
REFUSED = (
    "socket.", "subprocess.", "ctypes.", "shutil.", "os.system", "os.exec", "os.fork", "os.posix_spawn",
    "os.spawn", "os.kill", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod",
    "os.chown", "os.link", "os.symlink", "os.utime", "signal.pthread_kill", "pty.",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
def guard(event, arguments):
    if event.startswith(REFUSED) or event == "open" and (arguments[2] or 0) & WRITING:
        raise PermissionError("not here: " + event)
program, mark = compile(task["program"], "program", "exec"), task["mark"].encode()
del task
sys.addaudithook(guard)
exec(program, names)
os.write(said, mark)
os._exit(0)
"""


@dataclass(frozen=True)
class ProgramLimits:
    """Of one program. Seconds of wall time are many, since a busy machine is no fault of the program."""

    cpu_seconds: int = 10
    seconds: float = 60.0
    bytes: int = 2 << 30


_LIMITS = ProgramLimits()
CAN_LIMIT = os.name == "posix"


def runs_well(program: str, setup: str = "", limits: ProgramLimits = _LIMITS) -> bool:
    """Whether a program ends without an error within its limits. `setup`: code of ours that runs before it,
    without limits but those of wall time, with the same names. Only where `CAN_LIMIT`.
    """
    mark = secrets.token_hex(16)
    task = {
        "path": sys.path, "setup": setup, "program": program, "mark": mark, "limits": asdict(limits),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="canvaslm-program-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", _CHILD],
            cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={"HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = process.communicate(json.dumps(task).encode(), timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            said = b""
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return said == mark.encode()


__all__ = ["CAN_LIMIT", "ProgramLimits", "runs_well"]

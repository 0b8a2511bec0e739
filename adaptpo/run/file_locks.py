"""Whether a folder's file system keeps the locks that a shared database needs."""

from __future__ import annotations

import errno
import fcntl
import struct
import time
from pathlib import Path
from tempfile import NamedTemporaryFile

from adaptpo.errors import RunError

MOUNTS = Path("/proc/self/mountinfo")
ACROSS_MACHINES = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "9p"}
ACROSS_MACHINES |= {"fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.juicefs", "fuse.s3fs", "fuse.gcsfuse", "wekafs"}
"""Types of file systems that several machines mount."""
WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
LOCAL_FOLDER = "choose a folder on a local disk (for paid answers: annotation_cache)"
SHARED_FOLDER = "choose an output_dir on a file system whose locks hold for all machines of the run"
SEEN_WITHIN = 60.0
"""Seconds after which a file of another machine must be visible; NFS remembers for a while that there was none."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def refuse_without_locks(folder: Path) -> None:
    """Raises RunError where a lock is not given, or is given twice."""
    # Such a lock belongs to the open file, so that one process can ask for it twice.
    if not hasattr(fcntl, "F_OFD_SETLK"):
        return  # Other systems than Linux cannot be asked.
    with NamedTemporaryFile(dir=folder, prefix=".lock-") as first, Path(first.name).open("r+b") as second:
        if not is_locked_by(first.fileno(), folder) or is_locked_by(second.fileno(), folder):
            raise unlockable(folder, "gives one lock to two at once")


def is_locked_by(descriptor: int, folder: Path) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, WHOLE_FILE)
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise unlockable(folder, f"gives no locks ({error.strerror})") from error
        return False
    return True


def problem_of_shared_lock(file: Path) -> str | None:
    """What is wrong with a lock that a process of the same run holds, perhaps on another machine, if seen from here."""
    end = time.monotonic() + SEEN_WITHIN
    try:
        while not file.exists():
            if time.monotonic() > end:
                return f"does not show {file.name}, which another process of the run has made there"
            time.sleep(0.1)
        with file.open("r+b") as seen:
            fcntl.flock(seen, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        return f"gives no lock on {file.name} ({error.strerror})"
    return "gives one lock to two processes at once"


def unlockable(folder: Path, problem: str, remedy: str = LOCAL_FOLDER) -> RunError:
    return RunError(
        f"the file system of {folder} {problem}, and several processes would overwrite one another's records; {remedy}"
    )


def is_across_machines(folder: Path, mounts: str | None = None) -> bool:
    """Whether several machines may mount the folder's file system, where they share no memory."""
    if mounts is None:
        mounts = MOUNTS.read_text(encoding="utf-8", errors="replace") if MOUNTS.exists() else ""
    found = dict(map(mount_of, mounts.splitlines()))
    place = folder.resolve()
    return next((found[str(p)] for p in [place, *place.parents] if str(p) in found), "") in ACROSS_MACHINES


def mount_of(line: str) -> tuple[str, str]:
    """The mount point and the type of a line of `mountinfo`."""
    before, _, after = line.partition(" - ")
    return before.split(" ")[4].replace("\\040", " "), after.split(" ")[0]

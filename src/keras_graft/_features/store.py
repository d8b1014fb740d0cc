"""Arrays in a folder: each part of it is there as it was written, or it is not there.

A part is a folder of `.npy` files, with a JSON file that says what they are. It is written in a place of its own, moved
to where it belongs once it is whole, and read only if all checksums are right. Whatever happened to it, in a crash of
the machine too, makes it absent, so nothing has to wait for the disk. It must not know what the arrays are.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import pathlib
import shutil
import socket
import stat
import threading
import time
import types
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from .fingerprint import checksum

fcntl: types.ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["FeatureStoreError", "absolute", "explained", "home_in", "is_whole", "note", "read", "write", "write_note"]

_SHARD = "shard.json"
_SEAL = "blake2b"
_PARSING = threading.Lock()


class FeatureStoreError(OSError):
    """A folder of features cannot be read or written. The message says what to do."""


@contextlib.contextmanager
def explained(folder: Any) -> Iterator[None]:
    """Within it, what the system says of a folder becomes an error that says what to do."""
    try:
        yield
    except FeatureStoreError:
        raise
    except OSError as error:
        number = error.errno or errno.ENOSPC  # numpy says in words alone that less was written than it wanted
        raise FeatureStoreError(
            number,
            f"Features cannot be kept in the folder '{folder}', which `cache` names: {os.strerror(number)}. "
            f"{_WAYS_OUT.get(number, _ELSEWHERE)} The shards that are whole are kept, and used in the next run.",
        ) from error


_ELSEWHERE = "Choose another folder as `cache`."
_WAYS_OUT = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "Free space, or choose a folder on another disk."),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Choose a folder that you may write."),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "Choose the path of a folder, or one that is not there yet."),
    errno.EIO: "A file in it is damaged. Train again: what is damaged is computed again.",
    errno.ENOENT: "It was removed while it was used, or cannot be made there. Leave it in place until the training "
    "ends, or choose another one.",
}


def absolute(folder: str | os.PathLike[str]) -> pathlib.Path:
    """The folder that a path means now, whatever the working folder will be."""
    with explained(folder):
        path = os.path.expanduser(os.fsdecode(folder))  # where the user is not known it stays, as in a shell
        if "\0" in path:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return pathlib.Path(path).absolute()


def home_in(folder: pathlib.Path, name: str) -> pathlib.Path:
    """A folder in a folder, which is made where it is not there, without what killed processes left in it."""
    home = folder / name
    if not home.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(home):  # a file, or a link that leads nowhere
            _remove(home)
        home.mkdir(exist_ok=True)
    for left in home.glob(f"{_NEW}*"):
        with contextlib.suppress(OSError):
            _clear(left)
    return home


# ---------------------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------------------


def write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a part: a folder with a file for each array, and what they are."""
    with _put_at(path, lambda: is_whole(path, arrays)) as new:
        new.mkdir()
        entries = {name: _written(new / name, array) for name, array in arrays.items()}
        (new / _SHARD).write_bytes(_sealed({"rows": len(next(iter(arrays.values()))), "files": entries}))


def _written(path: pathlib.Path, array: np.ndarray) -> dict[str, Any]:
    # numpy knows nothing of bfloat16 and the like
    plain = array.view(f"uint{8 * array.itemsize}") if array.dtype.kind == "V" else array
    np.save(path, plain, allow_pickle=False)
    return {"dtype": array.dtype.name, "shape": list(array.shape), "blake2b": checksum(path)}


def is_whole(path: pathlib.Path, names: Iterable[str]) -> bool:
    """Whether a part with files of these names, and of no others, is there as it was written."""
    try:
        content = _unsealed((path / _SHARD).read_bytes() if _is_file(path / _SHARD) else b"")
        files = content["files"]
        return set(files) == set(names) and all(_is_as_written(path / name, entry) for name, entry in files.items())
    except Exception:  # whatever a damaged file makes of those who read it
        return False


def _is_as_written(path: pathlib.Path, entry: dict[str, Any]) -> bool:
    return _is_file(path) and checksum(path) == entry["blake2b"] and list(_loaded(path, entry).shape) == entry["shape"]


def _is_file(path: pathlib.Path) -> bool:
    """Whether there is a file at a path: no folder, no broken link, and no pipe that would never end."""
    return stat.S_ISREG(path.stat().st_mode)


def _loaded(path: pathlib.Path, entry: dict[str, Any]) -> np.ndarray:
    """An array that is not yet in memory."""
    # numpy parses what a file says of itself, which two threads of Python 3.11 at a time cannot (gh-106905).
    with _PARSING:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype.name == entry["dtype"]:
        return array
    dtype = np.dtype(tf.as_dtype(entry["dtype"]).as_numpy_dtype)
    if dtype.kind != "V":
        raise ValueError(f"It holds {array.dtype.name}, not {dtype.name}.")
    return array.view(dtype)


def read(path: pathlib.Path, names: Iterable[str]) -> list[np.ndarray]:
    """The arrays of a part that is whole, not yet in memory."""
    try:
        files = _unsealed((path / _SHARD).read_bytes())["files"]
        return [_loaded(path / name, files[name]) for name in names]
    except (ValueError, LookupError, TypeError, EOFError) as error:  # it was whole before
        raise OSError(errno.EIO, f"damaged: {error}") from error


def _sealed(content: dict[str, Any]) -> bytes:
    """What a part consists of, with a number that says whether it is still what was written."""
    seal = hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
    return json.dumps({**content, _SEAL: seal}, indent=1).encode()


def _unsealed(text: bytes) -> dict[str, Any]:
    content = json.loads(text)
    without = {key: value for key, value in content.items() if key != _SEAL}
    if _sealed(without) != text:
        raise ValueError("It is not what was written.")
    return without


# ---------------------------------------------------------------------------------------------------------
# Files and folders that are there whole, or not at all
# ---------------------------------------------------------------------------------------------------------


def note(path: pathlib.Path) -> dict[str, Any]:
    """What was written for people; empty where it is damaged, or not there."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_bytes() if _is_file(path) else b"{}")
        return content if isinstance(content, dict) else {}
    return {}


def write_note(path: pathlib.Path, content: Any) -> None:
    """Writes what people want to know of a folder. Where nobody may write, what is there can be read all the same."""
    text = json.dumps(content, indent=1).encode()
    with contextlib.suppress(OSError):
        if _is_file(path) and path.read_bytes() == text:
            return
    try:
        with _put_at(path, lambda: False) as new:
            new.write_bytes(text)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise


@contextlib.contextmanager
def _put_at(path: pathlib.Path, is_there: Callable[[], bool]) -> Iterator[pathlib.Path]:
    """Gives a path to write a file or a folder to, and moves that to `path` once it is whole.

    What is damaged at `path` makes room. What a faster process put there, as `is_there` finds out, stays.
    """
    with _workplace(path.parent) as place:
        new = place / "new"
        yield new
        try:
            new.replace(path)
        except OSError:
            if not os.path.lexists(path):
                raise
            with _alone_in(path.parent):
                if not is_there():
                    path.rename(place / "old")
                    new.rename(path)


def _remove(path: pathlib.Path) -> None:
    """Removes a file, a link or a folder, and nothing that a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# -- who is writing ---------------------------------------------------------------------------------------

# A place to write is a folder of this name. The process that writes there keeps it locked, and where a process ends, in
# whatever way, the system opens its locks. A number of a process says nothing: containers have the same ones.
_NEW = ".new-"

# After how many seconds a place is taken for left where no lock can tell.
_LONG = 24 * 60 * 60


@contextlib.contextmanager
def _workplace(home: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder of one's own in a folder."""
    place, lock = _locked_place(home)
    try:
        yield place
    finally:
        _remove(place)
        _unlock(lock)


def _locked_place(home: pathlib.Path) -> tuple[pathlib.Path, int | None]:
    while True:
        place = home / f"{_NEW}{_system()}-{uuid.uuid4().hex}"
        place.mkdir()
        lock = _lock(place, wait=True)
        if place.exists():
            return place, lock
        _unlock(lock)  # somebody took it for left, in the moment before it was locked


@contextlib.contextmanager
def _alone_in(home: pathlib.Path) -> Iterator[None]:
    """Within it no other process exchanges what lies in a folder, as far as the system knows locks."""
    lock = _lock(home, wait=True)
    try:
        yield
    finally:
        _unlock(lock)


def _clear(place: pathlib.Path) -> None:
    """Removes a place where nobody writes any more."""
    try:
        lock = _lock(place, wait=False)
    except BlockingIOError:  # somebody does
        return
    try:
        # Another machine does not always see the locks of this one.
        ours = lock is not None and place.name.startswith(f"{_NEW}{_system()}-")
        if ours or time.time() - _last_change(place) > _LONG:
            _remove(place)
    finally:
        _unlock(lock)


def _lock(folder: pathlib.Path, *, wait: bool) -> int | None:
    """Locks a folder, and gives what unlocks it; None where there are no locks.

    Raises:
        BlockingIOError: If somebody else holds it, and this shall not wait.
    """
    if fcntl is None:
        return None
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(lock)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return lock


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


@functools.cache
def _system() -> str:
    """A name for the running system, whose processes see each other's locks; that of the host says nothing."""
    try:
        name = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
    except OSError:
        name = socket.gethostname()
    return hashlib.blake2b(name.encode(), digest_size=4).hexdigest()


def _last_change(place: pathlib.Path) -> float:
    inner = place.rglob("*") if place.is_dir() and not place.is_symlink() else ()
    return max(path.lstat().st_mtime for path in (place, *inner))

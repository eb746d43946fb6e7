"""Places of pictures and runs: paths of this machine, and object stores (s3://, gs://, ...) through fsspec.

What is written appears as a whole or not at all, on either. Any number of processes may write, and be killed.
"""

import errno
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from threading import get_ident
from typing import TypeAlias
from urllib.parse import quote

from upath import UPath

Place: TypeAlias = Path | UPath
_EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs")}
_TEMPORARY = ".tmp-"


def locate(named: str | Place) -> Place:
    """A path, or what a URL such as s3://bucket/folder means; options of its store come from the environment.

    Raises
    ------
    ValueError
        For a URL of an unknown kind, or one whose package is not installed.
    """
    if not isinstance(named, str) or "://" not in named:
        return Path(named) if isinstance(named, str) else named
    kind, _, path = named.partition("://")
    if kind in ("file", "local"):
        return Path(path.removeprefix("localhost"))
    package, extra = _EXTRAS.get(kind, ("", ""))
    if package and find_spec(package) is None:
        raise ValueError(f'{named!r} needs {package}: pip install "shapleycam[{extra}]"')
    try:
        # Without its cache: other machines write there too.
        return UPath(named, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"{named!r} cannot be reached: {error}; expected a path, s3://BUCKET/..., gs://BUCKET/..., or another "
            "URL that fsspec knows"
        ) from error


def beside(file: Place, named: str) -> Place:
    """What a list means by a path: one relative to it, or a URL."""
    return locate(named) if "://" in named else file.parent / named


def files(folder: Place, *, links: bool = False) -> Iterator[PurePosixPath]:
    """The files below a folder, relative to it, in no order; `links`: also below links to folders, unless those lead back."""
    if isinstance(folder, Path):
        found = (Path(parent, name) for parent, names in _walked(folder, links) for name in names)
        return (PurePosixPath(path.relative_to(folder).as_posix()) for path in found if path.is_file())
    root = PurePosixPath(folder.path)
    return (PurePosixPath(each).relative_to(root) for each in folder.fs.find(folder.path))


def _walked(folder: Path, links: bool) -> Iterator[tuple[str, list[str]]]:
    for parent, folders, names in os.walk(folder, followlinks=links):  # unlike rglob, it does not mind what is removed
        for name in [name for name in folders if links and Path(parent, name).is_symlink()]:
            if Path(parent).resolve().is_relative_to(Path(parent, name).resolve()):
                folders.remove(name)
        yield parent, names


def listings(age: float, clock: Callable[[], float]) -> Callable[[Place], frozenset[str]]:
    """Gives the names in a folder, as they were at most `age` seconds ago; what is half written is none of them.

    While a store does not answer they are as they were last seen.
    """
    known: dict[Place, tuple[float, frozenset[str]]] = {}

    def listed(folder: Place) -> frozenset[str]:
        if clock() - known.get(folder, (-math.inf,))[0] > age:
            names = known.get(folder, (0.0, frozenset[str]()))[1]
            with patient():
                names = frozenset(str(name) for name in files(folder) if _TEMPORARY not in name.name)
            known[folder] = clock(), names
        return known[folder][1]

    return listed


def write_whole(path: Place, data: bytes) -> None:
    """A file, on the disk as a whole once this returns; until then whatever was there before.

    Raises
    ------
    OSError
        When the disk is full, say; nothing of it is left behind.
    """
    if not isinstance(path, Path):
        path.fs.pipe_file(path.path, data)  # object stores show nothing before it is all there
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        _write(temporary, data)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    with suppress(OSError):  # some systems cannot open folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def create(path: Place, data: bytes) -> bool:
    """Write a file unless there is one: whether this call made it. Of several at once one alone is told so, on NFS too."""
    if not isinstance(path, Path):
        try:
            path.fs.pipe_file(path.path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if _conflict(error):
                return False
            raise
        return True
    temporary = _temporary(path)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(temporary, data)
        except (FileNotFoundError, FileExistsError):  # another process has just removed the empty folder
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(temporary, data)
        try:
            os.link(temporary, path)  # fails if it is there, unlike os.replace
        except FileExistsError:
            # Over NFS an answer may be lost, and the link that was made be refused when it is asked for again.
            return temporary.stat().st_nlink > 1
        except OSError:  # a file system without links
            if path.exists():
                return False
            temporary.replace(path)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def remove(path: Place) -> None:
    """Remove a file if it is there."""
    with suppress(FileNotFoundError):
        path.unlink()


def prune(folder: Place) -> None:
    """Remove a folder and what is below it, as far as no file is in them; stores have no folders."""
    if isinstance(folder, Path):
        for parent, _, _ in os.walk(folder, topdown=False):
            with suppress(OSError):  # a file is, or another process was faster
                Path(parent).rmdir()


def sweep(folder: Place, *, everyone: bool = False) -> None:
    """Remove what processes of this machine left half-written when they were killed; `everyone`: what any left."""
    if not isinstance(folder, Path):
        return
    for name in [name for name in files(folder) if _TEMPORARY in name.name]:
        file = folder / name
        machine, process, _ = ("--" + name.name.rpartition(_TEMPORARY)[2]).rsplit("-", 2)
        # Not where asking whether a process lives may end it.
        dead = os.name == "posix" and machine == f"--{host()}" and process.isdigit() and not alive(int(process))
        if everyone or dead:
            file.unlink(missing_ok=True)


@cache
def host() -> str:
    """This machine since it was started, and which of its containers: where one process can see whether another lives."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
        space = "".join(filter(str.isdecimal, str(Path("/proc/self/ns/pid").readlink())))
    except OSError:
        boot = space = ""
    return quote(f"{socket.gethostname()}-{boot}-{space}".strip("-"), safe="")


def store_errors() -> tuple[type[Exception], ...]:
    """What the packages of object stores raise beside OSError: no credentials, or nobody answers."""
    known = (
        ("botocore.exceptions", "BotoCoreError"),
        ("aiohttp", "ClientError"),
        ("gcsfs.retry", "HttpError"),
        ("google.auth.exceptions", "GoogleAuthError"),
        ("requests.exceptions", "ConnectionError"),  # gcsfs raises these two as they are
        ("requests.exceptions", "Timeout"),
    )
    return tuple(getattr(sys.modules[module], name) for module, name in known if module in sys.modules)


def passes(error: Exception) -> bool:
    """Whether what failed may work later: no room, no file handles, or a store or a network that does not answer."""
    full = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE
    busy = errno.EBUSY, errno.ESTALE, getattr(errno, "EREMOTEIO", -1)  # the last: s3fs, of a store's 503 and 500
    passing = isinstance(error, OSError) and error.errno in (*full, *busy)
    return passing or isinstance(error, (TimeoutError, ConnectionError, *store_errors()))


@contextmanager
def patient() -> Iterator[None]:
    """Passes over what may work later."""
    try:
        yield
    except Exception as error:
        if not passes(error):
            raise


def alive(process: int) -> bool:
    """Whether a process of this machine lives."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _conflict(error: OSError) -> bool:
    """Whether S3 refuses to create a file because another request for it is under way (409), as its manual has it.

    Or because it is there (412), from stores that do not say which condition that breaks, so that s3fs does not know.
    """
    response = getattr(error.__cause__, "response", None) or {}
    return response.get("Error", {}).get("Code") in ("ConditionalRequestConflict", "PreconditionFailed", "412")


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}{_TEMPORARY}{host()}-{os.getpid()}-{get_ident()}")

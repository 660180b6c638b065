"""What to do about errors of the system, whose own words say only what happened."""

import errno

REMEDIES = {
    errno.EACCES: "change the permissions of this file or its folder, or choose another place",
    errno.EPERM: "change the permissions of this file or its folder, or choose another place",
    errno.EROFS: "the place cannot be written to, choose another",
    errno.ENOSPC: "make room on the disk and run the same command again",
    errno.EDQUOT: "make room on the disk and run the same command again",
    errno.EISDIR: "a file is needed there; move the folder away or name another file",
    errno.EEXIST: "a folder is needed there; move the file away or name another folder",
    errno.ENOTDIR: "a part of this path is a file; move it away or name another path",
    errno.ENOENT: "correct the path, or make the folder first",
    errno.ENAMETOOLONG: "choose a shorter name",
}
"""What to do, by the number of the error."""

OTHERWISE = "check this path and its disk, and run the same command again"
"""What to do about an error of another number."""


def describe_error(error: Exception) -> str:
    """Return the message of an error; of one of the system itself, also what to do about it.

    Examples:
        >>> describe_error(OSError(errno.EROFS, "Read-only file system", "/data/file"))
        '/data/file: Read-only file system; the place cannot be written to, choose another'
    """
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    place = error.filename2 or error.filename  # the first is a temporary file when one replaces another
    return f"{f'{place}: ' if place else ''}{error.strerror}; {REMEDIES.get(error.errno, OTHERWISE)}"

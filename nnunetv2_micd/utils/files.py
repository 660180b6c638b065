"""Small helpers for files, environment variables and names in messages."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it at the end of the block.

    Readers see the old file or the new one, never half of it. If the block fails, the old file stays.

    Examples:
        >>> with atomic("table.csv") as temporary:  # doctest: +SKIP
        ...     temporary.write_text("case,dice")
    """
    target = Path(path)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables for the duration of a block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def shorten(names: Sequence[str], limit: int = 5) -> str:
    """Return the first names for a message and the number of the others; unprintable characters are escaped."""
    shown = [name if name.isprintable() else ascii(name) for name in names[:limit]]
    return ", ".join(shown) + (f" and {len(names) - limit} more" if len(names) > limit else "")

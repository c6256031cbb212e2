"""Every error a user can cause or must act on.

    RationaleError
    ├── ConfigError        a key, value or file of the configuration
    ├── DataError          an input file, a row, a split
    │   └── NotFoundError  an id that does not exist
    ├── ArtifactError      a run folder: missing, incomplete or changed underneath
    ├── PromptTooLongError a prompt that does not fit the model
    ├── EngineError        a text engine that cannot start or has died
    ├── OverloadedError    the service cannot take more work just now
    └── LaunchError        the local cluster, its job or the service did not come up

Messages are one line: what is wrong, the value got, what to do. `cli` turns them into
"error: ..." and exit code 2; the ingress turns them into problem+json.
"""

from __future__ import annotations

import sys
from collections.abc import Callable


class RationaleError(Exception):
    """Base of all errors that carry a message for a person."""


class ConfigError(RationaleError):
    """The configuration cannot be used."""


class DataError(RationaleError):
    """The input data cannot be used."""


class NotFoundError(DataError):
    """A user or item id that does not exist."""


class ArtifactError(RationaleError):
    """A stage's output is missing, incomplete or not what its manifest says."""


class PromptTooLongError(RationaleError):
    """A prompt has more tokens than the model takes."""


class EngineError(RationaleError):
    """A text engine cannot start, or stopped answering."""


class OverloadedError(RationaleError):
    """The service is at its limit; the request may be sent again later."""


class LaunchError(RationaleError):
    """The local cluster, the pipeline's job or the service did not come up."""


def cli(main: Callable[[], None]) -> None:
    """Run `main`; a RationaleError becomes one line on stderr and exit code 2."""
    try:
        main()
    except RationaleError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

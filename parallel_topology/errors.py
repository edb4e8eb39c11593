"""Every error this package raises, in one tree.

The second base says who is to blame: `ValueError` or `TypeError` the caller, `RuntimeError` the environment,
`TimeoutError` time.

ParallelTopologyError
├── TopologyError (ValueError)             sizes, order or text that make no topology
│   └── UnknownAxisError (AttributeError)  an axis, or a combination, that is not there
├── ImmutableError (AttributeError)        a value that was to be changed
├── RankError (ValueError)                 a rank or coordinate outside the world
├── GroupArgumentError (ValueError)        a collective called with arguments that cannot work
├── NotPicklableError (TypeError)           a manager or group was to be pickled; copies of it are itself
├── MissingExtraError (ImportError)        an optional dependency is not installed
├── LaunchError (RuntimeError)             the environment does not say which rank this is
│   └── NoLauncherError                    as there is no launcher's variable in it
├── BackendError (RuntimeError)            a backend or device that cannot be used here
├── ClosedError (RuntimeError)             use of a manager or group after `close()`
├── ClosingError (ExceptionGroup)          what did not end in `close()`, while all else did
├── LiveGraphError (RuntimeError)          `close()` while CUDA graphs still hold the communicators
├── RendezvousError (RuntimeError)         the store cannot be reached, hosted or trusted
├── DisagreementError (RuntimeError)       the ranks do not hold the same plan
├── CreationError (RuntimeError)           a process group could not be created
├── RebindError (RuntimeError)             not all ranks could be bound to another topology, so none was
├── RefitError (RuntimeError)              weights could not be moved to another layout, on no rank
├── MismatchError (RuntimeError)           the ranks' collectives do not match: operation, shape, dtype or order
├── CollectiveError (RuntimeError)         a collective failed, most often because a peer is gone
├── WireError (RuntimeError)               bytes from a peer that are no value, or not one that was allowed
├── GroupTimeoutError (TimeoutError)       ranks that did not arrive before the deadline
├── DeadRankError (RuntimeError)           a rank whose process ended without a word
├── StuckRankError (TimeoutError)          a rank that was still running at the deadline
└── RanksFailedError (ExceptionGroup)      what became of the ranks of a call that some did not finish
"""


class ParallelTopologyError(Exception):
    """Base of all errors of this package."""


class TopologyError(ParallelTopologyError, ValueError):
    """Sizes, an order or a text that make no topology."""


class UnknownAxisError(TopologyError, AttributeError):
    """An axis or combination of axes that was not declared; the message names those that were."""


class ImmutableError(ParallelTopologyError, AttributeError):
    """A value was to be changed; make another one instead."""


class RankError(ParallelTopologyError, ValueError):
    """A rank or coordinate outside the world."""


class GroupArgumentError(ParallelTopologyError, ValueError):
    """A collective was called with arguments that cannot work."""


class NotPicklableError(ParallelTopologyError, TypeError):
    """A manager or group was to be pickled, but holds connections of this process. Copies of it are itself."""


class MissingExtraError(ParallelTopologyError, ImportError):
    """An optional dependency is not installed; the message says what to install."""


class LaunchError(ParallelTopologyError, RuntimeError):
    """The environment does not say, or contradicts itself about, which rank this process is."""


class NoLauncherError(LaunchError):
    """No launcher has left its variables.

    Attributes:
        said: the message, but for the list of launchers that follows in it.
    """

    def __init__(self, said: str, looked_for: str) -> None:
        super().__init__(said, looked_for)
        self.said = said

    def __str__(self) -> str:
        return f"{self.said}. Looked for {self.args[1]}"


class BackendError(ParallelTopologyError, RuntimeError):
    """A backend or device that cannot be used here."""


class ClosedError(ParallelTopologyError, RuntimeError):
    """A manager or group was used after `close()`."""


class ClosingError(ParallelTopologyError, ExceptionGroup[Exception]):
    """What `close()` could not end: one error each. All else has ended; `close()` again goes on with what is left."""


class LiveGraphError(ParallelTopologyError, RuntimeError):
    """A manager is to be closed while CUDA graphs are alive that captured its collectives; NCCL would wait for them."""


class RendezvousError(ParallelTopologyError, RuntimeError):
    """The rendezvous store cannot be reached or hosted."""


class DisagreementError(ParallelTopologyError, RuntimeError):
    """The ranks do not hold the same plan; the message says which ranks hold which."""


class CreationError(ParallelTopologyError, RuntimeError):
    """A process group could not be created, or is not what the plan says."""


class RebindError(ParallelTopologyError, RuntimeError):
    """Not all ranks could be bound to another topology, so all keep the one they have; says which rank, and why."""


class RefitError(ParallelTopologyError, RuntimeError):
    """Weights could not be moved to another layout; the message says which rank, why, and what has been written."""


class MismatchError(ParallelTopologyError, RuntimeError):
    """The ranks' collectives do not match: another operation, shape, dtype or order; the message names who differs."""


class CollectiveError(ParallelTopologyError, RuntimeError):
    """A collective failed, most often because a peer is gone."""


class WireError(ParallelTopologyError, RuntimeError):
    """Bytes from a peer that are no value, or hold a class that the receiver did not allow."""


class GroupTimeoutError(ParallelTopologyError, TimeoutError):
    """Ranks did not arrive before the deadline; the message names them where they can be known."""


class DeadRankError(ParallelTopologyError, RuntimeError):
    """A rank whose process ended without a word."""


class StuckRankError(ParallelTopologyError, TimeoutError):
    """A rank that was still running at the deadline."""


class RanksFailedError(ParallelTopologyError, ExceptionGroup[Exception]):
    """A call that not all ranks finished: one error a rank, the deaths first.

    Attributes:
        ranks: whose errors `exceptions` are, in their order.
    """

    ranks: tuple[int, ...]
